"""The figures of the data in a run's header."""

from __future__ import annotations

import re

from arctic_hydra.report.header import aligned, data_table


def figures(**changes: object) -> dict[str, object]:
    prepared = {"rows": 5, "dropped": {}, "truncated": 0, "split": 0, "tokens_lost": 0, **changes}
    lengths = {"p50": 10, "p90": 20, "p99": 20, "p100": 20}
    source = {"prepared": prepared, "examples": 4, "tokens": 50, "supervised_share": 0.5, "length_tokens": lengths}
    return {"length_tokens": lengths, "sources": {"one": source}}


def test_the_table_says_what_became_of_the_rows() -> None:
    table = aligned(data_table(figures(dropped={"malformed": 1}, split=1200, tokens_lost=3)))
    assert re.fullmatch(r"source +rows +examples +tokens +trained +median +p90 +p99 +longest", table[0])
    assert re.fullmatch(r"one +5 +4 +50 +50% +10 +20 +20 +20", table[1])
    assert table[2] == "        dropped or cut: 1 malformed, 1,200 split, 3 tokens lost"
    assert len(aligned(data_table(figures()))) == 2, "of nothing, nothing is said"
    assert data_table(figures())[1][-1] == "nothing"
