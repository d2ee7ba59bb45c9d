"""Parsing and formatting of human-friendly numbers: `50%`, `1e-6`, `2^20`, `1K`, `8Ki`, `1_000`.

A field typed `HumanInt` or `HumanFloat` passes OmegaConf as `int | float | str` and is converted once, in
`Component.__post_init__`; type checkers see the plain `int` or `float` that it then holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    HumanInt = int
    HumanFloat = float
else:
    HumanInt = HumanFloat = int | float | str

FORMS = "a number such as 1000, 1_000, 1e-6, 2^20, 50%, 1K/M/B/T (powers of 1000) or 1Ki/Mi/Gi/Ti (powers of 1024)"

_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12} | {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_DECIMAL = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_PERCENT = re.compile(rf"({_DECIMAL})%")
_POWER = re.compile(rf"({_DECIMAL})\^({_DECIMAL})")
_SUFFIXED = re.compile(rf"({_DECIMAL})(ki|mi|gi|ti|k|m|b|t)")
_PLAIN = re.compile(rf"{_DECIMAL}(?:e[+-]?\d+)?")


def parse_human_number(value: int | float | str) -> int | float:
    """Return `value` as a number: an int if it is integral and not written as a float.

    Returns ints and floats unchanged (bool is refused) and parses the forms in `FORMS`, in upper or lower case.
    `-2^2` is -4, as in mathematics. Raises ValueError for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"got {value!r}, expected {FORMS}")
    if not isinstance(value, str):
        return value
    text = value.strip().replace("_", "").lower()
    if match := _PERCENT.fullmatch(text):
        return float(match[1]) / 100
    if match := _POWER.fullmatch(text):
        base, exponent = float(match[1]), float(match[2])
        return _integral(math.copysign(abs(base) ** exponent, base))
    if match := _SUFFIXED.fullmatch(text):
        return _integral(float(match[1]) * _SUFFIXES[match[2]])
    if _PLAIN.fullmatch(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    raise ValueError(f"got {value!r}, expected {FORMS}")


def _integral(number: float) -> int | float:
    return int(number) if number.is_integer() else number


@dataclass(frozen=True)
class NumberRule:
    """Constraints of a numeric field: integers or real numbers, between inclusive bounds."""

    integer: bool
    minimum: float | None = None
    maximum: float | None = None

    def convert(self, value: Any) -> int | float:
        """Return the converted number. Raises ValueError, with what it got and expected, if `value` is invalid."""
        number = parse_human_number(value)
        if not math.isfinite(number):
            raise ValueError(f"got {value!r}, expected a finite number")
        if self.integer:
            if number != int(number):
                raise ValueError(f"got {value!r}, expected a whole number")
            number = int(number)
        else:
            number = float(number)
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"got {value!r}, expected {self.minimum:g} or more")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"got {value!r}, expected {self.maximum:g} or less")
        return number


def integer(default: Any = MISSING, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Return a dataclass field that is converted to an integer; None is allowed if it is the default."""
    return field(default=default, metadata={"number": NumberRule(True, minimum, maximum)})


def number(default: Any = MISSING, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Return a dataclass field that is converted to a float; None is allowed if it is the default."""
    return field(default=default, metadata={"number": NumberRule(False, minimum, maximum)})


def convert_leaves(node: Any) -> Any:
    """Return a copy of a nested dict or list with every human-friendly number string converted.

    Other strings (`"auto"`, `"cpu"`) stay unchanged. Used for the free-form `deepspeed.config`.
    """
    if isinstance(node, Mapping):
        return {key: convert_leaves(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [convert_leaves(value) for value in node]
    if isinstance(node, str):
        try:
            return parse_human_number(node)
        except ValueError:
            return node
    return node


def format_count(count: float) -> str:
    """Format a count in powers of 1000 with three significant digits: 4_812_032 -> `4.81M`."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= limit:
            return f"{count / limit:.3g}{suffix}"
    return f"{count:.0f}" if float(count).is_integer() else f"{count:.3g}"


def format_seconds(seconds: float) -> str:
    """Format a duration: `3.2s`, `4m05s`, `2h03m`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"
