"""`task=chat` and generated answers in `task=evaluate`, on a run that has learned three answers by heart."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arctic_hydra.errors import ConfigError, DataError
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.tasks.chat import Talk, execute
from tests.command import environment, only_run, run
from tests.composing import built
from tests.converter import lab
from tests.data.samples import write_lines

pytestmark = pytest.mark.xdist_group("chat")  # what they share is made once

QUESTIONS = {"Count the legs of 3 cats": "3 * 4 = 12\n#### 12", "Add 1000 and 234": "#### 1,234", "Ping": "#### pong"}
SIZES = "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.max_length=64 data.num_proc=1"
DATA = "data=json data.sources.json.path=a.jsonl data/eval_sources=[json] data.eval_sources.json.path=a.jsonl"
BASE = f"{SIZES} {DATA} optimizer.lr=5e-3 trainer.epochs=0 trainer.train_iters=60 log.report=false tracking=[]"
TRAINED = f"{BASE} ranks=2 deepspeed=zero3"
PING = "Count the legs of 3 cats"


def _chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of the command and the run directory of two ranks at ZeRO-3."""
    folder = tmp_path_factory.mktemp("chat")
    write_lines(folder / "a.jsonl", [_chat(*item) for item in QUESTIONS.items()])
    run(TRAINED, folder)
    return folder, only_run(folder)


def _files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_prompt_is_answered_on_standard_output_and_the_run_stays_as_it_is(trained):
    folder, run_dir = trained
    before = _files(run_dir.parent)
    done = run(f"{TRAINED} task=chat 'prompt={PING}'", folder)  # the run is found by its overrides
    assert done.stdout == "3 * 4 = 12\n#### 12\n" and done.stderr == ""
    [step] = (run_dir / "checkpoints").glob("step-*")
    for where in (
        run_dir,
        run_dir / "export",
        step,
        step.parent,
    ):  # the config is that of the run in whose directory it is
        done = run(f"task=chat from_checkpoint={where} prompt=Ping", folder)
        assert done.stdout == "#### pong\n", where
    assert _files(run_dir.parent) == before and len(list((folder / "outputs" / "default").iterdir())) == 1


def test_the_prompts_of_a_file_are_answered_in_batches(trained):
    folder, run_dir = trained
    rows = [{"id": number, "prompt": question} for number, question in enumerate(QUESTIONS)]
    write_lines(folder / "p.jsonl", [*rows, {"messages": [{"role": "user", "content": "Ping"}]}])
    arguments = f"task=chat from_checkpoint={run_dir / 'export'} prompts=p.jsonl out=answers.jsonl"
    run(f"{arguments} generation_batch_size=3 max_new_tokens=8", folder)
    found = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [row["finish_reason"] for row in found] == ["length", "stop", "stop", "stop"]
    assert [row["answer"] for row in found[1:]] == ["#### 1,234", "#### pong", "#### pong"]
    assert found[1] == {**rows[1], "answer": "#### 1,234", "finish_reason": "stop"}


def test_a_file_of_answers_is_kept_until_all_prompts_are_valid(tmp_path):
    model = lab.save_model(tmp_path / "model")
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    write_lines(prompts, [{"prompt": "Ping"}, {"prompt": "Ping " * 5000}])
    out.write_text("earlier")

    def answer(path: Path) -> None:
        overrides = ("task=chat", f"from_checkpoint={model}", f"prompts={prompts}", f"out={path}")
        execute(built(*overrides), RunDirectory(tmp_path / "none"))

    with pytest.raises(DataError, match=r"p.jsonl:2: the conversation has [\d,]+ tokens, but the model has"):
        answer(out)
    assert out.read_text() == "earlier"
    (tmp_path / "link").symlink_to(prompts)
    with pytest.raises(ConfigError, match="^out: got .*/link, the file of prompts itself; expected another file"):
        answer(tmp_path / "link")
    out.chmod(0o400)
    if not os.access(out, os.W_OK):  # root may write it
        with pytest.raises(ConfigError, match="^out: got .*/out.jsonl, which cannot be written"):
            answer(out)


def test_a_conversation_in_a_terminal(trained):
    folder, run_dir = trained
    ours, theirs = pty.openpty()
    command = f"{shlex.quote(sys.executable)} -m arctic_hydra task=chat from_checkpoint={run_dir / 'export'}"
    process = subprocess.Popen(
        f"exec {command}",
        shell=True,
        cwd=folder,
        env=environment(TERM="xterm", COLUMNS="80"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        assert "parameters, float32" in _until(ours, "\n> ")
        os.write(ours, b"Ping\r")
        assert "#### pong" in _until(ours, "\n> ")
        os.write(ours, b"/reset\r")
        assert "a new conversation" in _until(ours, "\n> ")
        os.write(ours, b"XPing\x1b[H\x1b[3~P\r")  # Home, Delete: the line is edited
        assert "#### pong" in _until(ours, "\n> ")
        os.write(ours, b"/hlep\r")
        assert "/hlep: there is no such command" in _until(ours, "\n> ")
        os.write(ours, b"/system Be brief.\r")
        assert "the system message is set" in _until(ours, "\n> ")
        time.sleep(0.5)  # the prompt is shown before the line editor waits, and only then does the signal end its wait
        process.send_signal(signal.SIGINT)
        assert "Ctrl-C again leaves" in _until(ours, "\n> ")
        os.write(ours, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(ours)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_lines_of_a_pipe_that_are_not_utf_8_are_left_out(monkeypatch, capsys, encoding):
    talk, asked = object.__new__(Talk), []
    monkeypatch.setattr(talk, "_greet", lambda: None)
    monkeypatch.setattr(talk, "_turn", asked.append)
    lines = io.BytesIO(b"one\ncaf\xe9\n/system caf\xe9\ntwo\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, encoding=encoding))
    talk.interact()
    assert asked == ["one", "two"]
    assert capsys.readouterr().err == "the line is not UTF-8; it was left out\n" * 2 + "\n"


def _until(terminal: int, mark: str, seconds: float = 60.0) -> str:
    """Return what the terminal shows up to a mark at its end."""
    shown, end = "", time.monotonic() + seconds
    while not shown.replace("\r", "").replace("\x1b[?2004h", "").endswith(mark):
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"nothing more within {seconds} s: {shown}"
        shown += os.read(terminal, 4096).decode()
    return shown


@pytest.mark.parametrize(
    "where", ["ranks=2 deepspeed=zero3", "ranks=1 trainer.gradient_accumulation_steps=2 deepspeed=zero3"]
)
def test_exact_match_of_a_held_out_set_whatever_the_ranks(trained, where):
    folder, run_dir = trained
    options = "'exact_match.pattern=#### (.+)' max_new_tokens=16 generation_batch_size=1"
    done = run(f"{BASE} {where} task=evaluate {options}", folder)
    assert "exact match 3/3 = 100.0 %; the answers: outputs/default/" in done.stdout
    assert "generate " in done.stdout and "did not end" not in done.stdout
    result = json.loads((run_dir / "task-evaluate" / "result.json").read_text())
    assert result["eval/exact_match"] == 1.0 and result["eval/loss"] < 0.5
    rows = [json.loads(line) for line in (run_dir / "task-evaluate" / "answers.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [0, 1, 2], "each question once"
    assert rows[1] == {
        "source": "json",
        "row": 1,
        "question": "Add 1000 and 234",
        "reference": "#### 1,234",
        "answer": "#### 1,234",
        "finish_reason": "stop",
        "expected": "1234",
        "found": "1234",
        "correct": True,
    }
