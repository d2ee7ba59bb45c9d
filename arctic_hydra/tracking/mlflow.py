"""Tracking with MLflow, by default in a SQLite file next to the runs, which needs no server; `mlflow ui` shows it."""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from arctic_hydra.component import component
from arctic_hydra.files.state_file import Schema, Table
from arctic_hydra.redaction import without_credentials
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.tracking.base import Tracker
from arctic_hydra.tracking.sender import Connection, Point, Sender, read_saved

STATE_FILE = "tracking-mlflow.json"
"""File in the run directory with the id of the MLflow run, which a later start continues."""

_STATE = Schema(
    "it is ignored, and the run is logged anew",
    Table({"uri": str, "run_id": str, "described": bool}, {"last_step": int, "status": (str, None)}),
)

_STORES = ("databricks", "http", "https", "mssql", "mysql", "postgresql", "sqlite")
_PARAM_CHARACTERS = 6000
_PARAMS_PER_REQUEST = 100
_METRICS_PER_REQUEST = 900  # the server's limit is 1000
_KEY_CHARACTERS = 250
_LOCK_SECONDS = 120.0
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

# Read by MLflow on import and on each request. Its defaults wait minutes for an unresponsive server and send telemetry;
# values set by the user win.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


@component(group="tracking", name="mlflow")
class MLflowTracker(Tracker):
    """Logs parameters, metrics and the resolved config to one MLflow run; a resumed run continues it."""

    uri: str | None = None
    """Tracking store (sqlite:///<file>, http://<host>:<port>, ...); `<output_root>/mlflow.db` when unset."""
    experiment: str = "arctic_hydra"
    """MLflow experiment of the run; created if it does not exist."""

    def validate(self) -> None:
        if self.uri is not None and not (self.uri == "databricks" or _is_store(self.uri.partition("://"))):
            raise ValueError(
                f"uri: got {without_credentials(self.uri, mark='')!r}, expected a URL such as sqlite:///runs/mlflow.db or "
                f"http://127.0.0.1:5000 (MLflow no longer supports its file store)"
            )
        if not self.experiment.strip():
            raise ValueError(f"experiment: got {self.experiment!r}, expected a name")

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        """Open the run in the background and send the rows of `metrics.jsonl` that the store does not have."""
        connection = self._connection(run_dir, name, config)
        self._sender = Sender(connection, connection.metrics_path, connection.label)
        self._sender.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Queue the metrics of one step; never blocks."""
        self._sender.put(step, metrics)

    def catch_up(self, run_dir: Path, name: str, config: dict[str, Any], status: str) -> None:
        """Send what the store does not have of the run in `run_dir` and end it with `status`, unless that is already done.

        A run that failed before it reached the store is not created there. Waits at most 10 seconds for a server.
        """
        connection = self._connection(run_dir, name, config)
        if connection.closed_with == status or (status == "failed" and not connection.opened):
            return
        sender = Sender(connection, connection.metrics_path, connection.label)
        sender.start()
        sender.finish(status, in_rank=False)

    def _connection(self, run_dir: Path, name: str, config: dict[str, Any]) -> MLflowRun:
        run_dir = run_dir.resolve()
        return MLflowRun(
            self.uri or f"sqlite:///{run_dir.parents[1] / 'mlflow.db'}", self.experiment, run_dir, name, config
        )

    def finish(self, status: str) -> None:
        """Send the remaining metrics and end the MLflow run: FINISHED, KILLED (stopped early) or FAILED."""
        self._sender.finish(status)

    def group(
        self,
        sweep_dir: Path,
        name: str,
        facts: dict[str, Any],
        children: Sequence[Path],
        ending: SweepResult,
        catch_up: Callable[[], None],
    ) -> None:
        """Create or update one MLflow run for a sweep, the parent of its jobs' runs; may block and may raise.

        `facts` become the parameters of the parent; `children` are the run directories of the jobs. `catch_up` updates the
        runs of the jobs and is called once the store has responded.
        """
        uri = _absolute(self.uri or f"sqlite:///{sweep_dir.resolve().parents[2] / 'mlflow.db'}")
        parent = MLflowRun(uri, self.experiment, sweep_dir.resolve(), name, facts)
        parent.open()
        catch_up()
        for child in children:
            state = read_saved(child / STATE_FILE, _STATE, parent.label)
            if state.get("uri") == without_credentials(uri, mark=""):
                parent.adopt(state["run_id"])
        parent.summarize(ending.objective, ending.tags)
        parent.close(ending.status)


@dataclass(frozen=True)
class SweepResult:
    """Result of a sweep, for its MLflow run."""

    status: str
    """finished, stopped or failed."""
    objective: float | None
    """Objective of the best job; None if no job has finished."""
    tags: dict[str, str]


class MLflowRun(Connection):
    """The run of one run directory in an MLflow store; every method may block and may raise."""

    def __init__(self, uri: str, experiment: str, run_dir: Path, name: str, config: dict[str, Any]) -> None:
        self._uri = _absolute(uri)
        self._experiment = experiment
        self._run_dir = run_dir
        self._name = name
        self._config = config
        self._state_path = run_dir / STATE_FILE
        self.metrics_path = run_dir / "metrics.jsonl"
        self.label = f"tracking.mlflow ({without_credentials(uri, mark='')})"
        self.in_files = _sqlite_path(self._uri) is not None
        self._client: Any = None
        self._run_id = ""
        self._config_logged = False
        self._status: str | None = None
        self._last_step = -1
        self._last_steps: dict[str, int] = {}

    @property
    def opened(self) -> bool:
        """Whether an earlier start of this run directory reached this store."""
        return bool(self._state())

    @property
    def closed_with(self) -> str | None:
        """The status with which the run was ended after its last metrics; None if it was not ended in this store."""
        status: str | None = self._state().get("status")
        return status

    def open(self) -> None:
        """Create the run, or reopen the one that the run directory refers to, and read the last step of each metric."""
        client_class = import_client()
        with self._creation_lock():
            self._create_database(client_class)
            self._client = client_class(tracking_uri=self._uri)
            experiment_id = self._experiment_id()
        run = self._known_run()
        if run is None:
            run = self._client.create_run(experiment_id, run_name=self._name, tags=self._tags())
            self._config_logged = False
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id
        # Ask the store rather than our state file: a kill between sending and writing that file must not send a step twice.
        self._last_steps = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        self._last_step = max(self._last_steps.values(), default=-1)
        self._write_state()
        if not self._config_logged:
            self._log_config()

    def send(self, points: list[Point]) -> None:
        """Store the metrics that are newer than the last stored step of each."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, int(point.seconds * 1000), point.step)
            for point in points
            for name, value in point.metrics.items()
            if point.step > self._last_steps.get(key := metric_key(name), -1)
        ]
        for chunk in _chunks(metrics, _METRICS_PER_REQUEST):
            self._client.log_batch(self._run_id, metrics=chunk)
            for metric in chunk:
                self._last_steps[metric.key] = max(metric.step, self._last_steps.get(metric.key, -1))
        if metrics:
            self._last_step = max(self._last_steps.values())
            self._write_state()

    def adopt(self, run_id: str) -> None:
        """Make another run of the store a child of this one."""
        self._client.set_tag(run_id, "mlflow.parentRunId", self._run_id)

    def summarize(self, objective: float | None, tags: dict[str, str]) -> None:
        """Store the objective and tags of the whole run."""
        if objective is not None:
            self._client.log_metric(self._run_id, "objective", objective)
        for key, value in tags.items():
            self._client.set_tag(self._run_id, key, value)

    def close(self, status: str) -> None:
        """End the run; the samples of `callback=[samples]` become the artifact `samples.jsonl`."""
        if (samples := self._run_dir / "samples.jsonl").exists():
            self._client.log_artifact(self._run_id, str(samples))
        self._client.set_terminated(self._run_id, _STATUS[status])
        self._status = status
        self._write_state()

    def _tags(self) -> dict[str, str]:
        """Return the tags that MLflow shows as user, source and version, from the record of the run."""
        from mlflow.tracking.context.registry import resolve_tags

        record = RunDirectory(self._run_dir).record()
        git = record.get("git") or record.get("working_directory", {}).get("git")
        tags = {
            "arctic_hydra.run_dir": str(self._run_dir),
            "mlflow.source.name": "arctic_hydra",
            "mlflow.source.type": "JOB" if "SLURM_JOB_ID" in os.environ else "LOCAL",
        }
        if git:
            tags["mlflow.source.git.commit"] = git["revision"]
        return dict(resolve_tags(tags))

    def _creation_lock(self) -> AbstractContextManager[Any]:
        """Let one process at a time create a SQLite store, because concurrent migrations fail."""
        path = _sqlite_path(self._uri)
        if path is None:
            return nullcontext()
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        lock: AbstractContextManager[Any] = FileLock(f"{path}.lock", timeout=_LOCK_SECONDS)
        return lock

    def _create_database(self, client_class: Any) -> None:
        """Create a SQLite store under a temporary name: a kill during its migrations would leave it unusable."""
        path = _sqlite_path(self._uri)
        if path is None or path.exists():
            return
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        client_class(tracking_uri=f"sqlite:///{part}")
        part.replace(path)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        from mlflow.exceptions import MlflowException

        database = _sqlite_path(self._uri)
        artifacts = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return str(self._client.create_experiment(self._experiment, artifact_location=artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # Another run created it at the same time.
            return str(self._client.get_experiment_by_name(self._experiment).experiment_id)

    def _known_run(self) -> Any:
        """Return the run that an earlier start of this run directory opened in this store, if it still exists."""
        from mlflow.exceptions import MlflowException

        state = self._state()
        if not state:
            return None
        try:
            run = self._client.get_run(state["run_id"])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._config_logged = state["described"]
        return run if run.info.lifecycle_stage == "active" else None

    def _log_config(self) -> None:
        """Store the config as flat parameters, which MLflow does not allow to change, and as the artifact `config.yaml`."""
        import yaml
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in flat_params(self._config).items()]
        for chunk in _chunks(params, _PARAMS_PER_REQUEST):
            self._client.log_batch(self._run_id, params=chunk)
        text = without_credentials(yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True), mark="")
        self._client.log_text(self._run_id, text, "config.yaml")
        self._config_logged = True
        self._write_state()

    def _state(self) -> dict[str, Any]:
        """Return the saved state of this run directory's run in this store; empty if there is none."""
        state = read_saved(self._state_path, _STATE, self.label)
        same_store = without_credentials(state.get("uri", ""), mark="") == without_credentials(self._uri, mark="")
        return state if same_store else {}

    def _write_state(self) -> None:
        state = {
            "uri": without_credentials(self._uri, mark=""),
            "run_id": self._run_id,
            "last_step": self._last_step,
            "described": self._config_logged,
            "status": self._status,
        }
        part = self._state_path.with_name(f"{STATE_FILE}.part")
        part.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        part.replace(self._state_path)


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the leaves of a config by dotted key, as text of at most 6000 characters each."""
    params: dict[str, str] = {}
    for key, value in _leaves(config, ""):
        text = without_credentials(str(value), mark="")
        params[metric_key(key)] = text if len(text) <= _PARAM_CHARACTERS else f"{text[: _PARAM_CHARACTERS - 3]}..."
    return params


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def metric_key(name: str) -> str:
    """Return `name` as a valid MLflow key: special characters are replaced and the path is normalized."""
    return posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)).lstrip("./")[:_KEY_CHARACTERS] or "_"


def _sqlite_path(uri: str) -> Path | None:
    url = urlsplit(uri)
    return Path(url.path[1:]) if url.scheme.split("+")[0] == "sqlite" else None


def _absolute(uri: str) -> str:
    path = _sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path.resolve()}"


def _is_store(parts: tuple[str, str, str]) -> bool:
    """Whether MLflow, or an installed plugin of it, has a tracking store for a URL of this scheme."""
    scheme, separator, _ = parts
    known = scheme.partition("+")[0] in _STORES
    return bool(separator) and (
        known or scheme in {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
    )


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def import_client() -> Any:
    """Return MLflow's client class; set the defaults of its environment variables and quiet its loggers."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # After the import, which sets these levels itself; urllib3 would log each retry.
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient
