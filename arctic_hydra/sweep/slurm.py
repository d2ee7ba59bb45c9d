"""Jobs in SLURM: how they stand, from squeue and then sacct; their logs; cancelling and submitting them again.

A cluster without accounting has no sacct: what squeue has forgotten is then gone, and the run's own record says the rest.
A job's submission is `{"kind": "slurm", "job_id": "12_0", "log": "...", "launcher": {...}, ...}`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra import run_directory
from arctic_hydra.distributed import speak_for_machines_with
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.sweep.directory import UNKNOWN, Standing, Sweep, SweepJob

COMMAND_SECONDS = 60
"""How long one of SLURM's commands may take; a busy controller answers late."""
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
_LEAST = {
    "nodes": 1,
    "gpus_per_node": 0,
    "timeout_min": 0,
    "cpus_per_task": 1,
    "mem_gb": 0,
    "array_parallelism": 1,
    "max_array_size": 1,
    "signal_delay_s": 1,
    "max_requeues": 0,
}
"""The smallest number that each of the launcher's keys takes."""
GONE = "GONE"
"""The state of a job that SLURM no longer knows."""


class SlurmError(ArcticHydraError, RuntimeError):
    """One of SLURM's commands failed; the text holds its own words."""


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it."""

    state: str
    """SLURM's own word, such as PENDING, RUNNING or OUT_OF_MEMORY, or `GONE`."""
    reason: str = ""
    """Why it waits, or how it ended, where SLURM says."""
    nodes: str = ""
    """Where it runs or ran."""

    @property
    def over(self) -> bool:
        """Whether nothing of it runs or will; a state that this code does not know is one of a job under way."""
        return self.state in (*ENDED, GONE)

    @property
    def waits(self) -> bool:
        """Whether it is in the queue and nothing of it runs."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")

    def __str__(self) -> str:
        return " ".join(
            [self.state, *([f"({self.reason})"] if self.reason else []), *([f"on {self.nodes}"] if self.nodes else [])]
        )


def check_options(options: Mapping[Any, Any]) -> None:
    """Raise ConfigError where a number of `hydra.launcher` makes no sense."""
    problems = [
        f"hydra.launcher.{key}: got {options[key]}, expected {least} or more"
        for key, least in _LEAST.items()
        if options[key] is not None and options[key] < least
    ]
    if options["poll_seconds"] <= 0:
        problems.append(f"hydra.launcher.poll_seconds: got {options['poll_seconds']}, expected more than 0")
    limit, delay = options["timeout_min"] * 60, options["signal_delay_s"]
    if 0 < limit <= delay:
        problems.append(
            f"hydra.launcher.signal_delay_s: got {delay}, but hydra.launcher.timeout_min={options['timeout_min']} gives a "
            f"job {limit} s: it would be told to stop as it starts; pass a shorter delay or a longer time"
        )
    if problems:
        raise ConfigError(problems)


def query(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of each job; raises SlurmError while the cluster's controller does not answer."""
    listed = command("squeue", "-u", str(os.getuid()), "-t", "all", "-h", "-r", "-o", "%i|%T|%r|%N")
    found = {}
    for line in listed.splitlines():
        job_id, state, reason, nodes = line.strip().split("|")
        found[job_id] = JobState(state, "" if reason == "None" else reason, nodes)
    forgotten = [job_id for job_id in job_ids if job_id not in found]
    found |= _accounted(forgotten) if forgotten else {}
    return {
        job_id: found.get(
            job_id, JobState(GONE, "SLURM does not know it: cancelled before it started, or over for long")
        )
        for job_id in job_ids
    }


def _accounted(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Ask the accounting for jobs that the controller has forgotten; a cluster without one knows nothing."""
    try:
        listed = command("sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", ",".join(job_ids))
    except SlurmError:
        return {}
    found = {}
    for line in listed.splitlines():
        job_id, state, exit_code, nodes = line.strip().split("|")
        word, _, more = state.partition(" ")  # CANCELLED by 1000
        found[job_id] = JobState(word, more or ("" if exit_code == "0:0" else f"exit code {exit_code}"), nodes)
    return found


def preempted(job_id: str) -> bool:
    """Whether a running job has to make room and has its grace time now; scancel leaves no job in that state."""
    shown = command("scontrol", "show", "job", "-o", job_id)
    return bool(re.search(r"\bJobState=RUNNING\b", shown) and re.search(r"\bPreemptTime=\d", shown))


def command(*words: str) -> str:
    """Run one of SLURM's commands and return what it printed; raises SlurmError with its own words."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise SlurmError(f"there is no {words[0]} on this machine; run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} gave no answer within {COMMAND_SECONDS} s") from error
    if done.returncode != 0:
        raise SlurmError(f"{words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def standings(jobs: Sequence[SweepJob]) -> list[Standing]:
    """Return how each job stands; SLURM is not asked for runs whose own record says how they ended.

    Where it does not answer, the others are `UNKNOWN`, with what their records say.
    """
    ended = (run_directory.FINISHED, run_directory.FAILED)
    found = [job.directory.record().get("status") for job in jobs]
    asked = [_submission(job)["job_id"] for job, status in zip(jobs, found, strict=True) if status not in ended]
    try:
        states = query(asked) if asked else {}
    except SlurmError as error:
        why = f"the queue could not be asked: {'; '.join(str(error).splitlines())}"
        return [
            Standing(None) if status in ended else Standing(UNKNOWN, f"{status} by its own record; {why}")
            for status in found
        ]
    return [_standing(states.get(_submission(job)["job_id"], JobState("COMPLETED"))) for job in jobs]


def _standing(state: JobState) -> Standing:
    if not state.over:
        return Standing("queued" if state.waits else "running", state.reason)
    return Standing(None, "" if state.state == "COMPLETED" else str(state))


def logs(job: SweepJob) -> list[Path]:
    """Return the job's log files, the most telling last."""
    return [*sorted(Path(job.run_dir).glob("logs/rank*.log")), *map(Path, _submission(job)["logs"])]


def cancel(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Ask the jobs to stop: SLURM sends SIGTERM, on which a run saves, and kills what is left after its KillWait.

    Those that wait are stopped with that, which nobody else could write down.
    """
    asked = {_submission(job)["job_id"]: job for job in jobs if job.submission and job.submission["kind"] == "slurm"}
    states = query(list(asked))
    alive = [job_id for job_id in asked if not states[job_id].over]
    if alive:
        command("scancel", *alive)
    for directory in [asked[job_id].directory for job_id in alive if states[job_id].waits]:
        if directory.record().get("status") == run_directory.RUNNING:
            directory.update_record(status=run_directory.STOPPED)


def end_conductor(sweep: Sweep) -> None:
    """Leave word for the process that waits for the jobs: it may be on another machine, and cancels them itself."""
    sweep.ask_conductor_to_end()


def resubmit(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Submit the jobs again as they were, from their `run.json`; writes their new submissions into the sweep."""
    data = _digests(jobs)
    sweep.save()
    waiting = {job.run_dir: job for job in jobs if job.run_dir in data}
    if not waiting:
        return
    cancel_lost(sweep, {_submission(job)["launcher"]["folder"] for job in waiting.values()})
    asked = {
        "sweep": str(sweep.path),
        "jobs": [{"run_dir": path, "launcher": _submission(job)["launcher"]} for path, job in waiting.items()],
    }
    words = [sys.executable, "-m", "hydra_plugins.arctic_hydra._slurm_submit"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        for line in process.stdout:  # one for each array
            submitted = [(waiting.pop(run_dir), submission) for run_dir, submission in json.loads(line)]
            for job, _ in submitted:
                job.directory.forget_outcome()
                job.directory.update_record(status=run_directory.RUNNING, data=data[job.run_dir])
            write_down(sweep, submitted)
    if waiting:
        numbers = ", ".join(str(job.number) for job in waiting.values())
        raise SlurmError(f"not submitted again: job {numbers}; see above")


def _digests(jobs: Sequence[SweepJob]) -> dict[str, str]:
    """Return the hash of each job's data as it is now, by run directory; a job that cannot run again fails alone."""
    found = {}
    for job in jobs:
        speak_for_machines_with(_submission(job)["launcher"]["gpus_per_node"] or 0)
        try:
            found[job.run_dir] = job.reread().data_digest()
        except (ArcticHydraError, OSError) as error:
            job.problem = str(error)
            print(f"job {job.number} failed: {error}", flush=True)
    return found


def write_down(sweep: Sweep, submitted: Sequence[tuple[SweepJob, dict[str, Any]]]) -> None:
    """Write what became of an array's jobs into the sweep and into the runs' records, and say so."""
    for job, submission in submitted:
        job.submission = submission
    sweep.save()
    for job, submission in submitted:
        job.directory.update_record(submission=submission)
        print(f"job {job.number} submitted as {submission['job_id']}", flush=True)


def mark(sweep: Path) -> str:
    """Return the line of a submission's script that says whose it is."""
    return f"# sweep {sweep}"


def cancel_lost(sweep: Sweep, folders: set[str]) -> None:
    """Cancel what a start of this sweep submitted when it was killed before it could write down the answer.

    Such a job may lack what it is to run. Raises SlurmError where one does not leave the queue.
    """
    end = time.monotonic() + COMMAND_SECONDS
    cancelled: set[str] = set()
    while lost := _lost(sweep, folders):
        if new := sorted(lost - cancelled):
            print(f"{', '.join(new)} was being submitted when this sweep was killed: cancelled", flush=True)
            command("scancel", *new)
            cancelled |= lost
        if time.monotonic() > end:
            raise SlurmError(f"{', '.join(sorted(lost))} was cancelled, but does not leave the queue; try again later")
        time.sleep(0.5)


def _lost(sweep: Sweep, folders: set[str]) -> set[str]:
    if not any(Path(folder).is_dir() for folder in folders):
        return set()
    submissions = [found for job in sweep.jobs for found in (job.submission, job.directory.record().get("submission"))]
    known = {found["job_id"].partition("_")[0] for found in submissions if found and found["kind"] == "slurm"}
    listed = set(command("squeue", "-u", str(os.getuid()), "-h", "-o", "%F|%o").splitlines())
    queued = [(job_id, Path(script)) for job_id, _, script in (line.strip().partition("|") for line in listed)]
    foreign = [(job_id, script) for job_id, script in queued if job_id not in known and str(script.parent) in folders]
    return {
        job_id
        for job_id, script in foreign
        if script.is_file() and mark(sweep.path) in script.read_text(encoding="utf-8").splitlines()
    }


def _submission(job: SweepJob) -> dict[str, Any]:
    assert job.submission is not None, "a job is handed to a backend before the backend is asked for it"
    return job.submission
