"""What became of each source's rows, and when too few of them are left."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

UNSUPERVISED_WARNING_SHARE = 0.1
"""Share of a source's rows without anything to train on from which on it is said aloud."""
ADVICE = {
    "overlong": "raise data.max_length or pass data.overlong=keep_start, keep_end or split",
    "no_supervised_token": "check that answers are not empty and not cut off by data.max_length",
    "malformed": "pass data.malformed=error to see the first such row",
}
"""What to do about rows that are left out, by reason."""


@dataclass
class RowReport:
    """What became of the rows of one source (or of a part of them)."""

    rows: int = 0
    kept: int = 0
    """Examples; with `overlong=split` a row may give several."""
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    """Rows that lost tokens at an end."""
    split: int = 0
    """Rows that were split."""
    tokens: int = 0
    tokens_lost: int = 0
    """Tokens of overlong rows that were dropped or cut off."""
    supervised_tokens: int = 0
    max_token_id: int = -1
    stops: Counter[int] = field(default_factory=Counter)
    """Ids of the tokens that trained turns end in."""
    length_bins: Counter[int] = field(default_factory=Counter)
    """Rows by `length_bin` of their tokens (of a pair, of its longer side), before the length policy."""
    thoughts_left_out: int = 0
    """Trained turns whose thoughts the chat template does not write."""

    def add(self, other: RowReport) -> None:
        """Add the counts of another part."""
        self.dropped.update(other.dropped)
        self.stops.update(other.stops)
        self.length_bins.update(other.length_bins)
        for name in (
            "rows",
            "kept",
            "truncated",
            "split",
            "tokens",
            "tokens_lost",
            "supervised_tokens",
            "thoughts_left_out",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_token_id = max(self.max_token_id, other.max_token_id)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> RowReport:
        """Return the report that `to_dict()` made these values of."""
        by_number = {
            name: Counter({int(number): count for number, count in plain[name].items()})
            for name in ("stops", "length_bins")
        }
        return cls(**{**plain, "dropped": Counter(plain["dropped"]), **by_number})

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        by_number = {
            name: {str(number): count for number, count in sorted(getattr(self, name).items())}
            for name in ("stops", "length_bins")
        }
        return {**asdict(self), "dropped": dict(sorted(self.dropped.items())), **by_number}


def warn_about_stop_token(key: str, report: RowReport, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn where answers end in another token than the one that generation stops at."""
    if not report.stops:
        return
    ((stop, _),) = report.stops.most_common(1)
    if stop != tokenizer.eos_token_id:
        log.warning(
            "%s: answers are trained to end in %r, but tokenizer.eos_token is %r: generation that stops at the eos token "
            "alone will run on; expected one token for both; set the template's stop token as eos_token of the tokenizer",
            key,
            tokenizer.decode([stop]),
            tokenizer.eos_token,
        )


def warn_about_dropped_reasoning(key: str, left_out: int) -> None:
    """Warn where the rows hold thoughts that the chat template does not write: right for old turns, else a surprise."""
    if left_out:
        log.warning(
            "%s: the thoughts (reasoning_content, reasoning or thinking) of %d trained turns are not in the rendered chats, "
            "so they are not trained on; expected the chat template to write them; pass tokenizer.chat_template=<file> with "
            "one that does, or leave them out of the rows",
            key,
            left_out,
        )


def warn_about_unsupervised_rows(key: str, report: dict[str, Any]) -> None:
    """Warn where many rows have nothing to train on, as after a wrong role, weight or cut; `report` is a plain one."""
    empty = report["dropped"].get("no_supervised_token", 0)
    if empty > UNSUPERVISED_WARNING_SHARE * report["rows"]:
        log.warning(
            "%s: %d of %d rows are left out because no token of them is trained on; expected few; %s",
            key,
            empty,
            report["rows"],
            ADVICE["no_supervised_token"],
        )


def no_examples_message(key: str, report: RowReport) -> str:
    """Return the error text of a source that has no example: its counts, and what to do about them."""
    reasons = sorted(report.dropped)
    counts = [report.rows, report.kept, *(report.dropped[reason] for reason in reasons)]
    lines = [" | ".join(["source", "rows", "kept", *reasons]), " | ".join([key, *map(str, counts)])]
    hints = [ADVICE[reason] for reason in reasons if reason in ADVICE] or ["check the source's path and split"]
    table = "\n  ".join(lines)
    return f"{key}: no example is left; expected at least one\n  {table}\n{'; '.join(hints)}"
