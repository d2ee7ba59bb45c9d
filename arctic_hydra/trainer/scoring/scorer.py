"""Computes the scores that are missing: each rank scores and writes its own parts."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import Timeout

from arctic_hydra import distributed
from arctic_hydra.data.base import Loader
from arctic_hydra.data.batch import Batch
from arctic_hydra.data.cache.entries import SCORES, lock_of
from arctic_hydra.errors import ConfigError
from arctic_hydra.human_numbers import format_count, format_seconds
from arctic_hydra.trainer.scoring.score_plan import ScorePlan, plans_of
from arctic_hydra.trainer.scoring.score_store import Entry, Records, entry_key, open_root
from arctic_hydra.trainer.scoring.scored_loader import ScoredLoader, Scores

if TYPE_CHECKING:
    from arctic_hydra.trainer.toolbox import Toolbox

log = logging.getLogger("arctic_hydra.trainer")

SECONDS_BETWEEN_LINES = 5.0
LOCK_SECONDS = 10.0
"""Time after which ranks that wait for the lock of another process meet in a collective, so that none times out."""


@dataclass(frozen=True)
class Scoring:
    """What is stored for each supervised position, and everything that its numbers depend on but the documents."""

    about: dict[str, Any]
    """JSON values: the weights by checksum, dtype, model, and so on."""
    dtype: np.dtype[Any]
    """Fields of a record; each is a key of what is computed."""

    def entry(self, root: Path, plan: ScorePlan) -> Entry:
        """Return the entry of a source's documents, which may not exist yet."""
        rows = {"packed": plan.options.packing, "batch_tokens": plan.options.pack_tokens}
        about = {"documents": plan.documents.key, **rows, "record": self.dtype.descr, **self.about}
        return Entry(root / entry_key(about), about, self.dtype, plan.sizes)


Compute = Callable[[Batch], dict[str, torch.Tensor]]
"""Returns each field of the records of a batch, [K] or [K, n]; collective."""


def store_scores(tools: Toolbox, scoring: Scoring, directory: Path, model: Callable[[], Compute]) -> bool:
    """Make the loaders of `tools` attach the scores of their documents; compute those that are missing. Collective.

    `model` is called if there are any, and returns what computes them. Returns whether all are complete: a request to stop
    ends this between two parts, and the next call continues. Raises ConfigError if `directory` cannot hold them.
    """
    loaders = {"loader": tools.loader, "eval_loader": tools.eval_loader}
    if tools.evaluates:
        del loaders["loader"]
    root = directory / SCORES
    if tools.world.is_main:
        root = open_root(directory)
    distributed.barrier()
    wanted = {name: _wanted(loader, scoring, root) for name, loader in loaders.items() if loader is not None}
    compute: Compute | None = None
    for plan, entry in {entry.key: (plan, entry) for pairs in wanted.values() for plan, entry in pairs}.values():
        with _locked(tools, entry):
            missing = _missing(tools, entry)
            if not missing:
                _say(tools, f"scores of {plan.name} are complete: {len(plan):,} documents, {entry.path}")
                continue
            compute = compute or model()
            if not _Pass(tools, plan, entry, compute).run(missing):
                return False
    for name, pairs in wanted.items():
        loader = loaders[name]
        assert loader is not None
        setattr(tools, name, ScoredLoader(loader, [Scores(plan, entry, entry.read()) for plan, entry in pairs]))
    return True


def _wanted(loader: Loader, scoring: Scoring, root: Path) -> list[tuple[ScorePlan, Entry]]:
    return [(plan, scoring.entry(root, plan)) for plan in plans_of(loader, scoring.dtype.itemsize)]


def _missing(tools: Toolbox, entry: Entry) -> list[int]:
    """Return the missing parts, as the first rank finds them. Raises ConfigError on all ranks if they do not fit on the disk."""
    answer: tuple[list[int], str] = ([], "")
    if tools.world.is_main:
        if not entry.path.exists():
            entry_missing = list(range(len(entry.sizes)))
        else:
            entry_missing = entry.missing()
        answer = entry_missing, _space_problem(entry, entry_missing)
        if entry_missing and not answer[1]:
            entry.create()
    missing, problem = distributed.broadcast_object(answer)
    if problem:
        raise ConfigError(problem)
    return missing  # type: ignore[no-any-return]


def _space_problem(entry: Entry, missing: list[int]) -> str:
    needed = sum(entry.sizes[index] for index in missing) * entry.dtype.itemsize
    free = shutil.disk_usage(entry.path.parent).free
    if free >= needed:
        return ""
    return (
        f"trainer.scores_dir: {free / 2**30:.3g} GiB are free at {entry.path.parent}, but the scores need {needed / 2**30:.3g} GiB; free "
        "space, or pass trainer.scores_dir=<a folder on a larger disk>"
    )


@contextmanager
def _locked(tools: Toolbox, entry: Entry) -> Iterator[None]:
    """Hold the lock of an entry, so that only this run computes it; ranks wait for another run in short collectives. Collective."""
    lock, told = lock_of(entry.path), False
    while not distributed.broadcast_object(tools.world.is_main and _acquire(lock)):
        if not told:
            _say(tools, f"waiting for another process that computes the same scores (lock {lock.lock_file})")
        told = True
    try:
        yield
        distributed.barrier()
    finally:
        if tools.world.is_main:
            lock.release()


def _acquire(lock: Any) -> bool:
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        return False
    except OSError as error:
        raise ConfigError(
            f"trainer.scores_dir: cannot lock {lock.lock_file} ({error.strerror}); pass trainer.scores_dir=<another folder>"
        ) from error
    return True


class _Pass:
    """One pass over the missing parts of a source."""

    def __init__(self, tools: Toolbox, plan: ScorePlan, entry: Entry, compute: Compute) -> None:
        self._tools, self._plan, self._entry, self._compute = tools, plan, entry, compute
        self._started = self._last_line = time.monotonic()
        self._tokens = 0

    def run(self, missing: list[int]) -> bool:
        """Compute the parts, one per rank at a time; return False if a rank was asked to stop."""
        world, parts = self._tools.world, len(self._entry.sizes)
        self._say(f"{parts - len(missing)} of {parts} parts are stored, {len(self._plan):,} documents in all")
        for first in range(0, len(missing), world.size):
            if distributed.sum_over_ranks([self._asked_to_stop()])[0]:
                self._say(f"stopped after {parts - len(missing) + first} of {parts} parts")
                return False
            chosen = missing[first : first + world.size]
            mine = chosen[world.rank] if world.rank < len(chosen) else None
            records = self._score(mine, max(len(self._plan.batches_of(part)) for part in chosen))
            if mine is not None:
                self._entry.write(mine, records)
            self._progress(missing, first + len(chosen))
        return True

    def _asked_to_stop(self) -> int:
        return int(self._tools.stop.requested(look_for_file=self._tools.world.is_main))

    def _score(self, part: int | None, batches: int) -> Records:
        """Return the records of a part; ranks with fewer batches than others score an empty one, for the collectives of ZeRO-3."""
        mine = self._plan.batches_of(part) if part is not None else range(0)
        found = []
        for place in range(batches):
            batch = self._plan.batch(mine[place] if place < len(mine) else len(self._plan.bounds))
            columns = self._compute(batch.to(self._tools.device))
            self._tokens += batch.num_tokens
            if place < len(mine):
                records_K = np.empty(batch.num_supervised, self._entry.dtype)
                for name in self._entry.dtype.names or ():
                    records_K[name] = columns[name].cpu().numpy()
                found.append(records_K)
        return np.concatenate([np.empty(0, self._entry.dtype), *found])

    def _progress(self, missing: list[int], done: int) -> None:
        [tokens] = distributed.sum_over_ranks([self._tokens])
        now, parts = time.monotonic(), len(self._entry.sizes)
        if done < len(missing) and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        seconds = max(now - self._started, 1e-6)
        left = "" if done == len(missing) else f", left {format_seconds(seconds / done * (len(missing) - done))}"
        self._say(
            f"{parts - len(missing) + done} of {parts} parts, {format_count(tokens / seconds)} tokens/s{left}"
            if left
            else f"done, {format_count(tokens / seconds)} tokens/s, {self._entry.path}"
        )

    def _say(self, text: str) -> None:
        _say(self._tools, f"scoring {self._plan.name}: {text}")


def _say(tools: Toolbox, text: str) -> None:
    if tools.world.is_main:
        log.info("%s", text)
