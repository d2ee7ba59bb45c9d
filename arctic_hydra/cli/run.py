"""Runs one composed config, from its checks to the exit code."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import Any

from arctic_hydra import config, display, run_directory
from arctic_hydra.cli.composition.compose import with_paths
from arctic_hydra.cli.summary import format_number, print_result
from arctic_hydra.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED_EARLY, ConfigError, print_error
from arctic_hydra.launch import nodes
from arctic_hydra.launch.job import Job, has_stopped, record_ending
from arctic_hydra.launch.ranks import start_ranks
from arctic_hydra.metrics import objective_name
from arctic_hydra.redaction import redact
from arctic_hydra.report import run_page
from arctic_hydra.report.header import rank_groups
from arctic_hydra.run_directory import relative
from arctic_hydra.stopping import interruptible, one_stop


def run_one(tree: dict[str, Any], overrides: list[str]) -> int:
    """Check a composed run, write its directory, start its ranks and report the result; return the exit code."""
    return run_job(Job.of(with_paths(tree), overrides))


def run_job(job: Job) -> int:
    """Write the directory of a checked run, start its ranks and report the result; return the exit code."""
    run, directory = job.run, job.directory
    if run.task is config.Task.chat:  # data and devices of a training need not be here
        with display.waiting("start"):  # the libraries take seconds
            from arctic_hydra.tasks import chat

        return chat.execute(run, directory)
    if run.task is config.Task.report:
        directory.check_trained(run.task.name)
        print(f"written to {relative(run_page.write(directory))}")
        return EXIT_DONE
    if problems := run.environment_problems():
        raise ConfigError(problems)
    machines = nodes.machines_of(run, directory.path)
    if run.task is config.Task.check:
        from arctic_hydra.tasks import check

        with display.waiting("check"):
            lines, errors = check.check_in_subprocess(job.tree)
        for error in errors:
            print_error(error)
        if errors:
            return max(error.exit_code for error in errors)
        ranks = rank_groups(run.world_size_wanted, 1)
        print(display.fitted(f"the configuration is valid; it would run in {directory.path} on {ranks}"))
        print("\n".join(map(display.fitted, lines)))
        return EXIT_DONE
    if run.task is config.Task.preview:
        with display.waiting("start"):
            from arctic_hydra.tasks import preview

        directory.create()
        print(f"written to {relative(preview.execute(run, directory.path))}")
        return EXIT_DONE
    if run.node_rank > 0 and run.task is config.Task.export:
        print(f"node {run.node_rank} of {run.nnodes} has nothing to do: the command on node 0 writes the export")
        return EXIT_DONE
    if run.node_rank > 0:
        return _run_other_node(job, machines)
    if run.task is not config.Task.train:
        return _run_task(job, machines)
    return _train(job, machines)


def _train(job: Job, machines: nodes.Nodes | nodes.Hosts) -> int:
    """Train unless the run is finished; return the exit code."""
    run, directory = job.run, job.directory
    lock = job.lock_directory()
    print(f"run      {directory.path}", flush=True)
    with display.shown(prints=True), display.phase("hash", "content of the data", transient=True):
        data = job.data_digest()
    job.prepare_directory()
    if job.is_finished(data):
        result = directory.record().get("result", {})
        objective = f"{objective_name(run.objective, result)} {format_number(result.get('objective'))}"
        print(f"finished already: {relative(directory.path)} (step {result.get('step')}, {objective})")
        print(job.code_change() or _after_finished(job))
        job.update_trackers(run_directory.FINISHED)
        return EXIT_DONE
    signals: list[int] = []
    with one_stop(signals):  # from the first file of the run to its exit code
        if difference := job.write_run_files(data):
            print(difference)
        code = start_ranks(directory, run.ranks_per_node, lock, job.secrets(), machines, signals)
        code = _report_ending(directory, code, signals)
        if directory.record()["status"] == run_directory.FAILED:
            job.update_trackers(run_directory.FAILED)
    return code


def _after_finished(job: Job) -> str:
    """Return what to pass instead of the command of a finished run."""
    limit = "trainer.train_iters" if job.run.trainer.train_iters else "trainer.epochs"
    if job.directory.has_checkpoints():
        return f"pass extend={relative(job.directory.path)} and a larger {limit} to train longer, or fresh=true to start over"
    return f"it has no checkpoint: pass a larger {limit} to train longer from the start, or fresh=true to start over"


def _run_other_node(job: Job, machines: nodes.Nodes | nodes.Hosts) -> int:
    """Start the ranks of a machine other than the first, whose command writes the run directory; return the exit code."""
    run = job.run
    directory = job.directory if run.task is config.Task.train else job.directory.of_task(run.task.name)
    if run.task is config.Task.train and not run.fresh and directory.record().get("status") == run_directory.FINISHED:
        print(f"finished already: {directory.path}")
        return EXIT_DONE
    signals: list[int] = []
    with one_stop(signals):
        saves = _saves(run)
        code = start_ranks(directory, run.ranks_per_node, None, job.secrets(), machines, signals, saves=saves)
    stopped = bool(code) and has_stopped(directory, code, asked_to_stop=bool(signals))
    status = None if code else directory.result().get("status")
    failed = status == run_directory.FAILED or (code and not stopped)
    how = "was stopped" if stopped else "failed" if failed else "is done"
    print(f"node {run.node_rank} of {run.nnodes} {how}; see the command on node 0 for the result of the run")
    if stopped or status == run_directory.STOPPED:
        return EXIT_STOPPED_EARLY
    return EXIT_FAILED if failed else EXIT_DONE


def _run_task(job: Job, machines: nodes.Nodes | nodes.Hosts) -> int:
    """Run a task on a checkpoint, or on the data, in a subfolder of the run's directory; return the exit code."""
    run, directory = job.run, job.directory
    if run.from_checkpoint is None and run.task is not config.Task.score:
        directory.check_trained(run.task.name, ", or pass from_checkpoint=<path of a checkpoint or of a run>")
    directory.create()
    lock = directory.lock()
    task_directory = directory.of_task(run.task.name)
    task_directory.create()
    print(f"run      {task_directory.path}", flush=True)
    task_directory.clear_result()
    task_directory.write_run(redact(job.tree))
    task_directory.update_record(status=run_directory.RUNNING, started=time.time(), seconds=0.0)
    ranks, where = (1, None) if run.task is config.Task.export else (run.ranks_per_node, machines)
    signals: list[int] = []
    with one_stop(signals):
        code = start_ranks(task_directory, ranks, lock, job.secrets(), where, signals, saves=_saves(run))
        return _report_ending(task_directory, code, signals)


def _saves(run: config.Run) -> bool:
    """Whether a stopped task continues where it was, so that its ranks end at a step rather than at once."""
    return run.task in (config.Task.train, config.Task.score)


def _report_ending(directory: run_directory.RunDirectory, code: int, signals: list[int]) -> int:
    """Record how the run ended, print it, and return the exit code."""
    display.restore_terminal()
    with (
        nullcontext() if signals else interruptible(),
        display.shown(prints=True),
        display.phase("finish", transient=True),
    ):
        ending = record_ending(directory, code, asked_to_stop=bool(signals))
    if ending.result:
        print_result(directory, ending.result)
    else:
        print(ending.details, file=sys.stderr if ending.status == run_directory.FAILED else sys.stdout)
    return ending.exit_code
