"""`arctic_hydra.load_run`: a run from the files of its directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra.cli.summary import final_export, format_number
from arctic_hydra.errors import ConfigError, StateFileError, did_you_mean
from arctic_hydra.files.start_paths import hint_of_run
from arctic_hydra.human_numbers import shorten
from arctic_hydra.metrics import objective_name, read_metrics
from arctic_hydra.report import curves, html, run_page
from arctic_hydra.run_directory import DIED, FAILED, FINISHED, RUNNING, RunDirectory

if TYPE_CHECKING:
    import pandas

    from arctic_hydra.report.drawing import Drawing


class LoadedRun:
    """A run on disk. Each attribute reads the files anew, so that a run in progress can be followed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path).expanduser().absolute()
        """Directory of the run."""
        self._directory = RunDirectory(self.path)

    @property
    def record(self) -> dict[str, Any]:
        """`record.json`: status, overrides, versions, git revision, statistics of the data, and the result."""
        record = self._directory.record()
        return record if record or not (result := self._directory.result()) else {**result, "result": result}

    @property
    def status(self) -> str:
        """`running`, `finished`, `stopped` (resumable), `failed`, or `died`: it was killed before it could record its end."""
        status = self.record.get("status", RUNNING)
        if status == RUNNING and self._lock_holder() is None:
            status = self.record.get("status", RUNNING)  # it may have ended between the two
            return DIED if status == RUNNING else str(status)
        return str(status)

    def _lock_holder(self) -> str | None:
        is_task = self.path.name.startswith("task-")  # which works under the lock of its run
        return (RunDirectory(self.path.parent) if is_task else self._directory).holder()

    @property
    def reason(self) -> str:
        """Why the run failed, or stopped before its last step; empty otherwise."""
        record = self.record
        return str(record.get("error") or self.result.get("stop_reason") or "")

    @property
    def result(self) -> dict[str, Any]:
        """The result: counters, first and last loss and evaluations; of a task, its figures. Empty before the end."""
        return self.record.get("result") or {}

    @property
    def objective(self) -> float | None:
        """Last value of the metric that `objective` names; None before the end, and if it is not finite."""
        return self.result.get("objective")

    @property
    def step(self) -> int:
        """The last completed step that is logged, from 1; 0 before it."""
        steps = [line["step"] for line in self._lines() if "loss" in line]
        return int(self.result.get("step") or (steps[-1] if steps else 0))

    @property
    def horizon(self) -> int | None:
        """Steps of the whole run; None before they are known."""
        return self.result.get("horizon") or self.record.get("horizon")

    @property
    def metrics(self) -> pandas.DataFrame:
        """`metrics.jsonl` as a table with its names as columns: a row per logged step and per evaluation, NaN where it has none."""
        import pandas

        return pandas.DataFrame(self._lines())

    def _lines(self) -> list[dict[str, Any]]:
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, with secrets hidden."""
        return self._directory.config() or {}

    @property
    def overrides(self) -> list[str]:
        """The overrides of the last start, with secrets hidden."""
        return list(self.record.get("overrides", []))

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return [path for folder in self._folders() for path in sorted((folder / "checkpoints").glob("step-*"))]

    @property
    def export(self) -> Path | None:
        """The exported model, which `from_pretrained` loads; None if there is none."""
        if "export" in self.result:  # of task=export
            return Path(self.result["export"])
        return next((folder / name for folder in self._folders() if (name := final_export(folder))), None)

    @property
    def report(self) -> Path | None:
        """`report.html`; None if it was not written."""
        page = self.path / run_page.PAGE
        return page if page.is_file() else None

    def _folders(self) -> Iterator[Path]:
        """Yield the directories that the run writes to: its own, then each `output_dir` of its checkpoint engines."""
        yield self.path
        chosen = (engine.get("output_dir") for engine in self.config.get("checkpoint", {}).values())
        for folder in dict.fromkeys(filter(None, chosen)):
            yield Path(folder) / self.path.parent.name / self.path.name

    def plot(self, metric: str = "loss") -> Drawing:
        """Return a matplotlib figure of a metric of `metrics` over the steps, with that of the evaluations if there is one.

        Raises ValueError, naming the metrics that were logged, if this one was not.
        """
        lines = self._lines()
        logged = sorted({name for line in lines for name, value in line.items() if isinstance(value, int | float)})
        if metric not in logged:
            hint = did_you_mean(metric, logged)
            raise ValueError(f"metric: got {metric!r}, expected one of {', '.join(logged) or 'none yet'}{hint}")
        return curves.with_evaluation(metric, metric, lines, lines)

    def _facts(self) -> dict[str, str]:
        name = objective_name(self.config.get("objective", "auto"), self.result)
        facts = {
            "status": self.status,
            "reason": self.reason,
            "step": f"{self.step} of {self.horizon}" if self.horizon else str(self.step or ""),
            f"objective ({name})": "" if self.objective is None else format_number(self.objective),
            "directory": str(self.path),
            "export": str(self.export or ""),
            "report": str(self.report or ""),
        }
        return {key: value for key, value in facts.items() if value}

    def __repr__(self) -> str:
        name = f"{self.path.parent.name}/{self.path.name}"
        try:
            self.record, self.config  # noqa: B018  # which the other attributes read
        except StateFileError as error:
            return f"<run {name}: {error}>"
        objective = "" if self.objective is None else f", objective {format_number(self.objective)}"
        at = f" at step {self.step}" if self.status != FINISHED and self.step else ""
        why = f": {self.reason.strip().splitlines()[-1]}" if self.status == FAILED and self.reason.strip() else ""
        return f"<run {name}: {self.status}{at}{objective}{why}>"

    def _repr_html_(self) -> str:
        try:
            facts = self._facts()
        except StateFileError:
            return html.escape(repr(self))
        return html.table(["run", f"{self.path.parent.name}/{self.path.name}"], facts.items())


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """Return the run of a directory, whatever its status; raises ConfigError if it is not the directory of a run."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"path: got a value of type {type(path).__name__}, expected the directory of a run as text or a Path"
        )
    found = LoadedRun(path)
    if not (found._directory.record_file.exists() or found._directory.run_file.exists()):
        raise ConfigError(
            f"path: got {shorten(str(path))}, which holds no record.json; expected the directory of a run, such as "
            f"outputs/default/1a2b3c4d5e{hint_of_run(found.path)}"
        )
    found.record  # noqa: B018  # raises StateFileError if it cannot be trusted
    return found
