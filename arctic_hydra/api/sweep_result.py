"""`arctic_hydra.sweep`: runs a sweep, and its jobs as a table."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra.api.child_command import execute
from arctic_hydra.api.composed_run import COMPOSING, masked_errors, read_overrides
from arctic_hydra.api.loaded_run import LoadedRun
from arctic_hydra.cli import multirun
from arctic_hydra.cli.overrides import flags
from arctic_hydra.distributed import override_gpu_count
from arctic_hydra.errors import ArcticHydraError, ConfigError, RunFailed
from arctic_hydra.files import code_file
from arctic_hydra.report import html
from arctic_hydra.run_directory import relative
from arctic_hydra.sweep import results
from arctic_hydra.sweep.directory import Sweep
from arctic_hydra.sweep.results import Row

if TYPE_CHECKING:
    import pandas


class SweepResult:
    """A sweep on disk. Each attribute reads the files anew, so that jobs in progress can be followed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path).expanduser().absolute()
        """Directory of the sweep."""

    def _rows(self) -> tuple[Sweep, list[Row]]:
        sweep = Sweep.load(self.path)
        return sweep, results.rows(sweep)

    @property
    def table(self) -> pandas.DataFrame:
        """A row per job: `job`, `status`, `objective`, `step`, `seconds`, the keys in which jobs differ, `directory`, `failure`."""
        import pandas

        _, rows = self._rows()
        keys = results.keys_of(rows)
        lines = [
            {
                "job": row.number,
                "status": row.state,
                "objective": row.objective,
                "step": row.step,
                "seconds": row.seconds,
                **{key: _value(row.values.get(key)) for key in keys},
                "directory": str(row.run_dir),
                "failure": row.last_line,
            }
            for row in rows
        ]
        return pandas.DataFrame(lines)

    @property
    def runs(self) -> list[LoadedRun]:
        """The runs of the jobs that have started, in the order of `table`."""
        _, rows = self._rows()
        return [run for run in (LoadedRun(row.run_dir) for row in rows) if run.record]

    @property
    def best(self) -> LoadedRun | None:
        """The finished run with the best objective, the first of equals; None if there is none."""
        found = results.best(*self._rows())
        return LoadedRun(found.run_dir) if found else None

    @property
    def report(self) -> Path | None:
        """`sweep.html`; None if it was not written."""
        page = self.path / "sweep.html"
        return page if page.is_file() else None

    def __repr__(self) -> str:
        try:
            return f"<sweep {relative(self.path)}>\n{results.text(*self._rows())}"
        except ArcticHydraError as error:
            return f"<sweep {relative(self.path)}: {error}>"

    def _repr_html_(self) -> str:
        try:
            sweep, rows = self._rows()
        except ArcticHydraError:
            return html.escape(repr(self))
        keys = results.keys_of(rows)
        names = results.short_names(keys)
        table = html.table(
            [*results.HEADINGS, *(names[key] for key in keys)], (results.cells(row, keys) for row in rows)
        )
        return table + "".join(f"<div>{html.escape(line)}</div>" for line in results.epilogue(sweep, rows))


def sweep(
    overrides: Iterable[str],
    *,
    config_name: str | None = None,
    config_dir: str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Run a sweep, as `python -m arctic_hydra -m` does, and return its jobs; the same call does what is missing.

    `overrides` are those of `compose`, of which some have several values: `["optimizer.lr=1e-4,2e-4", "seed=range(3)"]`.
    `hydra/launcher` and `hydra/sweeper` choose where and how. A job that fails is a row of the table. Raises ConfigError if
    the config of a job is invalid, before the first one starts. Ctrl-C (in the main thread) stops the jobs at their next step, or
    only the waiting for those of a cluster, and raises KeyboardInterrupt.
    """
    with COMPOSING, masked_errors():
        options = read_overrides(overrides, config_name, config_dir)
        name, folder, given = options.config_name, options.config_dir, options.overrides
        try:
            plan = multirun.SweepPlan(multirun.Multirun(given, name, folder))
            if plan.other_task:
                raise ConfigError(f"task: got {plan.other_task}, expected train; the others are for the command line")
            if plan.multirun.master.launcher.get("dry_run"):
                raise ConfigError("hydra.launcher.dry_run: runs no job; pass it on the command line")
            plan.sweep()  # checks that the jobs make one; the child decides where, since the folder may depend on the time
        finally:
            override_gpu_count(None)  # of the cluster that the jobs are for
        arguments = [*flags(name, folder), *given]
        code = code_file.typed_arguments()
    order = {
        "arguments": arguments,
        "code": code,
        "notes": [],
        "overrides": given,
        "config_name": name,
        "config_dir": folder,
    }
    ended = execute(order, Path.cwd(), progress=progress)
    path = ended.directory if ended.directory and (ended.directory / "sweep.json").is_file() else None
    if ended.interrupted:
        raise KeyboardInterrupt(_interrupted(path) if path else "interrupted before the sweep began")
    if error := ended.error():
        raise error
    if path is None or ended.crashed:
        raise RunFailed("\n".join(ended.output) or f"the process of the sweep ended with code {ended.code}")
    return SweepResult(path)


def _value(text: str | None) -> int | float | str | None:
    """Return the value of an override as a number if it is one."""
    for kind in (int, float):
        try:
            return None if text is None else kind(text)
        except ValueError:
            continue
    return text


def _interrupted(path: Path) -> str:
    sweep = Sweep.load(path)
    if sweep.launcher == "slurm":
        return (
            f"stopped waiting for the jobs of the sweep {path}, which run on; the same call waits for them again, and "
            f"`python -m arctic_hydra.sweep cancel {shlex.quote(str(path))}` ends them"
        )
    fresh = any((job.directory.config() or {}).get("fresh") for job in sweep.jobs)
    again = "the same call without fresh=true, which would delete its runs," if fresh else "the same call"
    return f"the sweep {path} was stopped; {again} resumes it"
