"""Whole sweeps on this machine, from the command line to the results: failures, kills, and equality with single runs."""

from __future__ import annotations

import json
import shlex
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.command import SMALLEST, losses, metrics, only_run, run, start
from tests.sweep.sweeps import POOL, QUICK, chats, look, sweep_dir, table


def test_failures_are_shown_beside_results_and_retried(tmp_path):
    """A good and two bad jobs; MLflow on. Then the same again, the watching commands, and a retry of repaired data."""
    chats(tmp_path / "good.jsonl", 30)
    (tmp_path / "bad.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}]}\n'
    )
    (tmp_path / "worse.jsonl").write_text("{\n")
    paths = "data.sources.json.path=good.jsonl,bad.jsonl,worse.jsonl"
    arguments = f"{POOL} {SMALLEST} data=json {paths} trainer.train_iters=2 checkpoint=[]"
    done = run(arguments, tmp_path, code=1)
    assert "Traceback" not in done.stdout + done.stderr
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["finished", "failed", "failed"]
    assert [row["data.sources.json.path"] for row in rows] == ["good.jsonl", "bad.jsonl", "worse.jsonl"]
    assert "bad.jsonl:1: message 1" in rows[1]["failure"] and "worse.jsonl:1" in rows[2]["failure"]
    assert "job 1 failed: " in done.stdout and "best: job 0, loss" in done.stdout
    page = (sweep_dir(tmp_path) / "sweep.html").read_text()
    assert page.count("<svg") >= 2 and "bad.jsonl:1: message 1" in page
    _check_mlflow(tmp_path, rows)

    again = run(arguments, tmp_path, code=1)
    assert "job 0 finished already, loss" in again.stdout
    assert "job 1 failed" in again.stdout

    status = look("status", tmp_path, code=1)
    assert "no process runs it now" in status.stdout and "job 2 failed: " in status.stdout
    assert "job 0 " not in look("logs", tmp_path).stdout
    assert "step 2/2" in look("logs --job 0 --lines 99", tmp_path).stdout
    assert len(look("logs --job 0 --lines 0", tmp_path).stdout.splitlines()) == 1
    assert "no job is waiting or running" in look("cancel", tmp_path).stdout
    chats(tmp_path / "bad.jsonl", 20)
    chats(tmp_path / "worse.jsonl", 10)
    assert "best: job" in look("retry", tmp_path).stdout
    assert [row["status"] for row in table(tmp_path)] == ["finished"] * 3
    assert run(arguments, tmp_path).stdout.count("finished already") == 3  # on the data as it is now

    [command] = [line for line in done.stdout.splitlines() if line.startswith("  python -m arctic_hydra")]
    repeated = run(shlex.join(shlex.split(command)[3:]), tmp_path)
    assert "finished already" in repeated.stdout


def _check_mlflow(folder, rows):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
    runs = {
        item.info.run_name: item
        for item in client.search_runs([item.experiment_id for item in client.search_experiments()])
    }
    [parent] = [item for name, item in runs.items() if name.startswith("default/sweep-")]
    [child] = [item for item in runs.values() if item.data.tags["arctic_hydra.run_dir"] == rows[0]["directory"]]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == "FAILED"
    assert parent.data.metrics["objective"] == pytest.approx(float(rows[0]["objective"]))


def wait_for(condition, process, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def steps(folder):
    """Return how many steps each run of the folder has logged, by directory name."""
    return {path.parent.name: len(losses(path.parent)) for path in folder.glob("outputs/default/*/metrics.jsonl")}


@pytest.mark.slow
def test_killed_and_stopped_half_way_then_the_same_command_does_the_missing_work(tmp_path):
    """SIGKILL of the sweep once a job is finished; SIGTERM of the next start; then to the end. No finished job runs twice."""
    data = "data.sources.chat.sample_count=200 trainer.epochs=40 checkpoint.deepspeed.save_every_n_steps=5 checkpoint=[deepspeed]"
    arguments = f"{POOL} {QUICK} {data} trainer.train_iters=3,400 optimizer.lr=1e-3,2e-3"
    process = start(arguments, tmp_path)
    wait_for(lambda: len(steps(tmp_path)) >= 3 and max(steps(tmp_path).values()) > 12, process)
    process.kill()
    process.communicate()
    records = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("outputs/default/*/record.json")
    }
    finished = {name for name, record in records.items() if record["status"] == "finished"}
    assert finished
    before = {name: (tmp_path / "outputs/default" / name / "record.json").stat().st_mtime_ns for name in finished}

    process = start(arguments, tmp_path)
    long = max(steps(tmp_path), key=lambda name: steps(tmp_path)[name])
    wait_for(lambda: "resumed" in (tmp_path / f"outputs/default/{long}/logs/terminal.log").read_text(), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert output.count("finished already") == len(finished)
    assert "the sweep was stopped (received SIGTERM); the same command resumes it" in output
    assert "stopped" in look("status", tmp_path, code=75).stdout

    shorter = f"{arguments} trainer.max_minutes=0.001"  # not part of what a run is
    last = run(shorter, tmp_path, code=75)
    assert last.stdout.count("finished already") >= len(finished)
    assert {row["status"] for row in table(tmp_path)} == {"finished", "stopped"}
    for name, written in before.items():
        assert (tmp_path / "outputs/default" / name / "record.json").stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model directory of the Hugging Face kind."""
    folder = tmp_path_factory.mktemp("model")
    run(f"{QUICK} trainer.train_iters=1 checkpoint=[hf]", folder)
    return only_run(folder) / "export"


@pytest.mark.slow
def test_each_job_of_a_sweep_equals_the_same_job_run_alone(model, tmp_path):
    """Liger (on torch's kernels here) and plain, bf16 and fp32, whole and LoRA, side by side in one sweep: nothing leaks between them."""
    fixed = (
        f"model.name_or_path={model} data=chat data.num_proc=1 data.max_length=256 data.sources.chat.sample_count=40 "
        "data.eval_sources.chat.sample_count=20 tracking=[] trainer.train_iters=3 trainer.eval_at_start=false checkpoint=[hf]"
    )
    option = tmp_path / "mine" / "model" / "fallback.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("defaults: [liger, _self_]\nfallback: true\n")
    fixed += f" --config-dir {tmp_path / 'mine'}"
    for name in ("swept", "alone"):
        (tmp_path / name).mkdir()
    # Half of the eight, each value with each other one; all eight were compared when this was written.
    kinds = [("hf", "bf16", "lora"), ("hf", "fp32", "none"), ("fallback", "bf16", "none"), ("fallback", "fp32", "lora")]
    run(f"{POOL} model=hf,fallback model.dtype=bf16,fp32 peft=none,lora {fixed}", tmp_path / "swept")
    assert [row["status"] for row in table(tmp_path / "swept")] == ["finished"] * 8
    with ThreadPoolExecutor(2) as pool:
        commands = [f"model={kind} model.dtype={dtype} peft={peft} {fixed}" for kind, dtype, peft in kinds]
        list(pool.map(lambda command: run(command, tmp_path / "alone"), commands))
    runs = sorted(path.parent.name for path in (tmp_path / "alone").glob("outputs/default/*/run.json"))
    assert len(runs) == 4
    for name in runs:
        swept, alone = (tmp_path / side / "outputs" / "default" / name for side in ("swept", "alone"))
        assert losses(swept) == losses(alone)
        assert metrics(swept)[-1]["eval/loss"] == metrics(alone)[-1]["eval/loss"]
        [weights] = (swept / "export").glob("*.safetensors")
        assert weights.read_bytes() == (alone / "export" / weights.name).read_bytes()
