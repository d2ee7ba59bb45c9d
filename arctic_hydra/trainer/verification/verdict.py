"""The verdict on an export: what equals the trained model, what differs, and what could not be checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Verdict:
    """The result of verifying one export."""

    equal: list[str] = field(default_factory=list)
    """What was compared and is equal, such as `template`."""
    differs: list[str] = field(default_factory=list)
    """One sentence for each difference from the trained model."""
    unchecked: list[str] = field(default_factory=list)
    """What was not compared, and why."""
    seconds: float = 0.0
    """Duration of the verification."""

    @property
    def verified(self) -> bool:
        """Whether something was compared and nothing differs."""
        return bool(self.equal) and not self.differs

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for `result.json` and the record."""
        return {"verified": self.verified, **asdict(self), "seconds": round(self.seconds, 2)}


def verdict_lines(name: str, verdict: dict[str, Any]) -> Iterator[str]:
    """Yield the verdict on the export `name`, as `as_dict` returns it, in lines for the terminal."""
    if verdict["differs"]:
        yield from (f"{name} is wrong: {text}" for text in verdict["differs"])
    elif verdict["equal"]:
        yield f"{name} verified: {', '.join(verdict['equal'])}"
    if verdict["unchecked"]:
        yield f"{name} not checked: {', '.join(verdict['unchecked'])}"


def problem_of(verdicts: dict[str, dict[str, Any]]) -> str:
    """Return what differs in the exports of `verdicts`, by name, in one sentence; empty if nothing does."""
    found = [f"{name}: {text}" for name, verdict in verdicts.items() for text in verdict["differs"]]
    return f"an export differs from the trained model: {'; '.join(found)}" if found else ""
