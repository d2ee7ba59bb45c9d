"""One run from its checks to the exit code: refusals, stops, interrupts and fresh starts."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time

import psutil
import pytest

from arctic_hydra import config
from arctic_hydra.__main__ import main
from arctic_hydra.api.loaded_run import load_run
from arctic_hydra.cli import run as cli_run
from arctic_hydra.launch.job import Job
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.stopping import SIGNALS
from tests.command import SMALL, losses, metrics, only_run, run, start, wait_for_rank, wait_for_step
from tests.composing import composed


def test_exit_iteration_and_kill_switch_stop_with_a_checkpoint(tmp_path):
    arguments = f"{SMALL} trainer.train_iters=8 tracking=[]"
    done = run(f"{arguments} trainer.exit_iteration=3", tmp_path, code=75)
    assert "stopped at step 3 of 8: reached trainer.exit_iteration=3" in done.stdout
    run_dir = only_run(tmp_path)
    assert done.stdout.startswith(f"run      {run_dir}\n") and done.stdout.count(str(run_dir)) == 1
    names = [line.split()[0] for line in done.stdout.splitlines()]
    phases = ["read", "pack", "weights", "engine", "evaluation", "step", "save", "train"]
    assert [name for name in dict.fromkeys(names) if name in phases] == phases
    said = (run_dir / "logs" / "rank0.log").read_text()
    assert f"run      {run_dir}" in said and "step 3/8  loss " in said and "evaluation at step 0: loss" in said
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*")] == ["step-00000003"]
    (run_dir / "STOP").touch()
    done = run(arguments, tmp_path, code=75)
    assert "found the kill switch" in done.stdout
    assert not (run_dir / "STOP").exists()
    (run_dir / "record.json").write_text('{"status": "sto')
    done = run(arguments, tmp_path)
    assert "record.json: not JSON (" in done.stderr and "the run continues without it" in done.stderr
    assert len(losses(run_dir)) == 8
    assert (done.stdout + done.stderr).count("resumed") == 1
    assert json.loads((run_dir / "record.json").read_text())["status"] == "finished"


def test_a_second_process_in_the_same_directory_is_refused(tmp_path):
    arguments = f"{SMALL} trainer.train_iters=500 tracking=[]"
    process = start(arguments, tmp_path)
    wait_for_step(tmp_path, 1, process)
    done = run(arguments, tmp_path, code=1)
    assert f"is in use by another run (process {process.pid}" in done.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 75


def test_bad_rows_are_reported_without_a_traceback(tmp_path):
    """One whole run for the path of a data error; the table of them is in tests/data."""
    (tmp_path / "roles.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}]}\n'
    )
    done = run("data=json data.sources.json.path=roles.jsonl", tmp_path, code=1)
    assert "roles.jsonl:1: message 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((only_run(tmp_path) / "record.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("data=json data.sources.json.path=absent.jsonl", "data.sources.json.path"),
        ("data=ultrachat data.sources.ultrachat.path=./absent", "data.sources.ultrachat.path"),
        ("model=hf model.name_or_path=./absent", "model.name_or_path: got"),
        ("model=hf model.name_or_path=./emptydir", "contains no config.json"),
        ("model=hf model.name_or_path=./notokenizer", "tokenizer.name_or_path"),
        ("output_root=/proc/nowhere", "output_root: cannot write to /proc/nowhere"),
    ],
)
def test_missing_files_are_reported_before_anything_is_written(arguments, text, tmp_path):
    (tmp_path / "emptydir").mkdir()
    (tmp_path / "notokenizer").mkdir()
    (tmp_path / "notokenizer" / "config.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    done = run(arguments, tmp_path, code=2)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_exit_iteration_again_does_nothing_more(tmp_path):
    arguments = f"{SMALL} trainer.train_iters=6 trainer.exit_iteration=2 tracking=[]"
    for _ in range(2):
        done = run(arguments, tmp_path, code=75)
        assert len(losses(only_run(tmp_path))) == 2
        assert "stops at this step again: pass a larger trainer.exit_iteration, or none, to resume" in done.stdout
        assert "the same command resumes" not in done.stdout, "it would stop again at once"


def test_the_same_command_goes_on_for_as_many_steps_of_each_start(tmp_path):
    arguments = f"{SMALL} trainer.train_iters=5 trainer.exit_iteration_this_run=2 log.interval=0 tracking=[]"
    for steps in (2, 4):
        done = run(arguments, tmp_path, code=75)
        assert f"stopped at step {steps} of 5: did trainer.exit_iteration_this_run=2 steps" in done.stdout
        assert "the same command resumes\n" in done.stdout
    run(arguments, tmp_path)
    rows = [row for row in metrics(only_run(tmp_path)) if "loss" in row]
    assert [row["step"] for row in rows] == [5], "log.interval=0: one line at the end"
    plain = run(f"{arguments} name=plain trainer.exit_iteration_this_run=0 log.interval=1", tmp_path)
    assert plain.returncode == 0
    logged = [row for row in metrics(only_run(tmp_path, "plain")) if "loss" in row]
    tokens = [b - a for a, b in itertools.pairwise([0, *(row["supervised_tokens"] for row in logged)])]
    mean = sum(row["loss"] * count for row, count in zip(logged, tokens, strict=True)) / sum(tokens)
    assert rows[0]["loss"] == pytest.approx(mean, rel=1e-5), "of the whole run, through every stop"


def test_fresh_clears_an_output_dir_elsewhere_and_runs_that_share_it_stay_apart(tmp_path):
    arguments = f"{SMALL} trainer.train_iters=6 tracking=[] checkpoint.deepspeed.output_dir=shared"
    run(f"{arguments} trainer.exit_iteration=2", tmp_path, code=75)
    run(f"{arguments} trainer.exit_iteration=1 fresh=true", tmp_path, code=75)
    assert [path.name for path in (tmp_path / "shared").glob("default/*/checkpoints/step-*")] == ["step-00000001"]
    run(f"{arguments} seed=1 trainer.exit_iteration=1", tmp_path, code=75)
    assert len(list((tmp_path / "shared").glob("default/*"))) == 2


def test_one_interrupt_of_two_ranks_saves_a_checkpoint(tmp_path):
    process = start(f"{SMALL} trainer.train_iters=5000 ranks=2 tracking=[] trainer.eval_at_start=false", tmp_path)
    wait_for_step(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "SIGINT: stopping at the next step; interrupt again to end at once" in output
    assert "the same command resumes" in output
    assert list((only_run(tmp_path) / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_frozen_rank_and_a_storm_of_signals_end_resumable(tmp_path):
    """SIGTERM wakes a frozen rank, so that it saves; 28 signals of all kinds, up to the exit, still end with 75."""
    arguments = f"{SMALL} trainer.train_iters=5000 ranks=2 tracking=[] trainer.eval_at_start=false"
    process = start(arguments, tmp_path)
    wait_for_step(tmp_path, 2, process)
    frozen = psutil.Process(process.pid).children(recursive=True)[-1]
    assert "arctic_hydra.worker" in frozen.cmdline()
    frozen.suspend()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "save     step-" in output, output

    process = start(arguments, tmp_path)
    wait_for_step(tmp_path, 5, process)
    for _ in range(7):
        for number in SIGNALS:
            process.send_signal(number)
            time.sleep(0.02)
    while process.poll() is None:
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.01)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert json.loads((only_run(tmp_path) / "record.json").read_text())["status"] == "stopped"


def test_a_frozen_rank_that_cannot_be_woken_ends_with_the_second_sigterm(tmp_path):
    process = start(f"{SMALL} trainer.train_iters=5000 tracking=[]", tmp_path)
    rank = wait_for_rank(process)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    os.kill(rank, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert "ended at once; the same command" in output


def test_a_second_interrupt_during_start_up_ends_at_once(tmp_path):
    process = start(f"{SMALL} trainer.train_iters=5000 tracking=[]", tmp_path)
    wait_for_rank(process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert "the same command" in output


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """The directory of the default run, as if it were finished."""
    monkeypatch.chdir(tmp_path)
    directory = Job.of(composed(), []).directory
    directory.create()
    directory.path.parent.chmod(0o755)
    directory.write_result({"status": "finished", "step": 3, "objective": 1.5})
    directory.update_record(status="finished", result=directory.result())
    return directory.path


def test_a_finished_run_whose_record_is_damaged_stays_finished(run_dir, capsys):
    (run_dir / "record.json").write_bytes(b"\x80\x04")
    for warned in (True, False):
        assert main(["tracking=[]"]) == 0
        said = capsys.readouterr()
        assert "finished already: " in said.out and "(step 3, loss 1.5000)" in said.out
        assert ("record.json: not JSON" in said.err) == warned


def test_a_finished_run_is_extended_only_from_a_checkpoint(run_dir, capsys):
    assert main(["tracking=[]"]) == 0
    assert (
        "it has no checkpoint: pass a larger trainer.epochs to train longer from the start" in capsys.readouterr().out
    )
    (run_dir / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert main(["tracking=[]"]) == 0
    assert f"pass extend=outputs/default/{run_dir.name} and a larger trainer.epochs" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["evaluate", "export"])
def test_a_task_is_recorded_as_running_and_has_nothing_to_save(task, run_dir, monkeypatch):
    directory = RunDirectory(run_dir).of_task(task)

    def start_ranks(started, *arguments, **more):
        assert (started.path, more) == (directory.path, {"saves": False})
        assert (load_run(directory.path).status, load_run(directory.path).result) == ("running", {})
        directory.update_record(started=time.time() - 7)
        directory.write_result({"status": "finished", "checkpoint": "c", "step": 3})
        return 0

    directory.create()
    directory.update_record(status="finished", result={"status": "finished"}, seconds=1.0)
    (run_dir / "checkpoints" / "step-00000003").mkdir(parents=True)
    monkeypatch.setattr(cli_run, "start_ranks", start_ranks)
    assert main([f"task={task}"]) == 0
    assert directory.record()["status"] == "finished" and 7 <= directory.record()["seconds"] < 60


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def wrong_kind(name):
    def change(path):
        (path / name).unlink(missing_ok=True)
        (path / name).touch() if "." not in name else (path / name).mkdir()

    return change


REFUSED = [
    (
        link,
        "output_root: {} is a symbolic link to elsewhere; use a directory itself, or a link further up, or pass output_root=",
    ),
    (
        lambda path: path.chmod(0o777),
        "output_root: {} is not private: every user may write to it (mode 0777); check its content",
    ),
    (
        lambda path: os.chown(path, 12345, -1),
        "output_root: {} belongs to another user (uid 12345); use a directory of your own",
    ),
    (wrong_kind("logs"), "{}/logs: is a file, expected a directory; move it away and try again"),
    (wrong_kind("checkpoints"), "{}/checkpoints: is a file, expected a directory"),
    (wrong_kind("metrics.jsonl"), "{}/metrics.jsonl: is a directory, expected a file"),
    (wrong_kind("record.json"), "{}/record.json: is a directory, expected a file"),
    (wrong_kind(".lock"), "{}/.lock: is a directory, expected a file"),
    (lambda path: (path / ".lock").symlink_to(path / "run.json"), "{}/.lock: is a symbolic link to "),
    (lambda path: (path / ".lock").write_text("mine"), "{}/.lock: is the file of another program, expected a lock"),
]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("attack", "message"), REFUSED)
def test_a_run_directory_that_cannot_be_trusted_is_one_error_and_stays_as_it_is(
    attack, message, run_dir, tmp_path, capsys
):
    attack(run_dir)
    before = sorted(tmp_path.rglob("*"))
    for arguments in ([], ["fresh=true"]) if message.startswith("output_root") else ([],):
        assert main([*arguments, "tracking=[]"]) in (1, 2)
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith(f"error: {message.format(run_dir)}") and said.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
    if attack is link:
        assert main(["-m", "tracking=[]"]) == 1
        assert message.format(run_dir) in capsys.readouterr().out
        assert sorted(path for path in tmp_path.rglob("*") if "sweeps" not in path.parts) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_an_output_dir_that_is_a_link_is_not_emptied_by_fresh(run_dir, tmp_path, capsys):
    victim = tmp_path / "victim"
    (victim / "data").mkdir(parents=True)
    folder = tmp_path / "shared" / "default" / run_dir.name
    folder.parent.mkdir(parents=True)
    folder.symlink_to(victim)
    assert main(["checkpoint.deepspeed.output_dir=shared", "fresh=true"]) == 2
    assert "checkpoint.deepspeed.output_dir: " in (said := capsys.readouterr().err) and "is a symbolic link to" in said
    assert (victim / "data").is_dir() and (run_dir / "result.json").exists()


def test_tasks_that_use_one_machine_ask_nothing_of_the_others(run_dir, monkeypatch, capsys):
    assert main(["task=export", "nnodes=2", "node_rank=1", "rendezvous=localhost:1"]) == 0
    monkeypatch.setattr(config.Run, "environment_problems", lambda run: ["model: needs a GPU"])
    assert main(["task=report"]) == 0 and main(["task=preview"]) == 2
    assert "node 1 of 2 has nothing to do: the command on node 0 writes the export" in capsys.readouterr().out


def test_a_damaged_file_is_one_error_of_the_report(run_dir, capsys):
    assert main(["task=report"]) == 0
    for name, message in (
        ("metrics.jsonl", "metrics.jsonl:1: not a line of metrics; delete the damaged lines"),
        ("run.json", "run.json: not JSON ("),
    ):
        (run_dir / name).write_bytes(b"\x80\x04\n")
        assert main(["task=report"]) == 1
        assert message in capsys.readouterr().err
        (run_dir / name).unlink()


def test_attacks_on_the_real_command(run_dir, tmp_path):
    """A sample of the tables above in a new interpreter."""
    (run_dir / "logs").touch()
    done = run("", tmp_path, code=2, fresh=True)
    assert done.stderr == f"error: {run_dir}/logs: is a file, expected a directory; move it away and try again\n"
