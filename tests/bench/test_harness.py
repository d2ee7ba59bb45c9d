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
from tests.bench.harness import Comparison, Parts, Sample, Series


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


def test_growth_is_a_slope_in_log_log_scales_with_a_table_and_a_picture(tmp_path: Path) -> None:
    points = sides({"1": [1.0, 3.0], "10": [10.0, 30.0], "100": [1000.0, 3000.0]}, {"1": 1, "10": 10, "100": 100})
    for point in points.values():  # the first call is the check of a comparison
        point()
    series = Series("rows", "rows", {int(size): run for size, run in points.items()}, grown, rounds=2)
    found = harness.grow(series, 5)
    assert found["rounds"] == 2 and found["points"][1]["wall"] == 20
    assert found["slope"] == pytest.approx(1.5) and found["last_slope"] == pytest.approx(2)
    (tmp_path / "results").mkdir()
    whole = {"commit": "abc", "date": "2026-01-01", "machine": harness.machine(), "comparisons": [found]}
    (tmp_path / "results" / "x.json").write_text(json.dumps(whole))
    text = results.write(tmp_path).read_text()
    assert "| rows | wall | CPU | peak MiB |" in text and "| 100 | 2000.000 s | 2.000 s | 7 |" in text
    assert "Slope of wall time: **1.50**, of the last two sizes 2.00; in proportion is 1." in text
    assert b"<svg" in (tmp_path / "growth.svg").read_bytes()


def grown(answers: dict[int, Any]) -> None:
    """Check that each answer is the size."""
    assert all(answer == size for size, answer in answers.items()), answers


def test_one_run_gives_several_sides_and_runs_anew_when_one_is_asked_for_again() -> None:
    turns = iter([{"a": Sample(1, 1), "b": Sample(2, 1)}, {"a": Sample(3, 1), "b": Sample(4, 1)}])
    parts = Parts(lambda: next(turns))
    assert [parts.sample(name).wall for name in ("b", "a", "a", "b")] == [2, 1, 3, 4]


def test_commands_and_blocks_are_measured_with_their_cpu_time(tmp_path: Path) -> None:
    busy = "import time\nend = time.process_time() + 0.05\nwhile time.process_time() < end: pass\n"
    sample = harness.command([sys.executable, "-c", f"{busy}print('done')"], tmp_path)
    assert sample.answer == (0, "done\n", "") and 0.05 <= sample.cpu < 5
    program = f"from tests.bench.harness import Pauses\np = Pauses()\nfor n in (1, 2):\n    {busy.splitlines()[0]}\n    p.end(lambda: n)"
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


@pytest.mark.parametrize("name", bench.names())
def test_the_sides_of_each_benchmark_do_equal_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in ("TRL", "ARCTIC"):  # whose imports alone take ten seconds
        monkeypatch.setenv(f"BENCH_{peer}", str(tmp_path / "none"))
    assert bench.main([name, "--quick", "--folder", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    whole_commands = name in ("resume", "sweep")  # which have no quick form
    assert whole_commands or "equal work" in output or "skipped: trl, which has no environment" in output
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_blocks_removes_its_temporary_files_at_the_end(tmp_path: Path) -> None:
    program = (
        "import tempfile\n"
        "from tests.bench.harness import Pauses\n"
        f"with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n"
        "    pauses = Pauses()\n"
        "    while True:\n"
        "        pauses.end(1)\n"
    )
    blocks = harness.Blocks(["-c", program], {})
    assert blocks().answer == 1 and len([*tmp_path.iterdir()]) == 1
    blocks.close()
    assert not [*tmp_path.iterdir()]
