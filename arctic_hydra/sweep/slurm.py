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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arctic_hydra import record
from arctic_hydra.errors import ArcticHydraError
from arctic_hydra.sweep.directory import Standing, Sweep, SweepJob

COMMAND_SECONDS = 60
"""How long one of SLURM's commands may take; a busy controller answers late."""
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
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

    def __str__(self) -> str:
        return " ".join(
            [self.state, *([f"({self.reason})"] if self.reason else []), *([f"on {self.nodes}"] if self.nodes else [])]
        )


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
    """Return how each job stands; SLURM is not asked for runs whose own record says how they ended."""
    ended = (record.FINISHED, record.FAILED)
    asked = [_submission(job)["job_id"] for job in jobs if job.directory.record().get("status") not in ended]
    states = query(asked) if asked else {}
    return [_standing(states.get(_submission(job)["job_id"], JobState("COMPLETED"))) for job in jobs]


def _standing(state: JobState) -> Standing:
    if not state.over:
        waits = state.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
        return Standing("queued" if waits else "running", state.reason)
    return Standing(None, "" if state.state == "COMPLETED" else str(state))


def logs(job: SweepJob) -> list[Path]:
    """Return the job's log files, the most telling last."""
    return [*sorted(Path(job.run_dir).glob("logs/rank*.log")), *map(Path, _submission(job)["logs"])]


def cancel(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Ask the jobs to stop: SLURM sends SIGTERM, on which a run saves, and kills what is left after its KillWait."""
    job_ids = [_submission(job)["job_id"] for job in jobs if job.submission and job.submission["kind"] == "slurm"]
    states = query(job_ids)
    if alive := [job_id for job_id in job_ids if not states[job_id].over]:
        command("scancel", *alive)


def end_conductor(sweep: Sweep) -> None:
    """Leave word for the process that waits for the jobs: it may be on another machine, and cancels them itself."""
    sweep.ask_conductor_to_end()


def resubmit(sweep: Sweep, jobs: Sequence[SweepJob]) -> None:
    """Submit the jobs again as they were, from their `run.json`; writes their new submissions into the sweep."""
    for job in jobs:
        job.check_repeatable()
    asked = [{"run_dir": job.run_dir, "submission": _submission(job)} for job in jobs]
    done = subprocess.run(
        [sys.executable, "-m", "hydra_plugins.arctic_hydra._slurm_submit"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode != 0:
        raise SlurmError("the jobs were not submitted again; see above")
    for job, submission in zip(jobs, json.loads(done.stdout), strict=True):
        job.submission = submission
        job.directory.forget_outcome()
        job.directory.update_record(status=record.RUNNING, submission=submission)
        print(f"job {job.number} submitted as {submission['job_id']}")
    sweep.save()


def _submission(job: SweepJob) -> dict[str, Any]:
    assert job.submission is not None, "a job is handed to a backend before the backend is asked for it"
    return job.submission
