"""Where weights come from: a checkpoint of this or another run, or an export; found, verified, and put into a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.checkpoint.store import MANIFEST, CheckpointStore
from arctic_hydra.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SHOWN = 5


@dataclass(frozen=True)
class Weights:
    """Weights on disk that were verified as far as their kind allows."""

    path: Path
    step: int | None
    """Completed optimizer steps of a checkpoint; None for an export."""


def find_checkpoint(root: Path, which: str | None) -> Weights:
    """Return the checkpoint that `from_checkpoint` names; collective, and the same on every rank.

    `which` is a step, `best`, the path of a checkpoint (or of the directory that holds several), or None for the
    newest good one below `root`. Every file is hashed; damage is a CheckpointError, never a silent second choice,
    unless the newest was asked for.
    """
    store = CheckpointStore(root, distributed.World.from_env().rank)
    if which is not None and which != "best" and not which.isdigit():
        path = Path(which)
        nested = [path, path / "checkpoints"]
        holder = next((folder for folder in nested if CheckpointStore(folder, 1).steps()), None)
        if holder is None:
            found = store.verified(path)
            return Weights(found.path, found.step)
        store, which = CheckpointStore(holder, distributed.World.from_env().rank), None
    if which is None:
        newest = store.newest()
        if newest is None:
            raise CheckpointError(
                f"{store.root} holds no checkpoint; train first, or pass from_checkpoint=<path of a checkpoint>"
            )
        return Weights(newest.path, newest.step)
    found = store.best() if which == "best" else store.at(int(which))
    return Weights(found.path, found.step)


def find_weights(path: Path) -> Weights:
    """Return what `init_from` names: an export, a checkpoint, or the directory of a run (its newest checkpoint)."""
    if is_export(path):
        return Weights(path, None)
    return find_checkpoint(path, str(path))


def is_export(path: Path) -> bool:
    """Whether `path` holds safetensors files of a model or an adapter."""
    return any(path.glob("*.safetensors"))


def initialise(model: torch.nn.Module, weights: Weights) -> None:
    """Set every parameter and persistent buffer of `model` from `weights`; collective under ZeRO-3.

    Raises CheckpointError when a name or a shape differs: nothing is left at random, nothing is left over.
    """
    import torch

    from arctic_hydra.checkpoint.weights import gathered

    stored = dict(_stored(model, weights))
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        names.setdefault(id(value), []).append(name)
    wanted = {found: state[tied[0]] for tied in names.values() for found in tied if found in stored}
    absent = [tied[0] for tied in names.values() if not any(name in stored for name in tied)]
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in wanted.items()}
    problems = [
        _listed("the model has no", sorted(stored.keys() - wanted.keys())),
        _listed("it lacks", absent),
        _listed(
            "the shapes differ of",
            [f"{n} ({tuple(stored[n].shape)}, model {s})" for n, s in shapes.items() if stored[n].shape != s],
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f"the weights in {weights.path} are not of this model: {'; '.join(filter(None, problems))}. "
            "Choose the model (and its shape) that they were saved from"
        )
    with torch.no_grad():
        for name, value in wanted.items():
            with gathered(value, writes=True):
                if value.numel():  # under ZeRO-3 rank 0 holds the whole, and gives the others their part
                    value.copy_(stored[name])


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}" if names else ""


def _stored(model: torch.nn.Module, weights: Weights) -> Iterator[tuple[str, Any]]:
    if weights.step is not None or (weights.path / MANIFEST).exists():
        from arctic_hydra.checkpoint.consolidate import checkpoint_weights

        yield from checkpoint_weights(weights.path).items()
        return
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (weights.path / "config.json").exists():
        raise CheckpointError(
            f"{weights.path} is a PEFT adapter, which holds no full weights; pass a merged export, or a checkpoint"
        )
    index = weights.path / "model.safetensors.index.json"
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    )
    for name in files:
        try:
            yield from load_file(weights.path / name).items()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{weights.path / name} cannot be read: {error}") from error
