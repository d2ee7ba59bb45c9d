"""The MLflow tracker with a real SQLite store, and with a server that does not respond."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from arctic_hydra.cli.composition.schemas import store_schemas
from arctic_hydra.instantiate import create
from arctic_hydra.tracking.mlflow import STATE_FILE, MLflowTracker, flat_params, metric_key

store_schemas()  # as arctic_hydra composes
CONF = Path(__file__).parents[2] / "conf"
CONFIG = {
    "seed": 42,
    "optimizer": {"lr": 1e-5, "betas": [0.9, 0.95]},
    "data": {"sources": {"a b": {"path": "x" * 7000}}},
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "outputs" / "default" / "0123abcd"
    path.mkdir(parents=True)
    return path


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def write_steps(run_dir: Path, steps: range) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 1 / step, "mfu": None, "eval/a@b": 0.5}) + "\n")


def log_steps(tracker: MLflowTracker, run_dir: Path, steps: range) -> float:
    """Write and log each step as the trainer does; return the longest `log` in seconds."""
    longest = 0.0
    for step in steps:
        write_steps(run_dir, range(step, step + 1))
        start = time.perf_counter()
        tracker.log(step, {"loss": 1 / step, "eval/a@b": 0.5})
        longest = max(longest, time.perf_counter() - start)
    return longest


def store(run_dir: Path) -> tuple[Any, Any]:
    """Return a client of the run's SQLite store, and the only run in it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir.parents[1] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("arctic_hydra")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def steps_of(client: Any, run: Any, key: str = "loss") -> list[int]:
    return [metric.step for metric in client.get_metric_history(run.info.run_id, key)]


def test_params_metrics_and_config_arrive(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run_dir / "record.json").write_text(json.dumps({"git": {"revision": "4b825dc6", "dirty": False}}))
    (run_dir.parents[1] / "mlflow.db.part").write_bytes(b"left by a process that was killed while it created the store")
    tracker = MLflowTracker()
    tracker.start(run_dir, "default/0123abcd", CONFIG)
    log_steps(tracker, run_dir, range(1, 6))
    wait_for_state(run_dir)
    tracker.finish("finished")
    client, run = store(run_dir)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "default/0123abcd"
    assert run.data.params["optimizer.lr"] == "1e-05"
    assert run.data.params["optimizer.betas"] == "[0.9, 0.95]"
    assert len(run.data.params["data.sources.a b.path"]) == 6000
    assert run.data.tags["arctic_hydra.run_dir"] == str(run_dir)
    assert run.data.tags["mlflow.source.name"] == "arctic_hydra"
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["mlflow.source.git.commit"] == "4b825dc6"
    assert run.data.tags["mlflow.user"] == run.info.user_id != "unknown"
    assert steps_of(client, run) == [1, 2, 3, 4, 5]
    assert steps_of(client, run, "eval/a_b") == [1, 2, 3, 4, 5]
    assert "mfu" not in run.data.metrics
    (artifact,) = (run_dir.parents[1] / "mlartifacts").glob("*/artifacts/config.yaml")
    assert "lr: 1.0e-05" in artifact.read_text()
    assert json.loads((run_dir / STATE_FILE).read_text())["last_step"] == 5
    assert capfd.readouterr() == ("", "")


def wait_for_state(run_dir: Path) -> None:
    """Wait until the store is created: a slow machine may take longer for that than `finish` waits."""
    deadline = time.monotonic() + 60
    while not (run_dir / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_resume_continues_the_run_and_sends_no_step_twice(run_dir: Path) -> None:
    first = MLflowTracker()
    first.start(run_dir, "r", CONFIG)
    log_steps(first, run_dir, range(1, 8))
    wait_for_state(run_dir)
    first.finish("stopped")
    assert store(run_dir)[1].info.status == "KILLED"
    # A kill right after step 7: resuming truncates the file to step 5, and the state file is older still.
    (run_dir / "metrics.jsonl").unlink()
    write_steps(run_dir, range(1, 6))
    state = json.loads((run_dir / STATE_FILE).read_text())
    (run_dir / STATE_FILE).write_text(json.dumps(state | {"last_step": 2}))
    second = MLflowTracker()
    second.start(run_dir, "r", CONFIG | {"seed": 43})
    log_steps(second, run_dir, range(6, 11))
    second.log(10, {"eval/loss": 1.5})  # an evaluation, logged after its step
    second.finish("finished")
    client, run = store(run_dir)
    assert run.info.run_id == state["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "42"
    assert steps_of(client, run) == list(range(1, 11))
    assert steps_of(client, run, "eval/loss") == [10]


def test_catching_up_sends_missing_steps_once(run_dir, monkeypatch, caplog) -> None:
    write_steps(run_dir, range(1, 6))
    MLflowTracker(uri="http://127.0.0.1:9").catch_up(run_dir, "r", CONFIG, "finished")
    assert "tracking.mlflow (http://127.0.0.1:9)" in caplog.text and "the same command is run again" in caplog.text
    MLflowTracker().catch_up(run_dir, "r", CONFIG, "finished")
    client, run = store(run_dir)
    assert (run.info.status, steps_of(client, run)) == ("FINISHED", [1, 2, 3, 4, 5])
    caplog.clear()
    monkeypatch.setattr("arctic_hydra.tracking.mlflow.import_client", lambda: 1 / 0)
    MLflowTracker().catch_up(run_dir, "r", CONFIG, "finished")
    assert not caplog.records, "nothing was missing, so the store is not contacted"


def test_a_run_whose_ranks_have_exited_is_ended_by_catching_up(run_dir: Path) -> None:
    MLflowTracker().catch_up(run_dir, "r", CONFIG, "failed")
    assert not (run_dir / STATE_FILE).exists(), "a run that failed before it reached the store is not created there"
    tracker = MLflowTracker()
    tracker.start(run_dir, "r", CONFIG)
    wait_for_state(run_dir)
    assert store(run_dir)[1].info.status == "RUNNING"
    MLflowTracker().catch_up(run_dir, "r", CONFIG, "failed")
    assert store(run_dir)[1].info.status == "FAILED"
    tracker.finish("failed")


@pytest.fixture
def silent_server() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.faults
@pytest.mark.parametrize("server", ["refuses", "silent"])
def test_a_dead_server_does_not_slow_steps_down_and_no_step_is_lost(
    server: str, silent_server: str, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = "http://127.0.0.1:9" if server == "refuses" else silent_server.replace("://", "://user:hunter2@")
    tracker = MLflowTracker(uri=uri)
    with caplog.at_level(logging.WARNING, logger="arctic_hydra.tracking"):
        start = time.perf_counter()
        tracker.start(run_dir, "r", CONFIG)
        assert log_steps(tracker, run_dir, range(1, 2001)) < 0.5  # more than the queue holds; waiting once takes longer
        tracker.finish("finished")
        seconds = time.perf_counter() - start
    assert seconds < 10
    (record,) = caplog.records
    assert record.name == "arctic_hydra.tracking"
    assert "tracking.mlflow (http://127.0.0.1:" in record.getMessage()
    assert "metrics.jsonl records every step" in record.getMessage()
    assert "hunter2" not in record.getMessage()

    later = MLflowTracker()
    later.start(run_dir, "r", CONFIG)
    wait_for_state(run_dir)
    later.finish("finished")
    client, run = store(run_dir)
    assert steps_of(client, run) == list(range(1, 2001))
    assert json.loads((run_dir / STATE_FILE).read_text())["last_step"] == 2000


COLD_START = """
import sys, time
from pathlib import Path
from arctic_hydra.tracking.mlflow import MLflowRun
from arctic_hydra.tracking.sender import Point
run = MLflowRun(sys.argv[1], "arctic_hydra", Path(sys.argv[2]), "r", {"seed": 1})
run.open()
run.send([Point(1, {"loss": 2.0}, time.time())])
run.close("finished")
"""


@pytest.mark.slow
def test_six_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folders = [tmp_path / "name" / str(index) for index in range(6)]
    for folder in folders:
        folder.mkdir(parents=True)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COLD_START, uri, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for folder in folders
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert outputs == [""] * 6
    assert not (tmp_path / "mlflow.db.part").exists()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("arctic_hydra").experiment_id])
    assert [run.data.metrics for run in runs] == [{"loss": 2.0}] * 6


def test_importing_the_option_imports_no_mlflow() -> None:
    code = (
        "import sys, arctic_hydra.tracking; sys.exit(any(m in sys.modules for m in ('mlflow', 'torch', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("uri", ["mlruns", "", "/tmp/mlruns", "file:///tmp/mlruns", "evil://host", "://x"])
def test_a_uri_that_is_not_a_url_is_rejected(uri: str) -> None:
    with pytest.raises(ValueError, match=r"uri: got '.*', expected a URL such as sqlite:///"):
        MLflowTracker(uri=uri)


def test_keys_and_params_are_made_valid() -> None:
    assert metric_key("eval/ultra|chat@2/../loss") == "eval/loss"
    assert metric_key("/a//b\u00e9") == "a/b_"
    assert flat_params({"a": {}, "b": {"c": None, "uri": "http://me:pw@host/x"}}) == {
        "a": "{}",
        "b.c": "None",
        "b.uri": "http://host/x",
    }


def test_the_uri_defaults_to_the_environment_variable_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    with initialize_config_dir(str(CONF / "tracking"), version_base="1.3"):
        cfg = compose("mlflow")
    assert cfg.tracking.mlflow.uri == "http://127.0.0.1:5000"


def test_the_option_builds(tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF / "tracking"), version_base="1.3"):
        cfg = compose("mlflow", ["tracking.mlflow.experiment=mine"])
    assert create(OmegaConf.to_container(cfg.tracking.mlflow, resolve=True)).experiment == "mine"
