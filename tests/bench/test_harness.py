"""The comparisons of the benchmarks: their equality is checked, their figures and tables are right; nothing is timed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench import __main__ as bench
from tests.bench import harness, results
from tests.bench.harness import Comparison, Sample


def sides(walls: dict[str, list[float]], answers: dict[str, Any]) -> dict[str, Callable[[], Sample]]:
    """Return sides that take the given seconds, one after the other; the first of each is that of the check."""
    calls = {name: iter([9.0, *taken]) for name, taken in walls.items()}

    def side(name: str) -> Callable[[], Sample]:
        return lambda: Sample(next(calls[name]), 2.0, answers[name], {"peak MiB": 7.0})

    return {name: side(name) for name in walls}


def equal(answers: dict[str, Any]) -> None:
    """Check that all sides gave one answer."""
    assert len(set(answers.values())) == 1, answers


WALLS = {"base": [1.0, 2.0, 4.0], "ours": [2.0, 2.0, 12.0]}


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    found = harness.measure(Comparison("x", sides(WALLS, {"base": 1, "ours": 1}), equal, {"ours": 1.5}), 3)
    assert found["sides"]["base"]["wall"] == 2 and found["sides"]["base"]["ratio"] == 1
    ours = found["sides"]["ours"]
    assert (ours["wall"], ours["ratio"], ours["range"], ours["target"]) == (2, 2, [1, 3], 1.5)
    assert ours["cpu_ratio"] == 1 and ours["figures"] == {"peak MiB": 7}


def test_unequal_work_is_not_timed() -> None:
    with pytest.raises(AssertionError, match="'ours': 2"):
        harness.measure(Comparison("x", sides({"base": [], "ours": []}, {"base": 1, "ours": 2}), equal), 0)


def test_results_are_a_table_with_the_commit_and_a_picture(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    found = harness.measure(Comparison("steps", sides(WALLS, {"base": 1, "ours": 1}), equal, {"ours": 1.5}), 3)
    whole = {"commit": "abc", "date": "2026-01-01", "machine": harness.machine(), "comparisons": [found]}
    (tmp_path / "results" / "x.json").write_text(json.dumps(whole))
    text = results.write(tmp_path).read_text()
    assert "Commit abc, 2026-01-01: " in text and "### steps\n\n3 rounds, load " in text
    assert "| ours, 7 peak MiB | 2.000 s | 2.000 s | **2.00** | 1.00 to 3.00 | 1.00 | 1.50 |" in text
    drawn = (tmp_path / "ratios.svg").read_bytes()
    results.write(tmp_path)
    assert (tmp_path / "ratios.svg").read_bytes() == drawn and b"<svg" in drawn


def test_commands_and_blocks_are_measured_with_their_cpu_time(tmp_path: Path) -> None:
    busy = "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass\n"
    sample = harness.command([sys.executable, "-c", f"{busy}print('done')"], tmp_path)
    assert sample.answer == (0, "done\n", "") and 0.05 <= sample.cpu < 5
    program = f"from tests.bench.harness import Pauses\np = Pauses()\nfor n in (1, 2):\n    {busy.splitlines()[0]}\n    p.end(n)"
    blocks = harness.Blocks(["-c", program], {"PYTHONHASHSEED": "0", "OMP_WAIT_POLICY": None})
    assert [blocks().answer, blocks().answer] == [1, 2]
    with pytest.raises(SystemExit, match="ended with 0"):
        blocks()
    blocks.close()


def test_neighbours_end_with_their_context() -> None:
    children = Path(f"/proc/self/task/{Path('/proc/thread-self').resolve().name}/children")
    before = children.read_text().split()
    with harness.neighbours(2):
        assert len(children.read_text().split()) == len(before) + 2
    assert children.read_text().split() == before


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["stratup"])
    assert "stratup: there is no such benchmark; expected" in capsys.readouterr().err


def test_the_sides_of_each_benchmark_do_equal_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("equal work") == 3
    assert list(tmp_path.iterdir()) == []
