"""The run that another one extends: its command line, and whether it can be extended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arctic_hydra import config
from arctic_hydra.component import flatten
from arctic_hydra.errors import ConfigError
from arctic_hydra.files import code_file
from arctic_hydra.files.start_paths import hint_of_run
from arctic_hydra.human_numbers import shorten
from arctic_hydra.redaction import redact
from arctic_hydra.redaction.masking import MASK
from arctic_hydra.run_directory import FINISHED, RunDirectory

_KEY = "extend="
_FLAGS = ("--config-name", "--config-dir")
_OF_ONE_START = frozenset(
    "task from_checkpoint preview_examples fresh trainer.exit_iteration trainer.exit_iteration_this_run trainer.max_minutes".split()
)
"""Settings of one command that do not carry over to another run."""
_MAY_DIFFER = (
    "extend",
    "extend_schedule",
    "trainer.epochs",
    "trainer.train_iters",
    "trainer.min_iterations",
    "trainer.eval_",
    "trainer.spike_",
    "trainer.max_consecutive_skipped_steps",
    "optimizer.lr",
    "scheduler.",
    "callback.",
    "data.eval_",
)
"""Beginnings of the keys in which a run may differ from the one that it extends."""


def with_overrides_of_extended_run(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the overrides of the run that `extend=<directory>` names before its own.

    Overrides of the command line replace those of the run. What lets code run does not carry over: `code=` and
    `trust_remote_code=true` have to be repeated. Raises ConfigError if the directory is not that of a run, or if they are missing.
    """
    named = [item.removeprefix(_KEY) for item in arguments if item.startswith(_KEY)]
    if not named:
        return list(arguments)
    if len(named) > 1 or "," in named[0]:
        raise ConfigError(
            f"extend: got {shorten(' and '.join(named))}, expected the directory of one run; extend one per command"
        )
    stored = _record_of(named[0]).get("overrides", [])
    given = {_key_of(item) for item in [*arguments, *code_file.typed_arguments()]}
    kept, missing = [], []
    for item in _joined(stored):
        key = _key_of(item[0])
        if key in _OF_ONE_START or key.startswith(("hydra.", "hydra/")) or _is_replaced(key, given):
            continue
        # No program writes flags other than `_FLAGS` there, and none of their values is a flag.
        if lets_code_run(item[-1]) or item[-1].startswith("-") or MASK in item[-1]:
            missing.append(" ".join(item) if MASK not in item[-1] else f"{key}=...")
        else:
            kept += item
    if missing:
        raise ConfigError(
            f"extend: the command of {named[0]} had {' and '.join(missing)}, which is not taken from a file; repeat it in this command"
        )
    return [*kept, *arguments]


def lets_code_run(override: str) -> bool:
    """Whether an override, or the value of a flag, lets code run that is neither of this package nor of an installed extension."""
    return override.startswith("code=") or override.lower().endswith("trust_remote_code=true")


def _joined(stored: Sequence[str]) -> Iterator[list[str]]:
    """Yield each override, and each flag with its value."""
    items = iter(stored)
    for item in items:
        yield [item, next(items, "")] if item in _FLAGS else [item]


def _key_of(item: str) -> str:
    return item.partition("=")[0].lstrip("+~")


def _is_replaced(key: str, given: set[str]) -> bool:
    """Whether the command line sets a key, or chooses the option of the group whose field it is."""
    return key in given or any(key.startswith(f"{other.replace('/', '.')}.") for other in given)


def _record_of(text: str) -> dict[str, Any]:
    record = RunDirectory(Path(text).expanduser()).record() if text else {}
    if not record:
        raise ConfigError(
            f"extend: got {shorten(text) or 'nothing'}, which holds no record.json; expected the directory of a run, such as "
            f"outputs/default/1a2b3c4d5e{hint_of_run(Path(text).expanduser()) if text else ''}"
        )
    return record


def _settings(run: config.Run, *, defaults: bool = True) -> dict[str, Any]:
    """Return the settings that affect the result of a run as they are in a record, by dotted key."""
    return flatten(json.loads(json.dumps(redact(config.identity(run, defaults=defaults)), default=str)))


def check_extended_run(run: config.Run) -> None:
    """Raise ConfigError unless the run that `run.extend` names has ended, and differs only in its length and schedule."""
    if run.extend is None:
        return
    record, directory = _record_of(run.extend), RunDirectory(Path(run.extend))
    if holder := directory.holder():
        raise ConfigError(f"extend: {run.extend} is in use by {holder}; stop that run, or wait for its end")
    if not record.get("identity"):
        raise ConfigError(
            f"extend: the record of {run.extend} does not hold its settings; pass init_from=<run> for its weights only"
        )
    theirs, ours, chosen = flatten(record["identity"]), _settings(run), _settings(run, defaults=False)
    # A key that the record lacks is newer than the run; at its default, it changes nothing.
    differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key) and (key in theirs or key in chosen)]
    if refused := [key for key in differing if not key.startswith(_MAY_DIFFER)]:
        words = ", ".join(f"{key}: {theirs.get(key)} there, {ours.get(key)} here" for key in refused[:5])
        raise ConfigError(
            f"extend: {run.extend} differs in {words}; only length, schedule, learning rate, evaluation and callbacks may differ, so "
            "remove the overrides, or pass init_from=<run> instead, which takes its weights only"
        )
    done = (record.get("result") or {}).get("step", 0)
    if 0 < run.trainer.train_iters <= done:
        raise ConfigError(
            f"extend: {run.extend} has {done} steps, and trainer.train_iters={run.trainer.train_iters} adds none; raise it"
        )
    lengths = ("trainer.epochs", "trainer.train_iters", "trainer.min_iterations")
    if record.get("status") == FINISHED and not set(lengths) & set(differing):
        so_far = ", ".join(f"{key}={theirs.get(key)}" for key in lengths if theirs.get(key))
        raise ConfigError(
            f"extend: {run.extend} is finished with {so_far}, and this run is not longer; raise one of them, such as "
            f"trainer.epochs={int(theirs.get('trainer.epochs') or 0) + 1}"
        )
