"""report.html: what stands on it, from whatever a run has left; and that it never fails a run."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.report import run_page
from arctic_hydra.run_directory import RunDirectory
from tests.command import SMALL, only_run, run


def source(bins: dict[str, int], **changes: Any) -> dict[str, Any]:
    prepared = {"rows": 5, "dropped": {}, "truncated": 0, "split": 0, "tokens_lost": 0, "length_bins": bins, **changes}
    lengths = {"p50": 10, "p90": 20, "p99": 20, "p100": 20}
    return {"prepared": prepared, "examples": 4, "tokens": 50, "supervised_share": 0.5, "length_tokens": lengths}


def run_directory(folder: Path, steps: int, **record: Any) -> RunDirectory:
    """Write what a run of so many steps leaves."""
    sources = {"<one>": source({"20": 3, "30": 2}, dropped={"overlong": 2}), "two": source({"25": 9})}
    train = {
        "examples": 8,
        "tokens": 100,
        "packing": True,
        "packs": 3,
        "fill": 0.9876,
        "max_length": 64,
        "pack_tokens": 64,
        "sources": sources,
    }
    train["length_tokens"] = sources["two"]["length_tokens"]
    model = {"name": "Llama", "parameters": 1_500_000, "trainable": 1_500_000}
    known = {"name": "mine", "status": "finished", "overrides": ["a=<b>"], "ranks": 1}
    known["statistics"] = {"train": train, "eval": None, "model": model}
    (folder / "record.json").write_text(json.dumps({**known, **record}))
    (folder / "run.json").write_text(json.dumps({"config": {"log": {"report": True}}}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            line = {
                "step": step, "loss": 3.0 - step / steps, "lr": 1e-3, "grad_norm": 1.0 / step, "step_seconds": 0.5,
                "tokens": 10 * step, "supervised_tokens": 5 * step, "tokens_per_second": 20.0, "memory_gib": 1.5,
                "mfu": None, "skipped_steps": 0,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            if step % 10 == 0:
                evaluation = {"eval/loss": 2.5, "eval/perplexity": 12.2, "eval/accuracy": 0.25, "eval/two/loss": 2.25}
                file.write(json.dumps({"step": step, **evaluation}) + "\n")
    return RunDirectory(folder)


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, 60, result={"horizon": 80, "stop_reason": "asked <politely>"}, status="stopped")
    page = run_page.write(directory).read_text()
    assert page.count("<svg") == page.count("</svg>") == 5
    for text in (
        "<span class='status stopped'>stopped</span> asked &lt;politely&gt;", "60 of 80", "2.8667 → 2.1167", "30.0s",
        "evaluation loss", "25.0%", "2 overlong", "98.76% full", "two loss", "2.2500", "Llama, 1.5M parameters", "a=&lt;b&gt;",
    ):  # fmt: skip
        assert text in page, text
    titles = ("loss", "learning rate", "gradient norm", "tokens per second", "rows by length", "max_length 64")
    drawn = re.sub(r"<[^>]+>", "\n", page)
    assert all(re.search(rf"^\s*{title}\s*$", drawn, re.MULTILINE) for title in titles)
    assert "<one>" not in page and not re.search(r"(src|href)=['\"]http", page), "nothing is loaded from elsewhere"


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_did_not_get_far_has_a_page_too(tmp_path: Path, steps: int) -> None:
    page = run_page.write(run_directory(tmp_path, steps, status="failed", error="out of <memory>")).read_text()
    assert "out of &lt;memory&gt;" in page and page.count("<svg") == 1
    assert ("No step was completed." in page) == (steps == 0)


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    assert run_page.write(run_directory(tmp_path, 20_000)).stat().st_size < 400_000


def test_non_finite_values_leave_a_gap(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, 3)
    text = (tmp_path / "metrics.jsonl").read_text().replace('"grad_norm": 0.5', '"grad_norm": null')
    (tmp_path / "metrics.jsonl").write_text(text.replace('"loss": 2.0', '"loss": null'))
    assert "→ n/a" in run_page.write(directory).read_text()


def test_what_goes_wrong_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = run_directory(tmp_path, 3)
    (tmp_path / "metrics.jsonl").write_text("{nonsense\n")
    with caplog.at_level(logging.WARNING):
        assert run_page.write_if_wanted(directory) is None
    assert "cannot write report.html" in caplog.text and "metrics.jsonl:1: not a line of metrics" in caplog.text
    (tmp_path / "run.json").write_text(json.dumps({"config": {"log": {"report": False}}}))
    (tmp_path / "metrics.jsonl").unlink()
    assert run_page.write_if_wanted(directory) is None
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_every_run_ends_with_a_report(tmp_path: Path) -> None:
    small = f"{SMALL} trainer.train_iters=3 tracking=[] checkpoint=[]"
    done = run(f"{small} log.report=true", tmp_path)
    folder = only_run(tmp_path)
    assert re.search(r"report +outputs/default/\w+/report\.html", done.stdout)
    page = folder / "report.html"
    assert page.read_text().count("<svg") == 5
    record = json.loads((folder / "record.json").read_text())
    assert record["statistics"]["train"]["sources"]["chat"]["prepared"]["rows"] == 957
    assert record["statistics"]["eval"]["examples"] == 15
    page.unlink()
    assert "report.html" in run(f"{small} task=report", tmp_path).stdout and page.exists()
    refused = run(f"{small} seed=3 task=report", tmp_path, code=2)
    assert "task: got report, but" in refused.stderr and "has never been trained" in refused.stderr


def test_the_figures_of_preferences_are_drawn_with_those_of_evaluations(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, 20)
    more = {"rewards/chosen": 0.5, "rewards/rejected": -0.5, "rewards/accuracies": 0.75, "kl": 0.0625}
    held = {f"eval/{name}": value for name, value in {**more, "rewards/margins": 1.25}.items()}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row | (held if "eval/loss" in row else more) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = run_page.write(directory).read_text()
    drawn = re.sub(r"<[^>]+>", "\n", page)
    for title in ("rewards", "KL", "pairs ranked right", "chosen, evaluation", "evaluation", "1.25", "0.0625"):
        assert re.search(rf"^\s*{title}\s*$", drawn, re.MULTILINE), title
    assert page.count("<svg") == 8 and "accumulated x 1 rank<" in page


def test_a_run_that_was_killed_is_not_called_running(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, 2, status="running")
    assert "<span class='status died'>died</span>" in run_page.write(directory).read_text()
    directory.lock()
    assert "<span class='status running'>running</span>" in run_page.write(directory).read_text()
    directory.release()


def test_figures_and_columns_are_of_all_lines(tmp_path: Path) -> None:
    """The last line may lack the rewards of KTO, and the last evaluation a source."""
    directory = run_directory(tmp_path, 10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines[0] |= {"rewards/chosen": 0.5}
    lines += [{"step": 11, "eval/loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sample = {"step": 1, "prompt": "p", "completion": "a\nb\x1b[31m"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    page = run_page.write(directory).read_text()
    assert ">rewards<" in page.replace("\n", "") and "<th>two loss</th>" in page
    assert "<td>a\nb␛[31m</td>" in page and "td{white-space:pre-wrap}" in page
