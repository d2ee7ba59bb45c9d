"""Runs on a real SLURM of two nodes: arrays, several machines, preemption and time limits, and every way to fail."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hydra_plugins.arctic_hydra._slurm_script import render

import arctic_hydra
from tests.command import SMALL, environment, losses, metrics, only_run, run, start, wait_for_step
from tests.launchers.slurm_defaults import ATTACKS, defaults
from tests.slurm.cluster import Cluster
from tests.sweep.sweeps import sweep_dir, trials

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]

TINY = f"{SMALL} trainer.train_iters=4 trainer.eval_at_start=false checkpoint=[deepspeed]"
SLURM = "hydra/launcher=slurm hydra.launcher.poll_seconds=0.5"


GREETER = """
from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component


@component(group="callback", name="greeter")
class Greeter(Callback):
    def on_train_start(self, trainer, facts):
        (trainer.tools.run_dir / "greeting.txt").write_text(__file__)
"""


def records(folder: Path, name: str = "default") -> list[dict]:
    """Return the records of a name's runs in the order of their jobs."""
    found = [json.loads(path.read_text()) for path in (folder / "outputs" / name).glob("*/record.json")]
    return sorted(found, key=lambda record: record["submission"]["job_id"])


def test_a_grid_is_one_array_composed_at_submission(cluster, tmp_path):
    """Editing an option's file while jobs wait changes nothing; the same command again has nothing to do.

    The jobs import the file of `code=`, whose path the script of the array holds.
    """
    code = tmp_path / "greeter.py"
    code.write_text(GREETER)
    options = tmp_path / "mine" / "experiment"
    options.mkdir(parents=True)
    mine = options / "mine.yaml"
    mine.write_text("# @package _global_\ntrainer: {max_minutes: 30}\n")
    grid = f"-m --config-dir mine experiment=mine {TINY} tracking=[] optimizer.lr=1e-3,2e-3 seed=1,2"
    grid += " code=greeter.py callback=[code:greeter]"
    process = start(
        f"{grid} {SLURM} 'hydra.launcher.additional_parameters={{begin: now+5}}'", tmp_path, **cluster.variables
    )
    while not list(tmp_path.glob("outputs/default/sweeps/*/slurm/*_submission.sh")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    mine.write_text("# @package _global_\ntrainer: {max_minutes: 0.0001}\n")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    mine.write_text("# @package _global_\ntrainer: {max_minutes: 30}\n")

    ids = [record["submission"]["job_id"] for record in records(tmp_path)]
    array = ids[0].partition("_")[0]
    assert ids == [f"{array}_{number}" for number in range(4)]
    assert all(record["status"] == "finished" and record["git"]["revision"] for record in records(tmp_path))
    assert [path.read_text() for path in tmp_path.glob("outputs/default/*/greeting.txt")] == [str(code)] * 4
    listed = cluster.command(f"sacct -X -n -P -o JobID,State,ExitCode -j {array}").split()
    assert sorted(listed) == [f"{name}|COMPLETED|0:0" for name in ids]
    assert len(re.findall(r"\): RUNNING on n", output)) == 4 and "best: job" in output

    again = run(f"{grid} {SLURM}", tmp_path, **cluster.variables)
    assert again.stdout.count("is finished already") == 4 and "submitted" not in again.stdout


def raised_in(folder: Path) -> Path:
    """Return the directory of the run that raised."""
    [found] = [path.parent for path in folder.glob("outputs/*/*/config.yaml") if "how: raise" in path.read_text()]
    return found


def kill_task(cluster: Cluster, number: int) -> None:
    """Send SIGKILL to the task of an array's job, as the kernel does when memory runs out; its ranks die with it."""
    own = {**cluster.variables, "SLURM_ARRAY_TASK_ID": str(number)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found = process.environ()
            if "hydra_plugins.arctic_hydra._slurm_start" in process.cmdline() and own.items() <= found.items():
                process.kill()


def limit(cluster: Cluster, job_id: str) -> None:
    """Set a running job's time limit to a minute or less from now: SLURM, which looks every 30 s, warns it when it looks."""
    clock = cluster.command(f"squeue -h -j {job_id} -o %M").strip().replace("-", ":").split(":")
    elapsed = sum(int(part) * 60**place for place, part in enumerate(reversed(clock)))
    cluster.command(f"scontrol update JobId={job_id} TimeLimit={(elapsed + 20) // 60 + 1}")


def wait_for_state(cluster: Cluster, job_id: str, state: str) -> None:
    """Wait until the job is in a state."""
    end = time.monotonic() + 120
    while cluster.command(f"squeue -h -j {job_id} -o %T").strip() != state:
        assert time.monotonic() < end, f"job {job_id} is not {state}"
        time.sleep(0.2)


def test_preempted_then_timed_out_on_two_nodes_equals_an_uninterrupted_run(cluster, my_lab, tmp_path):
    """ZeRO-2 over two nodes; SLURM preempts the job by SIGTERM, then warns it of its time limit by SIGUSR2, to the whole tree."""
    arguments = f"{SMALL} trainer.train_iters=100 trainer.eval_at_start=false checkpoint=[deepspeed] deepspeed=zero2"
    run(f"{arguments} name=straight ranks=2", tmp_path)
    slow = "callback=[saboteur] callback.saboteur.how=none callback.saboteur.pause_seconds=0.4"
    asked = "hydra.launcher.nodes=2 hydra.launcher.timeout_min=30 hydra.launcher.signal_delay_s=60"
    process = start(f"{arguments} {slow} {SLURM} {asked}", tmp_path, **cluster.variables, PYTHONPATH=str(my_lab))
    wait_for_step(tmp_path, 3, process)
    [job_id] = cluster.command("squeue -h -o %A").split()
    cluster.command("sbatch -p urgent --exclusive -N 2 -o /dev/null --wrap 'sleep 1'")
    wait_for_state(cluster, job_id, "PENDING")
    reached = len(metrics(only_run(tmp_path)))
    wait_for_step(tmp_path, reached + 3, process)
    limit(cluster, job_id)
    wait_for_state(cluster, job_id, "PENDING")
    cluster.command(f"scontrol update JobId={job_id} TimeLimit=30")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output

    [record] = records(tmp_path)
    log = Path(record["submission"]["logs"][-1]).read_text()
    assert record["status"] == "finished" and record["requeues"] == 2, log
    assert record["result"]["world_size"] == 2 and "RUNNING on n[1-2]" in output
    assert (log.count("received SIGTERM"), log.count("received SIGUSR2"), log.count("resumed  from step-")) == (1, 1, 2)
    assert losses(only_run(tmp_path)) == losses(only_run(tmp_path, "straight"))

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    experiments = [item.experiment_id for item in client.search_experiments()]
    name = f"default/{only_run(tmp_path).name}"  # the sweep's own run is also there
    tracked = [found for found in client.search_runs(experiments) if found.info.run_name == name]
    assert [found.info.status for found in tracked] == ["FINISHED"], "one run for all three starts"
    logged = client.get_metric_history(tracked[0].info.run_id, "loss")
    assert sorted(item.step for item in logged) == list(range(1, 101))


@pytest.mark.parametrize("accounting", [True, False])
def test_jobs_that_fail_in_every_way_leave_the_others_alone(accounting, request, my_lab, tmp_path):
    """Raised, sys.exit, cancelled, killed by SIGKILL: each is reported, the good job's result is kept, nothing hangs."""
    cluster = request.getfixturevalue("cluster" if accounting else "bare_cluster")
    ways = "none,raise,sys_exit,kill,freeze" if accounting else "none,raise,freeze"
    snapshot = "" if accounting else "hydra.launcher.snapshot=true"
    sabotage = f"callback=[saboteur] callback.saboteur.rank=0 callback.saboteur.how={ways}"
    variables = {**cluster.variables, "PYTHONPATH": str(my_lab)}
    process = start(f"-m {TINY} tracking=[] {sabotage} {SLURM} {snapshot}", tmp_path, **variables)
    frozen = len(ways.split(",")) - 1
    end = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.5)
        running = cluster.command("squeue -h -r -o %i").split()
        if len(running) == 1 and running[0].endswith(f"_{frozen}"):
            if accounting:
                cluster.command(f"scancel {running[0]}")
            else:
                kill_task(cluster, frozen)
            break
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    expected = {
        "none": ("finished", ""),
        "raise": ("failed", "sabotage"),
        "sys_exit": ("failed", "4"),
        "kill": ("failed", "was killed by signal 9"),
        # scancel wakes a frozen rank, which saves; where a job's task is killed, only SLURM can say so.
        "freeze": ("stopped", "") if accounting else ("failed", "SLURM: FAILED"),
    }
    for number, (way, record) in enumerate(zip(ways.split(","), records(tmp_path), strict=True)):
        status, words = expected[way]
        assert (record["status"], words in record.get("error", "")) == (status, True), (way, record.get("error"))
        assert re.search(rf"^ +{number}  {status}", output, re.MULTILINE), output
    assert "best: job 0" in output
    raised = json.loads((raised_in(tmp_path) / "logs" / "error-rank0.json").read_text())["traceback"]
    assert ("/slurm/snapshot-" in raised) is not accounting, "where the failing job's code was"
    table = next(tmp_path.glob("outputs/default/sweeps/*/sweep.csv")).read_text().splitlines()
    assert len(table) == 1 + len(ways.split(","))


def test_a_detached_sweep_of_the_python_api_is_looked_after_by_the_sweep_command(cluster, tmp_path, monkeypatch, capfd):
    variables = cluster.variables
    later = "hydra.launcher.detach=true 'hydra.launcher.additional_parameters={begin: now+1hour}'"
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    submitted = arctic_hydra.sweep(shlex.split(f"{TINY} {SLURM} {later} seed=1,2"))
    said = capfd.readouterr().out
    assert "job 1 submitted as" in said and "python -m arctic_hydra.sweep status" in said
    assert list(submitted.table["status"]) == ["queued"] * 2 and list(submitted.table["seed"]) == [1, 2]
    [sweep] = (tmp_path / "outputs" / "default" / "sweeps").iterdir()

    def look_after(command: str) -> str:
        line = f"{sys.executable} -m arctic_hydra.sweep {command.replace('SWEEP', str(sweep))}"
        found = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment(**variables), capture_output=True, text=True
        )
        assert "Traceback" not in found.stderr, found.stderr
        return found.stdout

    def table(output: str) -> list[str]:
        return re.findall(r"^ +\d  (\w+)", output, re.MULTILINE)

    assert table(look_after("status SWEEP")) == ["queued", "queued"]
    again = run(f"-m {TINY} {SLURM} {later} seed=1,2", tmp_path, **variables)
    assert again.stdout.count("is in the queue already, as") == 2
    look_after("cancel SWEEP --job 0")
    output = look_after("status SWEEP")
    assert table(output) == ["stopped", "queued"] and "cancelled before it started" in output  # SLURM forgets it
    assert "job 0 submitted as" in look_after("retry SWEEP --job 0")
    assert table(look_after("status SWEEP")) == ["queued", "queued"]
    look_after("cancel SWEEP")
    assert not cluster.command("squeue -h")
    assert table(look_after("status SWEEP")) == ["stopped", "stopped"]


def test_a_search_runs_in_arrays_and_its_secrets_reach_the_jobs_alone(cluster, my_lab, tmp_path):
    """Two batches of two trials; the password is in no file, as a hash it is in each run's own."""
    search = (
        f"-m {TINY} tracking=[] callback=[courier] callback.courier.password=hunter2 {SLURM} hydra/sweeper=optuna "
        "hydra.sweeper.n_trials=4 hydra.sweeper.n_jobs=2 'optimizer.lr=interval(1e-4,1e-2)'"
    )
    variables = {**cluster.variables, "PYTHONPATH": str(my_lab)}
    run(search, tmp_path, **variables)
    found = records(tmp_path)
    assert [record["status"] for record in found] == ["finished"] * 4
    assert len({record["submission"]["job_id"].partition("_")[0] for record in found}) == 2
    digests = [path.read_text() for path in tmp_path.glob("outputs/default/*/courier.txt")]
    assert digests == [hashlib.sha256(b"hunter2").hexdigest()] * 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]

    again = run(search, tmp_path, **variables)
    assert "submitted" not in again.stdout and "best: " in again.stdout
    [head] = [line.split() for line in again.stdout.splitlines() if line.startswith("job  status")]
    assert head[5:] == ["lr", "directory"]
    assert "hydra/launcher=slurm" in again.stdout and "hydra/sweeper" not in again.stdout


def test_a_search_is_interrupted_taken_up_again_and_cancelled(cluster, tmp_path):
    """Ctrl-C leaves the job and its trial alone; the same command waits for them; `sweep cancel` ends both job and search."""
    search = (
        f"-m {SMALL} trainer.train_iters=3000 checkpoint=[deepspeed] tracking=[] {SLURM} hydra/sweeper=optuna "
        "hydra.sweeper.n_trials=3 hydra.sweeper.n_jobs=1 'optimizer.lr=interval(1e-4,1e-2)'"
    )
    process = start(search, tmp_path, **cluster.variables)
    wait_for_step(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.count(" submitted as ")) == (75, 1), output
    [job_id] = cluster.command("squeue -h -o %i").split()
    assert [trial.state.name for trial in trials(tmp_path)] == ["RUNNING"]

    process = start(search, tmp_path, **cluster.variables)
    assert process.stdout is not None
    first_lines = list(itertools.takewhile(lambda line: "RUNNING on" not in line, process.stdout))
    run(f"cancel {sweep_dir(tmp_path)}", tmp_path, module="arctic_hydra.sweep", **cluster.variables)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output.count(" submitted as ")) == (75, 0), output
    assert f"job 0 is in the queue already, as {job_id}\n" in first_lines
    assert "the sweep was stopped (cancelled)" in output
    assert [record["status"] for record in records(tmp_path)] == ["stopped"]
    assert [trial.state.name for trial in trials(tmp_path)] == ["RUNNING"]
    assert not cluster.command("squeue -h")


def test_arrays_of_a_killed_start_are_not_submitted_twice(cluster, tmp_path):
    """SIGKILL between two arrays; a submission that was not recorded is found through the script of the queued job."""
    later = "hydra.launcher.detach=true 'hydra.launcher.additional_parameters={begin: now+1hour}'"
    grid = f"-m {TINY} tracking=[] {SLURM} {later} hydra.launcher.max_array_size=2 seed=1,2,3,4,5,6"
    process = start(grid, tmp_path, **cluster.variables)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("job 3 submitted"):
            process.kill()
            break
    process.communicate()
    sweep = sweep_dir(tmp_path)
    known = json.loads((sweep / "sweep.json").read_text())
    for job in known["jobs"][2:]:  # as if the answer for the second array had been lost
        job["submission"] = None
        (Path(job["run_dir"]) / "record.json").unlink(missing_ok=True)
    (sweep / "sweep.json").write_text(json.dumps(known))
    done = run(grid, tmp_path, **cluster.variables)
    assert done.stdout.count("is in the queue already, as") == 2
    assert "submitted by a killed process of this sweep without being recorded: cancelled" in done.stdout
    assert len(cluster.command("squeue -h -r -o %i").split()) == 6
    cluster.command("scancel --me")


def test_an_unknown_partition_is_said_in_sbatch_s_words(cluster, tmp_path):
    refused = run(f"{TINY} {SLURM} hydra.launcher.partition=nope", tmp_path, code=1, **cluster.variables)
    assert "hydra.launcher: sbatch refused: invalid partition specified: nope" in refused.stderr
    assert "Traceback" not in refused.stderr + refused.stdout
    folder = run(f"{TINY} {SLURM} hydra.launcher.folder=/dev/null/here", tmp_path, code=2, **cluster.variables)
    assert "hydra.launcher.folder: cannot write to /dev/null/here (Not a directory)" in folder.stderr


def test_values_reach_slurm_as_they_are(bare_cluster, tmp_path):
    """Quotes and backslashes as sbatch itself reads them; nothing adds an option or runs."""
    texts = [text for text in ATTACKS if text.isascii() and len(text) <= 1000]
    for number, text in enumerate(texts):
        later = {"begin": "now+1hour"}
        script = tmp_path / f"{number}.sh"
        options = defaults(name=text, comment=text, folder=str(tmp_path), additional_parameters=later)
        script.write_text(render(options, 1, python="python"))
        bare_cluster.command(f"cd {tmp_path} && sbatch {script}")
    listed = bare_cluster.command("squeue -h -S i -o '%j|%k'").splitlines()
    assert listed == [f"{text}|{text}" for text in texts]
    assert not list(tmp_path.rglob("canary"))
    bare_cluster.command("scancel --me")
