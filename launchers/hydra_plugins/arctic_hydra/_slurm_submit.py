"""Submits runs to SLURM through submitit: a single run as a job, several as an array.

`python -m hydra_plugins.arctic_hydra._slurm_submit` resubmits runs, for `python -m arctic_hydra.sweep retry`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra_plugins.arctic_hydra._slurm_job import SECRETS_VARIABLE, RunJob
from hydra_plugins.arctic_hydra._slurm_script import CODE_FOLDER, NOTHING, render

from arctic_hydra.errors import ArcticHydraError, ConfigError, print_error
from arctic_hydra.files import code_file
from arctic_hydra.launch.slurm_options import line_problem
from arctic_hydra.provenance import git_state, is_tracked, tracked_and_new_files
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.sweep import slurm

_MOST_SECRET_BYTES = 120_000
"""Linux limits an environment variable to 131,072 bytes."""


def check_sbatch() -> None:
    """Raise ConfigError if this machine has no SLURM commands."""
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"hydra/launcher: got slurm, but there is no {' and no '.join(missing)} on this machine; submit from a login node "
            f"of the cluster, or print the script with hydra.launcher.dry_run=true"
        )


def check_sweep(sweep: Path) -> None:
    """Raise ConfigError for a sweep whose path cannot be a comment of its scripts."""
    if problem := line_problem(str(sweep)):
        raise ConfigError(f"output_root: {problem}; choose another folder, also for hydra.sweep.dir")


class Snapshot:
    """The copy of the code from which all jobs of one command run, made for the first of them."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def path(self, folder: Path) -> Path:
        """Return the copy, in `folder`. Raises ConfigError if it cannot be written."""
        if self._path is None:
            try:
                self._path = take_snapshot(folder)
            except OSError as error:  # also shutil.Error
                raise ConfigError(
                    f"hydra.launcher.snapshot: cannot copy the code to {folder} ({error.strerror or error}); choose another "
                    "hydra.launcher.folder with space, or pass hydra.launcher.snapshot=false"
                ) from error
        return self._path


def submit(
    options: dict[str, Any],
    run_dirs: Sequence[str],
    secrets: dict[str, Any],
    sweep: Path,
    copied: Snapshot,
) -> Iterator[list[dict[str, Any]]]:
    """Submit runs whose `run.json` is written; yield the submissions of each array as soon as it is queued, in order.

    The scripts name the sweep, which identifies jobs whose submission was never recorded. Raises ArcticHydraError with the
    message of sbatch if it rejects an array; earlier arrays are then queued.
    """
    if not run_dirs:
        return
    check_sweep(sweep)
    script(options, 1)  # raises ConfigError for invalid options before anything is written
    folder = Path(options["folder"])
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"hydra.launcher.folder: cannot write to {folder} ({error.strerror}); choose a folder on a shared file system"
        ) from error
    exported = options["additional_parameters"].get("export")
    if isinstance(exported, str) and exported.upper() in NOTHING and (options["snapshot"] or any(secrets.values())):
        raise ConfigError(
            f"hydra.launcher.additional_parameters.export: got {exported}, with which neither the code of a snapshot nor secrets of the "
            "config reach the jobs; pass names of variables, or leave it out"
        )
    snapshot = copied.path(folder) if options["snapshot"] else None
    for array in arrays(run_dirs, options["max_array_size"] or array_limit(), secrets):
        executor = make_executor(options, sweep, snapshot)
        hidden = {run_dir: secrets[run_dir] for run_dir in array if secrets.get(run_dir)}
        with submission_environment(hidden, snapshot):
            submissions = _submit_array(executor, options, array, snapshot)
        yield submissions


def _submit_array(
    executor: Any, options: dict[str, Any], run_dirs: Sequence[str], snapshot: Path | None
) -> list[dict[str, Any]]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with executor.batch():
            jobs = [executor.submit(run_job(options, run_dir)) for run_dir in run_dirs]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        words = "; ".join(line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if "sbatch" in line)
        raise ArcticHydraError(f"hydra.launcher: sbatch refused: {words or error}") from error
    return [
        {
            "kind": "slurm",
            "job_id": job.job_id,
            "logs": sorted({str(job.paths.stdout), *([] if options["stderr_to_stdout"] else [str(job.paths.stderr)])}),
            "script": str(job.paths.submission_file),
            "snapshot": snapshot and str(snapshot),
            "launcher": options,
        }
        for job in jobs
    ]


def run_job(options: dict[str, Any], run_dir: str) -> RunJob:
    """Return the job of a run whose `run.json` is written."""
    tree = RunDirectory(Path(run_dir)).config()
    if tree is None:
        raise ArcticHydraError(f"{run_dir}: run.json is missing; repeat the command of the run, which writes it again")
    ranks = str(tree.get("ranks", "auto"))
    if ranks == "auto":  # one per GPU, as while composing
        return RunJob(run_dir, options["gpus_per_node"] or 1, options["max_requeues"])
    if not re.fullmatch(r"[1-9][0-9]{0,8}", ranks):
        raise ArcticHydraError(
            f"{run_dir}/run.json: ranks: got {ranks[:60]!r}, expected auto or a number; repeat the command of the run, which "
            "writes it again"
        )
    return RunJob(run_dir, int(ranks), options["max_requeues"])


def script(options: dict[str, Any], count: int) -> str:
    """Return the sbatch script of an array of `count` runs, or of a single run; writes nothing."""
    snapshot = Path(options["folder"]) / "snapshot" if options["snapshot"] else None
    return render(options, count, python=_python(options), snapshot=snapshot)


def make_executor(options: dict[str, Any], sweep: Path, snapshot: Path | None) -> Any:
    """Return submitit's executor, which submits our scripts; needs no SLURM on this machine."""
    from submitit.slurm.slurm import SlurmExecutor, SlurmJob

    marker = slurm.script_marker(sweep)

    class Executor(SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 2  # `check_sbatch` reports missing commands

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            count = self.parameters["map_count"]
            return render(options, count, python=_python(options), snapshot=snapshot, marker=marker)

        def _internal_process_submissions(self, delayed_submissions: list[Any]) -> list[Any]:
            """Submit one script for all jobs; submitit's own method writes that of an array with another class."""
            self.parameters["map_count"] = len(delayed_submissions)
            if len(delayed_submissions) == 1:
                return list(super()._internal_process_submissions(delayed_submissions))
            pickles = [self.folder / f"{uuid.uuid4().hex}.pkl" for _ in delayed_submissions]
            for delayed, pickle in zip(delayed_submissions, pickles, strict=True):
                delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
                delayed.dump(pickle)
            first = self._submit_command("")
            tasks = list(range(self._num_tasks()))
            jobs = [SlurmJob(self.folder, f"{first.job_id}_{number}", tasks) for number in range(len(pickles))]
            for job, pickle in zip(jobs, pickles, strict=True):
                job.paths.move_temporary_file(pickle, "submitted_pickle")
            return jobs

    executor = Executor(folder=options["folder"], max_num_timeout=options["max_requeues"], python=_python(options))
    executor.parameters = {"time": options["timeout_min"], "nodes": options["nodes"], "ntasks_per_node": 1}
    return executor


def _python(options: dict[str, Any]) -> str:
    """Return the shell command that runs Python on the nodes."""
    return options["python"] or shlex.quote(sys.executable)


def arrays(run_dirs: Sequence[str], size: int, secrets: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the runs of each array in order: at most `size`, and as many as have room for their secrets in one variable."""
    array: list[str] = []
    held = 0
    for run_dir in run_dirs:
        needed = len(json.dumps({run_dir: secrets[run_dir]})) if secrets.get(run_dir) else 0
        if array and (len(array) == size or held + needed > _MOST_SECRET_BYTES):
            yield array
            array, held = [], 0
        array.append(run_dir)
        held += needed
    if array:
        yield array


def array_limit() -> int:
    """Return the maximum array size of the cluster, or SLURM's default of 1001 if it cannot be queried."""
    try:
        settings = slurm.command("scontrol", "show", "config")
    except slurm.SlurmError:
        return 1001
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", settings, re.MULTILINE)
    return max(1, int(match[1])) if match else 1001  # 0 where arrays are turned off


@contextmanager
def submission_environment(secrets: dict[str, Any], snapshot: Path | None) -> Iterator[None]:
    """Set the environment that a job inherits: without the current allocation, with the secrets and the snapshot."""
    from submitit.helpers import clean_env

    before = dict(os.environ)
    added = {name: value for name, value in before.items() if name in ("SLURM_CONF", "SLURM_CLUSTERS")}
    if secrets:
        added[SECRETS_VARIABLE] = json.dumps(secrets)
    if snapshot:
        code = [str(snapshot), str(snapshot / "launchers"), *filter(None, [before.get("PYTHONPATH")])]
        added["PYTHONPATH"] = os.pathsep.join(code)
    try:
        with clean_env() if "SLURM_JOB_ID" in before else nullcontext():
            os.environ.update(added)
            if not sys.flags.safe_path:  # set for our own processes; commands of `setup` may need their folder
                os.environ.pop("PYTHONSAFEPATH", None)
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def take_snapshot(folder: Path) -> Path:
    """Copy the checkout that contains this package, without ignored files; return the copy, from which jobs import.

    An installed package is copied alone. The name of the copy contains the git revision.
    """
    package = Path(sys.modules["arctic_hydra"].__file__ or "").resolve().parent
    root = package.parent
    state = git_state(root) if is_tracked(package / "__init__.py") else None
    revision = state["revision"][:12] if state else "installed"
    target = Path(tempfile.mkdtemp(prefix=f"snapshot-{revision}-", dir=folder))
    code_file.copy_to(target / CODE_FOLDER)
    if state is None:
        shutil.copytree(package, target / "arctic_hydra", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(Path(__file__).parent, target / "hydra_plugins" / "arctic_hydra")
        return target
    for file in tracked_and_new_files(root):
        if (root / file).is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, target / file)
    return target


def main() -> None:
    """Resubmit runs: read `{"sweep", "jobs": [{"run_dir", "launcher"}, ...]}` from standard input.

    Prints a line `[[run_dir, submission], ...]` per array.
    """
    code_file.take(sys.argv[1:], load=False)
    asked = json.load(sys.stdin)
    together: dict[str, list[str]] = {}
    for item in asked["jobs"]:
        together.setdefault(json.dumps(item["launcher"], sort_keys=True), []).append(item["run_dir"])
    try:
        check_sbatch()
        copied = Snapshot()
        for options, run_dirs in together.items():
            waiting = iter(run_dirs)
            for submissions in submit(json.loads(options), run_dirs, {}, Path(asked["sweep"]), copied):
                print(json.dumps([[next(waiting), submission] for submission in submissions]), flush=True)
    except ArcticHydraError as error:
        print_error(error)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
