"""The backend for jobs in SLURM: their states from squeue and sacct, their logs, cancelling and resubmitting.

A cluster without accounting has no sacct; jobs that squeue no longer lists are then `GONE`, and their records are used.
A job's submission is `{"kind": "slurm", "job_id": "12_0", "logs": ["..."], "launcher": {...}, ...}`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra import python_flags, run_directory
from arctic_hydra.distributed import override_gpu_count
from arctic_hydra.errors import ArcticHydraError, ConfigError, RunLockedError
from arctic_hydra.files import code_file
from arctic_hydra.launch.slurm_options import check_options as check_options
from arctic_hydra.sweep.directory import JOB_ID, UNKNOWN, BackendState, Sweep, SweepJob

COMMAND_SECONDS = 60
"""Timeout of SLURM's commands; a busy controller responds slowly."""
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
GONE = "GONE"
"""The state of a job that SLURM no longer knows."""


class SlurmError(ArcticHydraError, RuntimeError):
    """One of SLURM's commands failed; the text contains its output."""


@dataclass(frozen=True)
class JobState:
    """The state of a job in SLURM."""

    state: str
    """SLURM's name, such as PENDING, RUNNING or OUT_OF_MEMORY, or `GONE`."""
    reason: str = ""
    """Why it waits, or how it ended, if SLURM reports it."""
    nodes: str = ""
    """The nodes on which it runs or ran."""

    @property
    def over(self) -> bool:
        """Whether the job has ended; unknown states count as running."""
        return self.state in (*ENDED, GONE)

    @property
    def waits(self) -> bool:
        """Whether the job is queued and not running."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")

    def __str__(self) -> str:
        return " ".join(
            [self.state, *([f"({self.reason})"] if self.reason else []), *([f"on {self.nodes}"] if self.nodes else [])]
        )


def query(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of each job; raises SlurmError if the cluster's controller does not respond."""
    listed = command("squeue", "-u", str(os.getuid()), "-t", "all", "-h", "-r", "-o", "%i|%T|%r|%N")
    found = {}
    for line in listed.splitlines():
        number, state, reason, nodes = line.strip().split("|")
        found[number] = JobState(state, "" if reason == "None" else reason, nodes)
    forgotten = [number for number in job_ids if number not in found]
    found |= _query_accounting(forgotten) if forgotten else {}
    gone = JobState(GONE, "unknown to SLURM: cancelled before it started, or finished long ago")
    return {number: found.get(number, gone) for number in job_ids}


def _query_accounting(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Query the accounting for jobs that the controller no longer lists; returns nothing without accounting."""
    try:
        listed = command("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", ",".join(job_ids))
    except SlurmError:
        return {}
    found = {}
    for line in listed.splitlines():
        number, state, exit_code, nodes = line.strip().split("|")
        word, _, more = state.partition(" ")  # CANCELLED by 1000
        found[number] = JobState(word, more or ("" if exit_code == "0:0" else f"exit code {exit_code}"), nodes)
    return found


def preempted(job_id: str) -> bool:
    """Whether a running job is being preempted and in its grace time; scancel does not cause this state."""
    shown = command("scontrol", "show", "job", "-o", job_id)
    return bool(re.search(r"\bJobState=RUNNING\b", shown) and re.search(r"\bPreemptTime=\d", shown))


def cancelled(job_id: str) -> bool:
    """Whether a job whose process still runs is being ended by scancel, and not by its time limit or a preemption."""
    shown = command("scontrol", "show", "job", "-o", job_id)
    ends = re.search(r"\bJobState=(CANCELLED|COMPLETING)\b", shown)
    return bool(ends and not re.search(r"\bReason=TimeLimit\b|\bPreemptTime=\d", shown))


def command(*words: str) -> str:
    """Run one of SLURM's commands and return its output; raises SlurmError with its error message."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SlurmError(f"there is no {words[0]} on this machine; run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} did not respond within {COMMAND_SECONDS} s") from error
    if done.returncode != 0:
        raise SlurmError(f"{words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def backend_states(jobs: Sequence[SweepJob]) -> list[BackendState]:
    """Return the state of each job; SLURM is not queried for runs whose records say how they ended.

    If SLURM does not respond, the other jobs are `UNKNOWN`, with the status of their records as the reason.
    """
    ended = (run_directory.FINISHED, run_directory.FAILED)
    found = [job.record().get("status") for job in jobs]
    asked = [job_id(_submission(job)) for job, status in zip(jobs, found, strict=True) if status not in ended]
    try:
        states = query(asked) if asked else {}
    except SlurmError as error:
        why = f"cannot query the queue: {'; '.join(str(error).splitlines())}"
        return [
            BackendState(None) if status in ended else BackendState(UNKNOWN, f"{status} according to its record; {why}")
            for status in found
        ]
    return [_backend_state(states.get(job_id(_submission(job)), JobState("COMPLETED"))) for job in jobs]


def _backend_state(state: JobState) -> BackendState:
    if not state.over:
        return BackendState("queued" if state.waits else "running", state.reason)
    return BackendState(None, "" if state.state == "COMPLETED" else str(state))


def logs(job: SweepJob) -> list[Path]:
    """Return the job's log files, the most informative last."""
    return [*sorted(Path(job.run_dir).glob("logs/rank*.log")), *map(Path, _submission(job)["logs"])]


def cancel(sweep: Sweep, jobs: Sequence[SweepJob]) -> int:
    """Ask the jobs to stop: SLURM sends SIGTERM, on which a run saves, and kills the remaining processes after KillWait.

    Returns how many were not cancelled, because the script that SLURM has of them is not one of this sweep. Queued jobs are
    recorded as stopped here, because they never run and so cannot do it themselves.
    """
    asked = {job_id(job.submission): job for job in jobs if job.submission and job.submission["kind"] == "slurm"}
    states = query(list(asked))
    alive = [number for number in asked if not states[number].over]
    ours = _submitted_by(sweep) if alive else set()
    foreign = [number for number in alive if number.partition("_")[0] not in ours]
    for number in foreign:
        print(f"job {asked[number].number} was not cancelled: SLURM's job {number} was not submitted by this sweep")
    alive = [number for number in alive if number not in foreign]
    if alive:
        command("scancel", *alive)
    for directory in [asked[number].directory for number in alive if states[number].waits]:
        if directory.record().get("status") == run_directory.RUNNING:
            directory.update_record(status=run_directory.STOPPED)
    return len(foreign)


def stop_controller(sweep: Sweep) -> bool:
    """Request cancellation through a file; the sweep process, maybe on another machine, cancels the jobs."""
    sweep.request_cancellation()
    return True


def resubmit(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Resubmit the jobs unchanged from their `run.json`; writes their new submissions into the sweep."""
    cancel_orphans(sweep, {_launcher(job)["folder"] for job in jobs})
    waiting = {job.run_dir: job for job in jobs if _prepare(job)}
    sweep.save()
    if not waiting:
        return
    asked = {
        "sweep": str(sweep.path),
        "jobs": [{"run_dir": path, "launcher": _launcher(job)} for path, job in waiting.items()],
    }
    words = [sys.executable, *python_flags(), "-m", "hydra_plugins.arctic_hydra._slurm_submit", *code_file.arguments()]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        for line in process.stdout:  # one line per array
            record_submissions(sweep, [(waiting.pop(run_dir), submission) for run_dir, submission in json.loads(line)])
    for job in waiting.values():  # one of them may have started, although the answer of sbatch was lost
        failed = {"status": run_directory.FAILED, "error": "it could not be resubmitted to SLURM"}
        _update_record(job, failed, run_directory.LOCK_GRACE_SECONDS)
    if waiting:
        numbers = ", ".join(str(job.number) for job in waiting.values())
        raise SlurmError(f"not resubmitted: job {numbers}; see the errors above")


def _prepare(job: SweepJob) -> bool:
    """Write the files of a job for its next start, which may follow the submission at once.

    Returns whether it can be submitted; one that cannot run again is marked as failed.
    """
    override_gpu_count(_launcher(job)["gpus_per_node"] or 0)
    directory = job.directory
    try:
        data = job.reread().data_digest()
        directory.lock(run_directory.LOCK_GRACE_SECONDS)
        directory.clear_result()
        directory.update_record(status=run_directory.RUNNING, data=data, submission=None)
    except RunLockedError as error:
        print(f"job {job.number}: not resubmitted: {error}", flush=True)
        return False
    except (ArcticHydraError, OSError) as error:
        job.cannot_run(error)
        return False
    finally:
        directory.release()  # the job locks it itself
    return True


def record_submissions(sweep: Sweep, submitted: Sequence[tuple[SweepJob, dict[str, Any]]]) -> None:
    """Write the submissions of an array into the sweep and into the records of the runs, and print them.

    A job that has started already has locked its directory and writes the record itself, which names no submission then.
    """
    for job, submission in submitted:
        job.submission = submission
    sweep.save()
    for job, submission in submitted:
        _update_record(job, {"submission": submission})
        print(f"job {job.number} submitted as {submission['job_id']}", flush=True)


def _update_record(job: SweepJob, changes: dict[str, Any], patience_seconds: float = 0.0) -> None:
    """Update the record of a job's run, unless the job has locked its directory: then it has started, and writes the record."""
    directory = job.directory
    try:
        with suppress(RunLockedError):
            directory.lock(patience_seconds)
            directory.update_record(**changes)
    finally:
        directory.release()


_MARKER = "# sweep "


def script_marker(sweep: Path) -> str:
    """Return the comment line that identifies a sweep's sbatch scripts."""
    return f"{_MARKER}{sweep}"


def cancel_orphans(sweep: Sweep, folders: set[str]) -> None:
    """Cancel jobs that an earlier process of this sweep submitted without recording them, because it was killed.

    Such jobs may lack the files they need. Raises SlurmError if one does not leave the queue.
    """
    end = time.monotonic() + COMMAND_SECONDS
    cancelled: set[str] = set()
    while orphans := _orphans(sweep, folders):
        if new := sorted(orphans - cancelled):
            print(
                f"{', '.join(new)} was submitted by a killed process of this sweep without being recorded: cancelled",
                flush=True,
            )
            command("scancel", *new)
            cancelled |= orphans
        if time.monotonic() > end:
            raise SlurmError(f"{', '.join(sorted(orphans))} was cancelled, but is still in the queue; try again later")
        time.sleep(0.5)


def _orphans(sweep: Sweep, folders: set[str]) -> set[str]:
    if not any(Path(folder).is_dir() for folder in folders):
        return set()
    submissions = [found for job in sweep.jobs for found in (job.submission, job.record().get("submission"))]
    known = {job_id(found).partition("_")[0] for found in submissions if found and found["kind"] == "slurm"}
    return _submitted_by(sweep, folders) - known


def _submitted_by(sweep: Sweep, folders: set[str] | None = None) -> set[str]:
    """Return the ids of the queued and running jobs (of their arrays, without the index) whose scripts name this sweep.

    `folders` limits which scripts are read.
    """
    listed = set(command("squeue", "-u", str(os.getuid()), "-h", "-o", "%F|%o").splitlines())
    queued = [(number, Path(script)) for number, _, script in (line.strip().partition("|") for line in listed)]
    path = os.path.realpath(sweep.path)
    read = [(number, script) for number, script in queued if folders is None or str(script.parent) in folders]
    return {number for number, script in read if _names(script, path)}


def _names(script: Path, sweep: str) -> bool:
    """Whether an sbatch script has the line `script_marker` of a sweep."""
    try:
        lines = script.read_text(encoding="utf-8", errors="replace").split("\n") if script.is_file() else []
    except OSError:
        return False
    return any(os.path.realpath(line.removeprefix(_MARKER)) == sweep for line in lines if line.startswith(_MARKER))


def job_id(submission: Mapping[str, Any]) -> str:
    """Return the id of a submission; raises ConfigError unless it is a number, since SLURM's commands get it as argument."""
    found = submission.get("job_id")
    if not isinstance(found, str) or not JOB_ID.fullmatch(found):
        raise ConfigError(
            f"sweep.json: submission.job_id: got {found!r}, expected a job of SLURM such as '12' or '12_0'; the file, or the "
            "record.json of a run, is damaged"
        )
    return found


def _submission(job: SweepJob) -> dict[str, Any]:
    assert job.submission is not None, "only submitted jobs are queried"
    return job.submission


def _launcher(job: SweepJob) -> dict[str, Any]:
    """Return the options of a job's submission; raises ConfigError for invalid ones, since the file may have been edited."""
    options: dict[str, Any] = _submission(job).get("launcher") or {}
    check_options(options)
    return options
