"""Numbers as people write them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import pytest

from arctic_hydra.component import Component
from arctic_hydra.errors import FieldError
from arctic_hydra.human_numbers import (
    HumanFloat,
    HumanInt,
    bounded,
    convert_leaves,
    format_count,
    format_seconds,
    integer,
    number,
    parse_human_number,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (7, 7),
        (0.5, 0.5),
        ("12", 12),
        ("1_000", 1000),
        ("50%", 0.5),
        ("-5%", -0.05),
        ("1e-6", 1e-6),
        ("1.55e3", 1550.0),
        ("2^20", 2**20),
        ("2^-3", 0.125),
        ("-2^2", -4),
        ("1K", 1000),
        ("1.25K", 1250),
        (".5K", 500),
        ("3m", 3_000_000),
        ("7B", 7 * 10**9),
        ("2T", 2 * 10**12),
        ("8Ki", 8192),
        ("1mi", 2**20),
        ("2Gi", 2**31),
        ("1Ti", 2**40),
    ],
)
def test_parse(text, value):
    parsed = parse_human_number(text)
    assert parsed == pytest.approx(value)
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["", "abc", "1 K", "1,000", "0x10", "1P", "1Qa", "K", "%", "2^", True, None, [1], "1e", "nan", "inf"]
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="expected a number such as"):
        parse_human_number(text)


@pytest.mark.parametrize("text", ["2^9999", "0^-1", "9" * 5000, "-2^1e9"])
def test_numbers_that_cannot_be_represented_are_refused(text):
    with pytest.raises(ValueError, match="expected a number such as") as caught:
        parse_human_number(text)
    assert len(str(caught.value)) < 300
    assert convert_leaves({"key": text}) == {"key": text}


@dataclass(kw_only=True)
class Sizes(Component):
    rows: HumanInt = integer(1, minimum=1, maximum=1000)
    rate: HumanFloat = number(0.5, minimum=0)
    limit: HumanInt | None = integer(None)


def test_fields_are_converted_once():
    sizes = Sizes(rows="0.5K", rate="1e-3")
    assert (sizes.rows, type(sizes.rows)) == (500, int)
    assert (sizes.rate, type(sizes.rate)) == (0.001, float)
    assert sizes.limit is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rows": "1.5"}, "rows: got '1.5', expected a whole number"),
        ({"rows": "1e-3"}, "rows: got '1e-3', expected a whole number"),
        ({"rows": 0}, "rows: got 0, expected 1 or more"),
        ({"rows": "1M"}, "rows: got '1M', expected 1000 or less"),
        ({"rate": -1}, "rate: got -1, expected 0 or more"),
        ({"rate": math.inf}, "rate: got inf, expected a finite number"),
        ({"rate": True}, "rate: got True, expected a number"),
        ({"rate": 1e300}, "rate: got 1e+300, expected 1,000,000,000,000,000 or less"),
        ({"limit": 10**400}, "expected 1,000,000,000,000,000 or less"),
        ({"limit": -1e30}, "limit: got -1e+30, expected -1,000,000,000,000,000 or more"),
        ({"limit": "1e400"}, "limit: got '1e400', expected a finite number"),
    ],
)
def test_fields_refuse(values, text):
    with pytest.raises(FieldError) as caught:
        Sizes(**values)
    assert text in str(caught.value)


def test_all_refused_fields_are_reported_together():
    with pytest.raises(FieldError) as caught:
        Sizes(rows=0, rate=-1)
    assert [name for name, _ in caught.value.fields] == ["rows", "rate"]


def test_convert_leaves():
    tree = {"bucket": "5e8", "list": ["1Ki", "auto"], "flag": True, "text": "cpu", "inner": {"x": "2^4"}}
    assert convert_leaves(tree) == {
        "bucket": 5e8,
        "list": [1024, "auto"],
        "flag": True,
        "text": "cpu",
        "inner": {"x": 16},
    }


def test_formats():
    assert [format_count(n) for n in (12, 999, 4_812_032, 2.5e9)] == ["12", "999", "4.81M", "2.5B"]
    assert [format_count(n) for n in (999.7, 999_999, 1000, 0.25, -999_999)] == ["1K", "1M", "1K", "0.25", "-1M"]
    assert [format_seconds(s) for s in (3.21, 59.97, 245, 7400)] == ["3.2s", "1m00s", "4m05s", "2h03m"]


def test_a_bounded_field_is_plain_and_tells_its_range():
    @dataclass
    class Settings:
        copies: int = bounded(2, minimum=1, maximum=9)

    assert Settings(copies=11).copies == 11, "whoever uses the field checks it"
    assert fields(Settings)[0].metadata["range"] == (1, 9)
