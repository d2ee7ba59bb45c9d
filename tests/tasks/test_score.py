"""`task=score`: kill -9 changes nothing, a second start does nothing, and training uses what it stored."""

from __future__ import annotations

import json
import time

import pytest

from arctic_hydra.__main__ import main
from tests.command import SMALLEST, metrics, only_run, run, start

PAIRS = [
    {"prompt": f"{n}?", "chosen": f"{2 * n}." + " Sure." * (n % 9), "rejected": "No." * (1 + n % 8)} for n in range(400)
]
COMMAND = (
    f"trainer=dpo {SMALLEST} data.sources.preference.path=pairs.jsonl data.max_length=64 tracking=[] checkpoint=[] "
    "trainer.scores_dir=kept"
)


def parts(folder):
    """Return the bytes of every file of the stored scores."""
    return {path.name: path.read_bytes() for path in (folder / "kept").glob("scores/*/*") if path.is_file()}


def killed(folder):
    """Start scoring, and kill it with SIGKILL after its first part."""
    process = start(f"{COMMAND} task=score", folder)
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end and not any(folder.glob("kept/scores/*/*.npy")):
        time.sleep(0.005)
    process.kill()
    process.communicate()


def test_it_goes_on_after_a_kill_and_training_uses_it(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    done = run(f"{COMMAND} task=score", tmp_path / "whole")
    whole, folder = parts(tmp_path / "whole"), tmp_path / "killed"
    assert "scores       kept/scores/" in done.stdout and len(whole) > 3
    killed(folder)
    assert 0 < len(parts(folder)) < len(whole)
    again = run(f"{COMMAND} task=score", folder)
    assert parts(folder) == whole and "scoring preference: 0 of" not in again.stderr
    before = {path: path.stat().st_mtime_ns for path in (folder / "kept").rglob("*.npy")}
    assert "scores of preference are complete: 800 documents" in run(f"{COMMAND} task=score", folder).stderr
    trained = run(f"{COMMAND} trainer.reference=cached trainer.train_iters=2 name=r", folder)
    assert "scores of preference are complete" in trained.stderr and "scoring preference" not in trained.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "kept").rglob("*.npy")} == before
    assert metrics(only_run(folder, "r"))[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert (only_run(folder) / "task-score" / "result.json").exists()


BAD = [
    ("trainer=orpo task=score", "task: got score, but trainer=orpo has no frozen model whose scores it could use"),
    ("task=score", "task: got score, but trainer=sft has no frozen model"),
    ("trainer=orpo trainer.reference=cached", "trainer.reference: there is no such key"),
    ("trainer=dpo task=score from_checkpoint=3", "from_checkpoint: got 3, but task=score ignores it"),
    ("trainer=dpo trainer.reference=cached data.cache=off", "trainer.reference: got cached, but data.cache=off keeps"),
    ("trainer=dpo trainer.reference=cached data.streaming=true trainer.train_iters=1", "data.streaming: got true"),
    (
        "trainer=distill trainer.teacher_path=x/y trainer.teacher=cached data.cache=off",
        "trainer.teacher: got cached, but",
    ),
    ("trainer=distill trainer.teacher=adapter_off trainer.ce_share=0.5 task=score", "trainer.teacher: got adapter_off"),
    ("trainer=distill trainer.teacher=cached", "trainer.teacher_path: not set"),
    (
        "trainer=dpo trainer.reference=copy trainer.scores_dir=kept",
        "trainer.scores_dir: got kept, which has no effect with",
    ),
    ("trainer=distill trainer.teacher_path=x/y trainer.top_k=3", "trainer.top_k: got 3, which has no effect with"),
    ("trainer=dpo task=score trainer.scores_dir=/dev/null/x", "trainer.scores_dir: /dev/null is a device"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[arguments for arguments, _ in BAD])
def test_impossible_scores_are_refused_in_one_sentence(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIRS[0]) + "\n")
    source = ["data.sources.preference.path=pairs.jsonl"] if "=dpo" in arguments or "=orpo" in arguments else []
    assert main([*arguments.split(), *source]) == 2
    error = capsys.readouterr().err
    assert f"error: {text}" in error and "Traceback" not in error, error
