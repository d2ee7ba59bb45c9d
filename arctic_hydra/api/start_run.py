"""`arctic_hydra.run`: trains a run, or performs a task on one."""

from __future__ import annotations

from collections.abc import Iterable

from arctic_hydra import config
from arctic_hydra.api.child_command import Ended, execute
from arctic_hydra.api.composed_run import ComposedRun, compose
from arctic_hydra.api.loaded_run import LoadedRun
from arctic_hydra.errors import EXIT_BAD_CONFIG, EXIT_DONE, EXIT_STOPPED_EARLY, ConfigError, RunFailed
from arctic_hydra.run_directory import FAILED, FINISHED, RunDirectory

_TASKS = (config.Task.train, config.Task.evaluate, config.Task.export, config.Task.score)
_LAST_LINES = 12
"""Lines of a traceback that are part of the error."""


def run(
    overrides: Iterable[str] | ComposedRun = (),
    *,
    config_name: str | None = None,
    config_dir: str | None = None,
    progress: bool = True,
) -> LoadedRun:
    """Train, and return the run: finished, or stopped at a limit such as `trainer.max_minutes`; the same call resumes it.

    Takes overrides as `compose` does, or what it returned. It trains in child processes and prints their progress unless
    `progress` is false. With `task=evaluate`, `export` or `score`, it returns the folder of the task.

    Raises ConfigError if the config is invalid, and RunFailed with the error of the rank if the run fails. Ctrl-C (in the main
    thread) saves a checkpoint, ends the run at the next step and raises KeyboardInterrupt.
    """
    if isinstance(overrides, ComposedRun):
        composed = overrides
        if config_name is not None or config_dir is not None:
            raise TypeError("config_name, config_dir: have no effect on a composed run; pass them to compose")
    else:
        composed = compose(overrides, config_name=config_name, config_dir=config_dir)
    if composed.is_changed:
        raise ConfigError(
            "the config was changed after it was composed, which has no effect on the run; compose it with an override instead"
        )
    task = composed.config.task
    if task not in _TASKS:
        names = ", ".join(item.name for item in _TASKS)
        raise ConfigError(f"task: got {task.name}, expected one of {names}; the others are for the command line")
    directory = RunDirectory(composed.directory)
    if task is not config.Task.train:
        directory = directory.of_task(task.name)
    order = {
        "tree": composed._tree,
        "arguments": composed._arguments,
        "code": composed._code,
        "directory": str(composed.directory),
        "notes": composed._notes,
    }
    before = _written(directory)
    ended = execute(order, composed._folder, progress=progress)
    if not ended.interrupted and ended.code in (EXIT_DONE, EXIT_STOPPED_EARLY):
        return LoadedRun(directory.path)
    if ended.interrupted:
        raise KeyboardInterrupt(_interrupted(LoadedRun(directory.path) if directory.record_file.exists() else None))
    began = _written(directory) != before  # if not, its files are those of an earlier start
    error = ended.error() or _error_of_ranks(directory, ended, began=began)
    if isinstance(error, RunFailed) and began:
        error.run = LoadedRun(directory.path)
    raise error


def _written(directory: RunDirectory) -> set[tuple[str, int]]:
    """Return names and modification times of the record and the error reports, which every start replaces or removes."""
    record = directory.record_file
    return directory.error_files() | ({(record.name, record.stat().st_mtime_ns)} if record.exists() else set())


def _interrupted(run: LoadedRun | None) -> str:
    if run is None:
        return "interrupted before the run began"
    if run.status == FINISHED:
        return f"{run.path} is finished"
    fresh = " without fresh=true" if run.checkpoints and run.config.get("fresh") else ""
    next_start = "resumes it" if run.checkpoints else "starts over"
    reason = f" ({run.reason})" if run.status == FAILED and run.reason else ""
    return f"{run.path} is {run.status} at step {run.step}{reason}; the same call{fresh} {next_start}"


def _error_of_ranks(directory: RunDirectory, ended: Ended, *, began: bool) -> ConfigError | RunFailed:
    first = next(iter(directory.errors()), None) if began else None
    logs = f"logs: {directory.path / 'logs'}"
    if first is None:
        text = (directory.record().get("error") if began else None) or "\n".join(ended.output[-_LAST_LINES:])
        return RunFailed(f"{text or f'the process of the run ended with code {ended.code}'}\n{logs}")
    if first["expected"]:
        problems: list[str] = first["problems"]
        return ConfigError(problems) if ended.code == EXIT_BAD_CONFIG else RunFailed("\n".join([*problems, logs]))
    lines = first["traceback"].rstrip().splitlines()[-_LAST_LINES:]
    return RunFailed("\n".join([f"rank {first['rank']} failed first:", *lines, logs]))
