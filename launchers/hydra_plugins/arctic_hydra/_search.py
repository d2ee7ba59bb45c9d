"""The search behind `hydra/sweeper=optuna`: runs the trials of an Optuna study in the sweep's directory.

A batch of values depends only on the seed and on the results of earlier trials, so that a killed search continues
unchanged. Values of `choice()` and of lists are represented as command-line text.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from hydra_plugins.arctic_hydra.sweep_launcher import SweepLauncher

from arctic_hydra.cli import overrides
from arctic_hydra.errors import ConfigError
from arctic_hydra.files.ownership import misplaced
from arctic_hydra.metrics import objective
from arctic_hydra.redaction import redact_override
from arctic_hydra.sweep.controller import SweepController
from arctic_hydra.sweep.directory import FAILED, FINISHED, OVER, PRUNED, SweepJob, states

SAMPLERS = ("tpe", "random", "grid", "cmaes")
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "hyperband": "HyperbandPruner",
    "successive_halving": "SuccessiveHalvingPruner",
}
_MANY = 1_000_000


class Search:
    """One study and its jobs."""

    def __init__(
        self,
        controller: SweepController,
        launcher: SweepLauncher,
        arguments: Sequence[str],
        *,
        n_trials: int | None,
        n_jobs: int | None,
        sampler: str,
        seed: int,
        pruner: str,
        pruner_kwargs: Mapping[str, Any],
        params: Mapping[str, str] | None,
    ) -> None:
        parsed = {item.get_key_element(): item for item in overrides.parse(list(arguments))}
        self._space = {key: item for key, item in parsed.items() if item.is_sweep_override()}
        self._fixed = [str(item.input_line) for key, item in parsed.items() if key not in self._space]
        self._controller, self._launcher = controller, launcher
        self._n_trials, self._n_jobs = n_trials, controller.slots.count if n_jobs is None else n_jobs
        self._sampler, self._seed, self._pruner, self._pruner_kwargs = sampler, seed, pruner, dict(pruner_kwargs)
        self._trials: dict[int, Any] = {}
        self._unfinished: set[int] = set()
        """Trials without a result that this process ran; the next start runs them again."""
        self._check()

    def _check(self) -> None:
        problems = []
        for name, value, known in (("sampler", self._sampler, SAMPLERS), ("pruner", self._pruner, PRUNERS)):
            if value not in known:
                problems.append(f"hydra.sweeper.{name}: got {value!r}, expected one of {', '.join(known)}")
        if not self._space:
            problems.append("-m: got nothing to search; give a key choice(a,b), range(a,b), interval(a,b) or a,b")
        if self._sampler == "grid":
            intervals = [key for key, item in self._space.items() if item.is_interval_sweep()]
            problems += [
                f"{key}: got an interval, but hydra.sweeper.sampler=grid needs choice() or range()" for key in intervals
            ]
            overrides.check_size(self._space.values())
        elif self._n_trials is None or not 1 <= self._n_trials <= _MANY:
            problems.append(f"hydra.sweeper.n_trials: got {self._n_trials}, expected 1 or more, at most {_MANY:,}")
        if not 1 <= self._n_jobs <= _MANY:
            problems.append(f"hydra.sweeper.n_jobs: got {self._n_jobs}, expected 1 or more, at most {_MANY:,}")
        if not 0 <= self._seed < 2**64:
            problems.append(f"hydra.sweeper.seed: got {self._seed}, expected 0 or more, below 2^64")
        if self._sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            problems.append("hydra.sweeper.sampler: got cmaes, which needs the package of that name; pip install cmaes")
        run = self._controller.composed[0].run
        evaluated = run.trainer.eval_frequency or not run.objective.startswith(("auto", "eval/"))
        if self._pruner in PRUNERS and self._pruner != "none" and not evaluated:
            problems.append(
                f"hydra.sweeper.pruner: got {self._pruner}, but trainer.eval_frequency=0, so that jobs have no "
                "intermediate evaluations; set trainer.eval_frequency, or hydra.sweeper.pruner=none"
            )
        for key in self._space:
            try:
                self._distribution(key)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        make_pruner(self._pruner, self._pruner_kwargs)

    def _distribution(self, key: str) -> Any:
        return distribution(key, self._space[key], as_text=self._sampler == "grid")

    def run(self) -> None:
        """Run batches of trials until there are `n_trials`, or the sweep is stopped."""
        self._study = self._open()
        if self._pruner != "none":
            self._controller.observer = self._observe
        while not self._controller.over and (batch := self._next_batch()):
            self._run_batch(batch)

    def _open(self) -> Any:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._controller.begin()
        sweep = self._controller.sweep
        path = sweep.path / "study.log"
        repair_journal(path)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=sweep.id,
            direction="maximize" if sweep.maximize else "minimize",
            pruner=make_pruner(self._pruner, self._pruner_kwargs),
            load_if_exists=True,
        )
        if self._sampler == "grid":
            choices = [[(key, text) for text in item.sweep_string_iterator()] for key, item in self._space.items()]
            for combination in itertools.product(*choices):
                study.enqueue_trial(dict(combination), skip_if_exists=True)
        return study

    def _next_batch(self) -> list[Any]:
        """Return trials to run: first those that an earlier start did not finish, then new ones."""
        import optuna
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = [trial for trial in running if trial.number not in self._unfinished]
        space = {key: self._distribution(key) for key in self._space}
        if left:
            # A kill while they were asked for may have kept Optuna from storing some of their values, which are drawn now.
            self._study.sampler = make_sampler(self._sampler, [self._seed, left[0].number], self._n_jobs)
            batch = [optuna.trial.Trial(self._study, trial._trial_id) for trial in left[: self._n_jobs]]
            for trial in batch:
                for key, values in space.items():
                    trial._suggest(key, values)  # what `ask` calls; returns a value that is stored
            return batch
        waiting = len(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        asked = len(self._study.trials) - waiting
        wanted = waiting if self._sampler == "grid" else (self._n_trials or 0) - asked
        # A new sampler for each batch, so that its draws depend only on earlier trials, not on when this process started.
        self._study.sampler = make_sampler(self._sampler, [self._seed, asked], self._n_jobs)
        return [self._study.ask(space) for _ in range(min(wanted, self._n_jobs))]

    def _run_batch(self, batch: list[Any]) -> None:
        self._trials = {trial.number: trial for trial in batch}
        wanted = [
            (trial.number, [*self._fixed, *(f"{key}={trial.params[key]}" for key in self._space)]) for trial in batch
        ]
        pairs = self._controller.register(wanted)
        # Several trials may be the same run: it runs once, and all of them get its result.
        pruned = [entry for entry in self._controller.sweep.jobs if entry.mark == PRUNED]
        once: dict[str, SweepJob] = {}
        for entry in [*pruned, *(entry for entry, _ in pairs)]:
            once.setdefault(entry.run_dir, entry)
        self._launcher.run([pair for pair in pairs if once[pair[0].run_dir] is pair[0]])
        for entry, _ in pairs:
            first = once[entry.run_dir]
            entry.submission, entry.mark, entry.problem = first.submission, first.mark, first.problem
            self._report_result(entry)
        self._controller.sweep.save()

    def _report_result(self, entry: SweepJob) -> None:
        from optuna.trial import TrialState

        trial, value = self._trials[entry.number], self._controller.value(entry)
        if value is not None:
            self._study.tell(trial, value)
        elif entry.mark == PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif self._failed_by_itself(entry):
            self._study.tell(trial, state=TrialState.FAIL)
        else:  # stopped, killed, never started, or detached; a trial reported as failed could not run again
            self._unfinished.add(entry.number)

    def _failed_by_itself(self, entry: SweepJob) -> bool:
        """Whether a run failed in a way that it would fail again: with an error, or without an objective."""
        [(state, _)] = states(self._controller.sweep, [entry])
        status = entry.directory.record().get("status")
        if state not in OVER or status == FINISHED:
            return state in OVER
        errors = entry.directory.errors()
        # Errors that were written on behalf of a killed or stalled rank have no time.
        return status == FAILED and not entry.problem and bool(errors) and errors[0]["time"] > 0

    def _observe(self, entry: SweepJob, rows: list[dict[str, Any]]) -> bool:
        """Report a running job's evaluations to the study; return whether its pruner stops the job."""
        trial = self._trials[entry.number]
        reported = self._study._storage.get_trial(trial._trial_id).intermediate_values
        name = self._controller.sweep.objective
        for row in rows:
            value = objective([row], "eval/loss" if name == "auto" else name)
            if value is not None and row["step"] > 0 and row["step"] not in reported:
                trial.report(value, row["step"])
                if trial.should_prune():
                    return True
        return False


def distribution(key: str, item: Override, *, as_text: bool) -> Any:
    """Return Optuna's distribution for a sweep in Hydra's syntax; raises ConfigError for unsupported sweeps."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if redact_override(f"{key}=x") != f"{key}=x":
        raise ConfigError(f"{key}: names a secret, whose values the search would store in its study.log; remove it")
    sweep: Any = item.value()
    log = not isinstance(sweep, Glob) and "log" in sweep.tags
    try:
        if isinstance(sweep, ChoiceSweep | RangeSweep) and sweep.shuffle:
            raise ValueError("a search chooses the order itself; remove shuffle")
        if isinstance(sweep, IntervalSweep):
            kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
            return kind(sweep.start, sweep.end, log=log)
        if item.is_range_sweep() and not as_text:
            values = [float(value) if not isinstance(value, int) else value for value in sweep.range()]
            whole = all(isinstance(value, int) for value in values)
            if log and not (whole and sweep.step == 1):
                raise ValueError("a logarithmic range has no step; pass tag(log,interval(a,b)), or remove the tag")
            kind = IntDistribution if whole else FloatDistribution
            return kind(min(values), max(values), step=abs(sweep.step), log=log)
        if log:
            raise ValueError("choices cannot be logarithmic; remove the tag")
        return CategoricalDistribution(list(item.sweep_string_iterator()))
    except ValueError as error:
        text = str(item.input_line).partition("=")[2]
        raise ConfigError(f"{key}: got {text}, which cannot be searched: {error}") from error


def make_sampler(name: str, seeds: list[int], n_jobs: int) -> Any:
    """Return a new sampler, seeded by several numbers; grids are enqueued and need only a placeholder."""
    import numpy
    from optuna import samplers

    seed = int(numpy.random.SeedSequence(seeds).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant_liar is marked experimental since 2021
        if name == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=n_jobs > 1)
        return samplers.CmaEsSampler(seed=seed) if name == "cmaes" else samplers.RandomSampler(seed=seed)


def make_pruner(name: str, arguments: dict[str, Any]) -> Any:
    """Return the pruner; raises ConfigError for invalid arguments."""
    from optuna import pruners

    given = {"percentile": 25.0, **arguments} if name == "percentile" else arguments
    try:
        if name == "hyperband":  # checks these only when it prunes for the first time
            shared = {key: given[key] for key in ("min_resource", "reduction_factor") if key in given}
            pruners.SuccessiveHalvingPruner(**shared)
        return getattr(pruners, PRUNERS[name])(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.sweeper.pruner_kwargs: got {arguments} for {name}: {error}") from error


def repair_journal(path: Path) -> None:
    """Remove an incomplete line and Optuna's lock, which a kill may leave; the sweep's own lock excludes other processes.

    Raises ConfigError for a file that is not a journal.
    """
    Path(f"{path}.lock").unlink(missing_ok=True)
    if problem := misplaced(path.parent, files=[path.name]):
        raise ConfigError(problem)
    if path.exists():
        content = path.read_bytes()
        whole = content.rpartition(b"\n")[0]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                fits = isinstance(json.loads(line), dict)
            except ValueError:
                fits = False
            if not fits:
                raise ConfigError(
                    f"{path}:{number}: not a line of a search; restore the file, or delete the sweep's directory to search again"
                )
        if not content.endswith(b"\n"):
            os.truncate(path, len(whole) + 1 if whole else 0)
