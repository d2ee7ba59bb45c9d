"""Parsing and formatting of human-friendly numbers: `50%`, `1e-6`, `2^20`, `1K`, `8Ki`, `1_000`.

A field typed `HumanInt` or `HumanFloat` passes OmegaConf as `int | float | str` and is converted once, in
`Component.__post_init__`; type checkers see the plain `int` or `float` that it then holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    HumanInt = int
    HumanFloat = float
else:
    HumanInt = HumanFloat = int | float | str

LARGEST = 10**15
"""Largest number that a field accepts unless it declares its own maximum: exact as a float, and more than any machine holds."""
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
    `-2^2` is -4, as in mathematics. Raises ValueError for anything else, and for numbers that are out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"got {value!r}, expected {FORMS}")
    if not isinstance(value, str):
        return value
    text = value.strip().replace("_", "").lower()
    try:
        number = _parse(text)
    except (ArithmeticError, ValueError) as error:  # 2^9999, 0^-1, or more digits than Python converts
        raise ValueError(f"got {shorten(value)}, which is out of range, expected {FORMS}") from error
    if number is None:
        raise ValueError(f"got {shorten(value)}, expected {FORMS}")
    return number


def _parse(text: str) -> int | float | None:
    """Return the number in one of the `FORMS`, or None; raises ArithmeticError or ValueError if Python cannot represent it."""
    if match := _PERCENT.fullmatch(text):
        return float(match[1]) / 100
    if match := _POWER.fullmatch(text):
        base, exponent = float(match[1]), float(match[2])
        return _integral(math.copysign(abs(base) ** exponent, base))
    if match := _SUFFIXED.fullmatch(text):
        return _integral(float(match[1]) * _SUFFIXES[match[2]])
    if _PLAIN.fullmatch(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return None


def shorten(value: Any, width: int = 80) -> str:
    """Return the representation of a value for an error message, cut in the middle if it is long."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 23]}...{text[-20:]}"


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return names for an error message, each shortened, and how many more there are."""
    shown = [name if len(name) <= 80 else shorten(name) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _integral(number: float) -> int | float:
    return int(number) if number.is_integer() else number


@dataclass(frozen=True)
class NumberRule:
    """Constraints of a numeric field: integers or real numbers, between inclusive bounds."""

    integer: bool
    minimum: float | None = None
    maximum: float | None = LARGEST
    """None: no maximum."""

    def convert(self, value: Any) -> int | float:
        """Return the converted number. Raises ValueError, with what it got and expected, if `value` is invalid."""
        number = parse_human_number(value)
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"got {shorten(value)}, expected a finite number")
        if self.integer and number != int(number):
            raise ValueError(f"got {shorten(value)}, expected a whole number")
        if self.minimum is not None and number < self.minimum:
            raise ValueError(f"got {shorten(value)}, expected {_format_bound(self.minimum)} or more")
        if self.maximum is not None and number > self.maximum:
            raise ValueError(f"got {shorten(value)}, expected {_format_bound(self.maximum)} or less")
        if self.minimum is None and number < -LARGEST:
            raise ValueError(f"got {shorten(value)}, expected {_format_bound(-LARGEST)} or more")
        return int(number) if self.integer else float(number)


def _format_bound(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) and abs(bound) > 1000 else f"{bound:g}"


def integer(default: Any = MISSING, *, minimum: float | None = None, maximum: float | None = LARGEST) -> Any:
    """Return a dataclass field that is converted to an integer; None is allowed if it is the default."""
    return field(default=default, metadata={"number": NumberRule(True, minimum, maximum)})


def number(default: Any = MISSING, *, minimum: float | None = None, maximum: float | None = LARGEST) -> Any:
    """Return a dataclass field that is converted to a float; None is allowed if it is the default."""
    return field(default=default, metadata={"number": NumberRule(False, minimum, maximum)})


def bounded(default: Any, *, minimum: float, maximum: float = LARGEST) -> Any:
    """Return a plain numeric field with the range that help shows; the code that uses the field has to check it."""
    return field(default=default, metadata={"range": (minimum, maximum)})


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


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 rank` or `2,048 tokens`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_count(count: float) -> str:
    """Format a count in powers of 1000 with three significant digits: 4_812_032 -> `4.81M`."""
    if abs(count) < 1000 and float(count).is_integer():
        return f"{count:.0f}"
    rounded = float(f"{count:.3g}")
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(rounded) >= limit:
            return f"{rounded / limit:.3g}{suffix}"
    return f"{rounded:.3g}"


def format_seconds(seconds: float) -> str:
    """Format a duration: `3.2s`, `4m05s`, `2h03m`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"
