"""Sweeps on the command line: composes and checks every job before the first one starts, then runs Hydra's sweeper and launcher.

`arctic_hydra.sweep` runs the jobs and collects their results.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks  # the plugin interface takes them, and nothing public makes them
from hydra.types import HydraContext

from arctic_hydra import config
from arctic_hydra.cli.composition import compose, search_path
from arctic_hydra.cli.composition.config_sources import ConfigCache
from arctic_hydra.cli.overrides import flags, is_hydra_override, normalize, of_first_job, search_samples, sweep_jobs
from arctic_hydra.errors import EXIT_DONE, ArcticHydraError, ConfigError, print_error
from arctic_hydra.launch import slurm_options
from arctic_hydra.launch.job import Job
from arctic_hydra.redaction import redact_override
from arctic_hydra.sweep import finish, slurm
from arctic_hydra.sweep.controller import SweepController, refuse_duplicates
from arctic_hydra.sweep.directory import Sweep
from arctic_hydra.sweep.pool import Slots

_ONE_BY_ONE = "hydra_plugins.arctic_hydra.basic.OneByOneLauncher"
"""Replaces Hydra's basic launcher, which would compose each job again from files that may have changed."""
_USED_HYDRA_KEYS = ("launcher", "sweeper", "sweep.dir", "searchpath")
"""The parts of Hydra's node that a sweep uses."""
RunOne = Callable[[dict[str, Any], list[str]], int]


class Multirun:
    """A composed `-m` command line."""

    def __init__(self, overrides: list[str], config_name: str, config_dir: str | None) -> None:
        self._name, self._dir = config_name, config_dir
        self._flags = flags(config_name, config_dir)
        self._cache = ConfigCache()  # a search composes jobs later, when the files may have been edited
        self._hydra_overrides = hydra_overrides = [item for item in overrides if is_hydra_override(item)]
        own = [item for item in overrides if not is_hydra_override(item)]
        self._search_path = [item for item in hydra_overrides if is_hydra_override(item, "searchpath")]
        # Hydra itself would keep the defaults of swept keys here: `model=hf,liger model.name_or_path=x` would then fail,
        # because the default model does not have this key.
        self.master = compose.compose_config(of_first_job(overrides), config_name, config_dir, self._cache)
        """The composition of the first job, whose launcher and sweeper are those of the sweep."""
        for item in hydra_overrides:
            if not any(is_hydra_override(item, part) for part in _USED_HYDRA_KEYS):
                raise ConfigError(
                    f"{item.partition('=')[0]}: has no effect on a sweep; remove it. Each job's directory is derived from its "
                    "config, below output_root=<folder>; hydra.sweep.dir=<folder> sets the directory of the sweep itself"
                )
        choices = self.master.choices
        self.sweeper, self.launcher = str(choices["hydra/sweeper"]), str(choices["hydra/launcher"])
        params = self.master.sweeper.get("params") or {}
        _refuse_commands_in_files(self.master, params, overrides)
        if self.sweeper == "basic":  # a grid would have every value of both; a search takes the command line's anyway
            given = {item.partition("=")[0].lstrip("+~") for item in own}
            params = {key: value for key, value in params.items() if key.lstrip("+~") not in given}
        self.overrides = [*(normalize(f"{key}={value}") for key, value in params.items()), *own]
        """The sweeper's `params`, then the command line, which has precedence, without Hydra's own overrides."""
        self.command = [*self._flags, *hydra_overrides, *self.overrides]
        """The arguments after `-m`."""

    @property
    def on_cluster(self) -> bool:
        """Whether the launcher submits jobs to a cluster."""
        return "gpus_per_node" in self.master.launcher

    def compose_job(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return one job's config."""
        whole = compose.compose_config([*self._search_path, *overrides], self._name, self._dir, self._cache)
        return compose.apply_launcher_resources(whole.job, self.master.launcher)

    def job(self, tree: dict[str, Any], overrides: Sequence[str], slots: Slots) -> Job:
        """Return the job as it runs in a slot, where `ranks=auto` means one rank per GPU of the slot."""
        # The launcher's settings determine the number of ranks on a cluster, so they are part of the command that repeats the job.
        own = [item for item in self._hydra_overrides if not is_hydra_override(item, "sweeper")]
        given = [*self._flags, *(own if self.on_cluster else self._search_path), *overrides]
        if tree["ranks"] == "auto" and slots.ranks:
            tree = {**tree, "ranks": str(slots.ranks)}
            given.append(f"ranks={slots.ranks}")
        return Job.of(compose.with_paths(tree), given)

    def samples(self) -> list[list[str]]:
        """Return the overrides of every job of a grid, or of sample jobs that cover every bound and choice of a search."""
        if self.sweeper == "basic":
            return sweep_jobs(self.overrides)
        return search_samples(self.overrides)


_KEY = re.compile(r"[+~]{0,2}[\w./@:-]+")


def _refuse_commands_in_files(master: compose.Composed, params: Mapping[str, Any], words: Sequence[str]) -> None:
    """Raise ConfigError if a config file alone would run code: of a model's repository, or commands of a launcher."""
    if strange := [key for key in params if not _KEY.fullmatch(key)]:
        raise ConfigError(f"hydra.sweeper.params: got the key {strange[0]!r}, expected the key of a config")
    if trusted := [key for key in params if key.endswith("trust_remote_code")]:
        key = trusted[0].lstrip("+")
        raise ConfigError(
            f"hydra.sweeper.params.{key}: lets code of another repository run; pass {key}=true on the command line"
        )
    given = [word.lstrip("+").partition("=")[0] for word in words]
    commands = [
        key for key in slurm_options.COMMANDS if master.launcher.get(key) and f"hydra.launcher.{key}" not in given
    ]
    if commands and "hydra/launcher" not in given:
        raise ConfigError(
            f"hydra.launcher.{commands[0]}: got a shell command from a config file, which runs only with a launcher that is "
            "chosen on the command line; pass hydra/launcher=slurm"
        )


class SweepPlan:
    """A sweep whose jobs, or samples of a search, are composed and checked; nothing is written yet."""

    def __init__(self, multirun: Multirun) -> None:
        self.multirun = multirun
        if multirun.on_cluster:
            slurm.check_options(multirun.master.launcher)
        samples = [(sample, multirun.compose_job(sample)) for sample in multirun.samples()]
        slots_wanted = multirun.master.launcher.get("slots")
        self.slots = (
            Slots.plan(slots_wanted, [str(tree["ranks"]) for _, tree in samples])
            if multirun.launcher == "local"
            else Slots(1)
        )
        self.listed = [(sample, multirun.job(tree, sample, self.slots)) for sample, tree in samples]
        self.jobs = {tuple(sample): job for sample, job in self.listed}

    @property
    def other_task(self) -> str | None:
        """The name of a job's task other than training, if there is one."""
        tasks = (job.run.task for job in self.jobs.values())
        return next((task.name for task in tasks if task is not config.Task.train), None)

    def sweep(self) -> Sweep:
        """Return the sweep, without jobs; raises ConfigError if they do not make one."""
        refuse_mixed_objectives(list(self.jobs.values()))
        is_grid = self.multirun.sweeper == "basic"
        if is_grid:
            refuse_duplicates(self.listed)
        return _sweep(self.multirun, list(self.jobs.values()), is_grid)


def run_sweep(overrides: list[str], config_name: str, config_dir: str | None, run_one: RunOne) -> int:
    """Run a sweep and return its exit code: 0 all jobs finished, 1 a job failed, 75 stopped early."""
    multirun = Multirun(overrides, config_name, config_dir)
    plan = SweepPlan(multirun)
    if plan.other_task:
        if multirun.on_cluster:
            raise ConfigError(
                f"task: got {plan.other_task}, which runs on this machine; pass hydra/launcher=basic instead of {multirun.launcher}"
            )
        return _run_each([(multirun.compose_job(sample), list(sample)) for sample in plan.jobs], run_one)
    return run_jobs(plan, plan.sweep())


def run_jobs(plan: SweepPlan, sweep: Sweep) -> int:
    """Run the jobs of a planned sweep and return its exit code."""
    multirun = plan.multirun
    controller = SweepController(
        sweep,
        lambda wanted: multirun.job(multirun.compose_job(wanted), wanted, plan.slots),
        plan.jobs,
        plan.slots,
        "hydra.sweep.dir" if multirun.master.sweep_dir else "output_root",
    )
    grid = [list(item) for item in plan.jobs] if sweep.kind == "grid" else None
    if multirun.master.launcher.get("dry_run"):
        _launch(multirun, controller, grid)
        return EXIT_DONE
    try:
        return _run(multirun, controller, grid)
    finally:
        controller.close()


def _run(multirun: Multirun, controller: SweepController, grid: list[list[str]] | None) -> int:
    if grid is not None:  # a search begins after its settings are checked
        controller.begin()
        controller.register(list(enumerate(grid)))
    try:
        _launch(multirun, controller, grid)
    except KeyboardInterrupt:
        controller.stop_reason = "interrupted"
    except ArcticHydraError:
        if any(entry.submission for entry in controller.sweep.jobs):
            finish.finish_sweep(controller)  # report the jobs that were submitted
        raise
    return finish.finish_sweep(controller)


def _launch(multirun: Multirun, controller: SweepController, grid: list[list[str]] | None) -> None:
    """Pass a grid to the launcher, or a search to its sweeper, which generates jobs as it goes."""
    with search_path.hydra_with() as loader:
        context: Any = HydraContext(config_loader=loader, callbacks=Callbacks())
        given: Any = {"config": multirun.master.unresolved, "hydra_context": context, "task_function": controller}
        launcher = create_plugin(multirun.master.launcher)
        if grid is not None:
            # Hydra's grid sweeper would compose every job once more, only to validate it.
            launcher.setup(**given)
            launcher.launch(grid, initial_job_idx=0)
        else:
            sweeper = create_plugin(multirun.master.sweeper)
            sweeper.own_launcher = launcher
            sweeper.setup(**given)
            sweeper.sweep(multirun.overrides)


def create_plugin(settings: Mapping[str, Any]) -> Any:
    """Create a launcher or sweeper from plain settings, whose class and keys `compose_config` has checked.

    Hydra's own way would resolve the settings again, and import and call what is in them.
    """
    target = _ONE_BY_ONE if settings["_target_"] == compose.BASIC_LAUNCHER else settings["_target_"]
    module, _, name = target.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    return cls(**{key: value for key, value in settings.items() if key != "_target_"})


def _sweep(multirun: Multirun, jobs: list[Job], is_grid: bool) -> Sweep:
    first = jobs[0].run
    if is_grid:
        what: Any = [_job_identity(job) for job in jobs]
    else:
        sweeper = multirun.master.sweeper
        settings = {key: value for key, value in sweeper.items() if key not in ("n_trials", "n_jobs", "params")}
        objective = [first.objective, first.maximizes]
        what = [sorted(multirun.overrides), settings, objective, _job_identity(jobs[0])]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:10]
    chosen = multirun.master.sweep_dir
    path = (Path(chosen) if chosen else Path(first.output_root) / first.name / "sweeps" / digest).absolute()
    return Sweep(
        path=path,
        id=digest,
        name=first.name,
        kind="grid" if is_grid else "search",
        command=[redact_override(item) for item in multirun.command],
        objective=first.objective,
        maximize=first.maximizes,
        launcher=multirun.launcher,
        working_directory=str(Path.cwd()),
    )


def _job_identity(job: Job) -> list[str]:
    """Return name and id of the job's run, which identify it independently of output_root."""
    return [job.run.name, job.directory.path.name]


def refuse_mixed_objectives(jobs: list[Job]) -> None:
    """Raise ConfigError if the jobs of a sweep do not share one objective."""
    for key in ("objective", "maximizes"):
        values = sorted({str(getattr(job.run, key)) for job in jobs})
        if len(values) > 1:
            name = "objective_direction" if key == "maximizes" else key
            raise ConfigError(f"{name}: got {' and '.join(values)}, but all jobs of a sweep must have the same")


def _run_each(jobs: list[tuple[dict[str, Any], list[str]]], run_one: RunOne) -> int:
    """Run a task other than training for each job in turn; return the first nonzero exit code, else 0."""
    codes = []
    for number, (tree, overrides) in enumerate(jobs):
        print(f"job {number}: {' '.join(redact_override(item) for item in overrides)}", flush=True)
        try:
            codes.append(run_one(tree, overrides))
        except ArcticHydraError as error:
            print_error(error)
            codes.append(error.exit_code)
    return next((code for code in codes if code), EXIT_DONE)
