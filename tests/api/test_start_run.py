"""`arctic_hydra.run`, in a fork of a warm process: its result, its errors, and Ctrl-C."""

from __future__ import annotations

import json
import re
import sys
import textwrap

import pytest

import arctic_hydra
from arctic_hydra.api import __main__ as process
from arctic_hydra.api import start_run
from arctic_hydra.api.child_command import Ended
from arctic_hydra.api.loaded_run import LoadedRun
from arctic_hydra.run_directory import RunDirectory, write_error
from tests.command import SMALL, run

PRELUDE = f"""
import os, signal, sys, threading, time
import arctic_hydra

signal.signal(signal.SIGINT, signal.default_int_handler)
SMALL = {SMALL.split()!r} + ["tracking=[]"]
"""


def execute(code, folder, exit_code=0):
    """Execute Python code in a fork of the warm process; return what it printed."""
    (folder / "script.py").write_text(PRELUDE + textwrap.dedent(code))
    return run("script.py", folder, module="tests.api.cells", code=exit_code).stdout


def test_it_stops_resumes_and_evaluates_and_leaves_the_process_alone(tmp_path):
    said = execute(
        """
        before = dict(os.environ), os.getcwd(), list(sys.argv), sys.stdout, signal.getsignal(signal.SIGINT)
        composed = arctic_hydra.compose([*SMALL, "trainer.train_iters=4", "trainer.exit_iteration_this_run=2"])
        os.mkdir("other"); os.chdir("other")
        stopped = arctic_hydra.run(composed, progress=False)
        os.chdir("..")
        assert stopped.path == composed.directory and stopped.status == "stopped", stopped
        assert (stopped.step, stopped.objective is None) == (2, False), stopped.result
        assert stopped.reason == "did trainer.exit_iteration_this_run=2 steps", stopped.reason
        print("quiet so far")
        found = []
        thread = threading.Thread(target=lambda: found.append(arctic_hydra.run(composed)))
        thread.start(); thread.join()
        [finished] = found
        assert finished.status == "finished" and finished.step == 4 and finished.export.is_dir(), finished
        assert finished.metrics["loss"].notna().sum() == 4 and finished.objective == finished.metrics["eval/loss"].iloc[-1]
        evaluated = arctic_hydra.run([*SMALL, "trainer.train_iters=4", "task=evaluate"])
        assert evaluated.path == finished.path / "task-evaluate" and evaluated.status == "finished"
        assert evaluated.result["eval/loss"] == finished.objective
        after = dict(os.environ), os.getcwd(), list(sys.argv), sys.stdout, signal.getsignal(signal.SIGINT)
        assert after == before
        arctic_hydra.load_run(finished.path)
        """,
        tmp_path,
    )
    assert said.startswith("quiet so far\nrun      ") and "step 4/4  loss" in said
    assert said.endswith("</table></div>\n") and "<td>finished</td>" in said


def test_ctrl_c_saves_and_the_same_call_resumes(tmp_path):
    said = execute(
        """
        overrides = [*SMALL, "trainer.train_iters=300"]
        path = arctic_hydra.compose(overrides).directory

        def interrupt():
            while not (path / "metrics.jsonl").exists() or not arctic_hydra.load_run(path).step:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        try:
            arctic_hydra.run(overrides)
        except KeyboardInterrupt as error:
            print("interrupt:", error)
        stopped = arctic_hydra.load_run(path)
        assert stopped.status == "stopped" and 1 <= stopped.step < 300 and len(stopped.checkpoints) == 1, stopped
        assert stopped.reason == "received SIGINT", stopped.reason
        """,
        tmp_path,
    )
    assert "SIGINT: stopping at the next step" in said
    assert "interrupt: " in said and " is stopped at step " in said and "; the same call resumes it" in said


def test_a_failing_run_raises_the_error_of_its_rank(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            '''
            from arctic_hydra.callback.base import Callback
            from arctic_hydra.component import component


            @component(group="callback", name="saboteur")
            class Saboteur(Callback):
                """Fails."""

                def on_train_start(self, trainer, facts):
                    raise AssertionError("sabotage")
            '''
        )
    )
    execute(
        """
        try:
            arctic_hydra.run([*SMALL, "code=mine.py", "callback=[code:saboteur]", "trainer.train_iters=2"])
        except arctic_hydra.RunFailed as error:
            assert "rank 0 failed first:" in str(error) and "AssertionError: sabotage" in str(error), error
            assert error.run.status == "failed" and "logs: " in str(error)
        else:
            raise SystemExit("no error")
        try:
            arctic_hydra.run(["data=json", "data.sources.json.path=absent.jsonl"])
        except arctic_hydra.ConfigError as error:
            assert str(error).startswith("data.sources.json.path: absent.jsonl: no such file"), error
        else:
            raise SystemExit("no error")
        with open("bad.jsonl", "w") as file:
            file.write('{"messages": [{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}]}')
        try:
            arctic_hydra.run(["name=bad", "data=json", "data.sources.json.path=bad.jsonl"])
        except arctic_hydra.RunFailed as error:
            assert "bad.jsonl:1: message 1" in str(error) and error.run.status == "failed", error
        else:
            raise SystemExit("no error")
        """,
        tmp_path,
    )


def test_what_was_composed_is_started_and_refused_while_it_is_in_use(tmp_path, monkeypatch):
    """A new interpreter, but no training: its lock is an error of the program before it starts a rank."""
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "mine" / "experiment" / "short.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\ntrainer:\n  epochs: 7\n")
    composed = arctic_hydra.compose(["experiment=short"], config_dir="mine")
    experiment.unlink()
    directory = RunDirectory(composed.directory)
    directory.create()
    directory.lock()
    with pytest.raises(arctic_hydra.RunFailed, match="is in use by another run") as raised:
        arctic_hydra.run(composed, progress=False)
    directory.release()
    assert raised.value.run is None


def test_a_start_that_ends_before_it_begins_shows_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composed = arctic_hydra.compose(seed for seed in ["seed=3"])
    directory = RunDirectory(composed.directory)
    directory.create()
    write_error(directory.path, 0, "Kind", "of an earlier start", problems=["of an earlier start"], exit_code=1)
    directory.update_record(status="failed", error="of an earlier start")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(arctic_hydra.RunFailed, match="the process of the run ended with code 1") as raised:
        arctic_hydra.run(composed)
    assert "earlier" not in str(raised.value) and raised.value.run is None


def test_a_run_composed_for_other_gpus_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    composed = arctic_hydra.compose()
    order = {"tree": composed._tree, "arguments": [], "directory": str(composed.directory.with_name("0123456789"))}
    with pytest.raises(arctic_hydra.ConfigError, match="was composed for .*0123456789, but would now run in .*again"):
        process._run(order)


def test_the_text_of_an_interrupt_is_true(tmp_path):
    directory = RunDirectory(tmp_path / "a")
    directory.create()
    texts = {
        "finished": "is finished",
        "failed": r"is failed at step 0 \(full\); the same call starts",
        "stopped": "starts over",
    }
    for status, text in texts.items():
        directory.update_record(status=status, **({"error": "full"} if status == "failed" else {}))
        assert re.search(f"{text}( over)?$", start_run._interrupted(LoadedRun(directory.path))), status
    assert start_run._interrupted(None) == "interrupted before the run began"


@pytest.mark.parametrize("task", ["check", "chat", "preview", "report"])
def test_tasks_of_the_command_line_are_refused(task):
    with pytest.raises(
        arctic_hydra.ConfigError, match=f"task: got {task}, expected one of train, evaluate, export, sco"
    ):
        arctic_hydra.run([f"task={task}"])


def test_a_composed_run_has_its_config_already():
    with pytest.raises(TypeError, match="config_name, config_dir: have no effect on a composed run"):
        arctic_hydra.run(arctic_hydra.compose(), config_dir="x")


def test_the_error_of_a_rank(tmp_path):
    def error(code, **more):
        (tmp_path / "logs" / "error-rank1.json").unlink(missing_ok=True)
        if more:
            write_error(tmp_path, 1, "Kind", "text", **more)
        return start_run._error_of_ranks(RunDirectory(tmp_path), Ended(code, [], ["last", "lines"], False), began=True)

    logs = f"\nlogs: {tmp_path / 'logs'}"
    trace = "\n".join(f"line {number}" for number in range(100))
    long = error(1, expected=False, traceback=trace, exit_code=1)
    assert str(long) == "rank 1 failed first:\n" + "\n".join(trace.splitlines()[-12:]) + logs
    assert str(error(1, expected=True, problems=["a: got b"], exit_code=1)) == "a: got b" + logs
    refused = error(2, expected=True, problems=["a: got b", "c: got d"], exit_code=2)
    assert isinstance(refused, arctic_hydra.ConfigError) and refused.problems == ["a: got b", "c: got d"]
    assert str(error(1)) == "last\nlines" + logs
    (tmp_path / "record.json").write_text(json.dumps({"format": 1, "status": "failed", "error": "the export differs"}))
    assert str(error(1)) == "the export differs" + logs
