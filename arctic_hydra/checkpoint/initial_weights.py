"""Where weights come from: a checkpoint of this or another run, or an export; found, verified, and put into a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.checkpoint.store import MANIFEST, Checkpoint, CheckpointStore
from arctic_hydra.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_SHOWN = 5
UNCHECKED = "unchecked"
"""Stands for the checksum of weights that are held in another form when they are loaded again: quantised ones."""
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Weights:
    """Weights on disk that were verified as far as their kind allows."""

    path: Path
    step: int | None
    """Completed optimizer steps of a checkpoint; None for an export."""
    frozen: str | None = None
    """The checksum of the frozen weights that it leaves out, or UNCHECKED; None where it holds everything."""
    stop_tokens: tuple[int, ...] | None = None
    """Ids of the tokens that turns were trained to end in; None of an export, and of checkpoints before this was kept."""


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
            return _as_weights(store.verified(path))
        store, which = CheckpointStore(holder, distributed.World.from_env().rank), None
    if which is None:
        newest = store.newest()
        if newest is None:
            raise CheckpointError(
                f"{store.root} holds no checkpoint; train first, or pass from_checkpoint=<path of a checkpoint>"
            )
        return _as_weights(newest)
    return _as_weights(store.best() if which == "best" else store.at(int(which)))


def _as_weights(found: Checkpoint) -> Weights:
    stops = found.manifest.get("stop_tokens")
    frozen = found.manifest["identity"].get("frozen_weights")
    return Weights(found.path, found.step, frozen, None if stops is None else tuple(stops))


def find_weights(path: Path) -> Weights:
    """Return what `init_from` names: an export, a checkpoint, or the directory of a run (its newest checkpoint)."""
    if is_export(path):
        return Weights(path, None)
    return find_checkpoint(path, str(path))


def is_export(path: Path) -> bool:
    """Whether `path` holds safetensors files of a model or an adapter."""
    return any(path.glob("*.safetensors"))


def is_full_model_export(path: Path) -> bool:
    """Whether `path` is an export of a whole model, which transformers loads by itself."""
    return is_export(path) and not (path / ADAPTER).exists()


def read_weights(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the weights by name; those of an adapter's export have peft's names, without the adapter's own.

    Tensors of a checkpoint are mapped from its files where these hold them whole. Raises CheckpointError.
    """
    if weights.step is not None or (weights.path / MANIFEST).exists():
        from arctic_hydra.checkpoint.full_weights import read_checkpoint_weights

        return read_checkpoint_weights(weights.path)
    return dict(_read_export(weights.path))


def has_every_name(stored: dict[str, torch.Tensor], model: torch.nn.Module) -> bool:
    """Whether the model has every name of `stored`."""
    return set(stored) <= set(model.state_dict(keep_vars=True))


def load_into(model: torch.nn.Module, stored: dict[str, torch.Tensor], weights: Weights) -> None:
    """Set every parameter and persistent buffer of `model` from what `weights` holds; collective under ZeRO-3.

    Where it leaves frozen weights out, those of the model stay, and must be the ones it was trained over. Raises
    CheckpointError when they are not, or a name or a shape differs: nothing is left at random, nothing is left over.
    """
    import torch

    if weights.step is None and (weights.path / ADAPTER).exists():
        stored = _as_model_names(model, stored)
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        names.setdefault(id(value), []).append(name)
    wanted = {found: state[tied[0]] for tied in names.values() for found in tied if found in stored}
    absent = [tied[0] for tied in names.values() if not any(name in stored for name in tied)]
    partial = weights.frozen is not None or (weights.path / ADAPTER).exists()
    shapes = {name: tuple(getattr(value, "ds_shape", value.shape)) for name, value in wanted.items()}
    problems = [
        _summarize("the model has no", sorted(stored.keys() - wanted.keys())),
        _summarize("it lacks", [] if partial else absent),
        _summarize(
            "the shapes differ of",
            [f"{n} ({tuple(stored[n].shape)}, model {s})" for n, s in shapes.items() if stored[n].shape != s],
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f"the weights in {weights.path} are not of this model: {'; '.join(filter(None, problems))}. "
            "Choose the model (and its shape) that they were saved from"
        )
    if weights.frozen not in (None, UNCHECKED):
        _check_frozen(model, absent, weights)
    with torch.no_grad():
        for name, value in wanted.items():
            with distributed.gathered(value, writes=True):
                if value.numel():  # under ZeRO-3 rank 0 holds the whole, and gives the others their part
                    value.copy_(stored[name])


def _check_frozen(model: torch.nn.Module, absent: list[str], weights: Weights) -> None:
    from arctic_hydra.checkpoint.full_weights import checksum

    parameters = dict(model.named_parameters())
    found = checksum(model, [name for name in absent if name in parameters])
    if found != weights.frozen:
        raise CheckpointError(
            f"{weights.path} holds only the weights that train, and was trained over other frozen ones than this model's "
            f"(checksum {weights.frozen}, here {found}): the files of the base model have changed, or another is chosen"
        )


def _as_model_names(model: Any, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return an exported adapter's weights under the names that they have in `model`."""
    import peft

    if not isinstance(model, peft.PeftModel):
        return stored  # refused for its names
    # Names in place of tensors: what peft would export under which name.
    own: Any = {name: name for name in model.state_dict(keep_vars=True)}
    exported = peft.get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False)
    return {str(exported.get(name, name)): value for name, value in stored.items()}


def _summarize(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}" if names else ""


def _read_export(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = path / "model.safetensors.index.json"
    files = [ADAPTER] if (path / ADAPTER).exists() else ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in files:
        try:
            yield from load_file(path / name).items()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path / name} cannot be read: {error}") from error
