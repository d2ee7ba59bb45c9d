"""Finding, verifying and loading the weights that a run starts from: a checkpoint of any run, or an export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_hydra import distributed
from arctic_hydra.checkpoint.store import MANIFEST, Checkpoint, CheckpointStore
from arctic_hydra.errors import CheckpointError, StateFileError
from arctic_hydra.files.state_file import Entries, Schema, Table, is_inside, is_text, read_state

if TYPE_CHECKING:
    import torch

_SHOWN = 5
UNCHECKED = "unchecked"
"""Placeholder for the checksum of quantized weights, which cannot be compared with unquantized ones."""
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_KEYS = ("peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora")
"""Settings of an adapter that decide what its weights do to the model."""
_INDEX_FILE = Schema(
    "export the model again", Table({"weight_map": Entries(is_text, is_inside)}), formats=(0, 0), max_bytes=512 << 20
)
"""The index of an export in several files: the file of each tensor."""


@dataclass(frozen=True)
class Weights:
    """Verified weights on disk: a checkpoint (verified by its manifest) or an export."""

    path: Path
    step: int | None
    """Completed optimizer steps of a checkpoint; None for an export."""
    frozen: str | None = None
    """Checksum of the frozen weights that a checkpoint omits, or UNCHECKED; None if it contains all weights."""
    averaged_by: str = ""
    """The callback whose average replaces the trained weights, if the checkpoint holds it; empty for none."""
    stop_tokens: tuple[int, ...] | None = None
    """Ids of the stop tokens that were trained; None for an export and for checkpoints of older versions."""
    adapter: dict[str, Any] | None = None
    """Settings of the adapter of a checkpoint; None for an export, without an adapter and for checkpoints of older versions."""


def find_checkpoint(root: Path, which: str | None) -> Weights:
    """Return the checkpoint that `from_checkpoint` selects; collective, the same on every rank.

    `which` is a step, `best`, the path of a checkpoint or of a directory of checkpoints, or None for the newest valid
    one below `root`. Every hash is verified. A path may be another user's, since the user named it. Raises
    CheckpointError if the selected checkpoint is damaged; only the newest one falls back to an older one.
    """
    store = CheckpointStore(root, distributed.World.from_env().rank)
    if which is not None and which != "best" and not which.isdecimal():
        path = Path(which)
        holder = _holder(path)
        store, which = CheckpointStore(holder or root, distributed.World.from_env().rank, of_others=True), None
        if holder is None:
            return _as_weights(store.verified(path))
    if which is None:
        newest = store.newest()
        if newest is None:
            raise CheckpointError(
                f"{store.root} contains no checkpoint; train first, or pass from_checkpoint=<path of a checkpoint>"
            )
        return _as_weights(newest)
    return _as_weights(store.best() if which == "best" else store.at(int(which)))


def _holder(path: Path) -> Path | None:
    """Return the directory of checkpoints that `path` is or contains, if any."""
    return next((folder for folder in (path, path / "checkpoints") if CheckpointStore(folder, 1).steps()), None)


def _as_weights(found: Checkpoint) -> Weights:
    stops = found.manifest.get("stop_tokens")
    frozen = found.manifest.get("identity", {}).get("frozen_weights")
    adapter = found.manifest.get("adapter")
    return Weights(found.path, found.step, frozen, stop_tokens=None if stops is None else tuple(stops), adapter=adapter)


def find_weights(path: Path) -> Weights:
    """Return the weights that `init_from` selects: an export, a checkpoint, or a run directory (its newest checkpoint)."""
    if is_export(path):
        return Weights(path, None)
    _check_holds_weights(path)
    return find_checkpoint(path, str(path))


def check_readable(path: Path) -> None:
    """Raise CheckpointError for an `init_from` that selects no weights, or an export whose files are damaged; reads no weights."""
    if not is_export(path):
        return _check_holds_weights(path)
    from safetensors import SafetensorError, safe_open

    for name in _export_files(path):
        try:
            with safe_open(path / name, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise _unreadable(path / name, error) from error


def _check_holds_weights(path: Path) -> None:
    if not path.is_dir() or (path / MANIFEST).exists() or _holder(path):
        return
    pickles = sorted(file.name for suffix in ("bin", "pt", "pth", "pkl") for file in path.glob(f"*.{suffix}"))
    if pickles:
        raise CheckpointError(
            f"init_from: {path} holds {', '.join(pickles[:_SHOWN])}, but pickled weights are not loaded, because reading them "
            f"can run code; expected *.safetensors, a checkpoint of a run or a run directory; save the model again as safetensors"
        )
    raise CheckpointError(
        f"init_from: {path} holds no weights; expected *.safetensors, a checkpoint of a run or a run directory with checkpoints"
    )


def is_export(path: Path) -> bool:
    """Whether `path` contains safetensors files of a model or an adapter."""
    return any(path.glob("*.safetensors"))


def is_full_model_export(path: Path) -> bool:
    """Whether `path` is an export of a full model rather than of an adapter."""
    return is_export(path) and not is_adapter_export(path)


def is_adapter_export(path: Path) -> bool:
    """Whether `path` is an export of an adapter."""
    return (path / ADAPTER).exists()


def read_weights(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the weights by name; those of an exported adapter have peft's names without the name of the adapter.

    Tensors that a file of a checkpoint contains whole are memory-mapped. Raises CheckpointError.
    """
    if weights.step is not None or (weights.path / MANIFEST).exists():
        from arctic_hydra.checkpoint.full_weights import read_checkpoint_weights, read_partitioned

        averages = read_partitioned(weights.path, weights.averaged_by) if weights.averaged_by else {}
        return read_checkpoint_weights(weights.path) | averages
    return dict(_read_export(weights.path))


def has_every_name(stored: dict[str, torch.Tensor], model: torch.nn.Module) -> bool:
    """Whether the model has a parameter or buffer for every name in `stored`."""
    return set(stored) <= set(model.state_dict(keep_vars=True))


def load_into(
    model: torch.nn.Module, stored: dict[str, torch.Tensor], weights: Weights, new: frozenset[str] = frozenset()
) -> None:
    """Set every parameter and persistent buffer of `model` from `stored`, the contents of `weights`; collective at ZeRO-3.

    Those named in `new`, which `stored` need not hold, keep their values if it does not.
    Frozen weights that a checkpoint omits keep the values of the model, which must be those of the original training.
    Raises CheckpointError if they differ, or if names or shapes do not match exactly.
    """
    import torch

    settings, of_adapter = weights.adapter or {}, is_adapter_export(weights.path)
    if of_adapter and not has_adapter(model):
        config = adapter_config(weights.path)
        raise CheckpointError(
            f"{weights.path} holds an adapter, but this run has none; pass the model that it was trained over "
            f"({config.get('base_model_name_or_path')}) and peft=... with its settings ({config.get('peft_type')}, "
            f"r={config.get('r')})"
        )
    if weights.step is None and of_adapter:
        settings, own_names = adapter_config(weights.path), _adapter_names(model)
        stored = {str(own_names.get(name, name)): value for name, value in stored.items()}
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        names.setdefault(id(value), []).append(name)
    wanted = {found: state[tied[0]] for tied in names.values() for found in tied if found in stored}
    absent = [tied[0] for tied in names.values() if not any(name in stored or name in new for name in tied)]
    partial = weights.frozen is not None or of_adapter
    adapter = model.named_parameters() if has_adapter(model) else ()
    # Not its buffers, which are not saved; a new head may be one of the modules that are trained whole.
    trained = {n for n, p in adapter if p.requires_grad and ".modules_to_save." not in n}
    shapes = {name: distributed.whole_shape(value) for name, value in wanted.items()}
    problems = [
        _summarize("the model has no", sorted(stored.keys() - wanted.keys())),
        _summarize("it lacks", [name for name in absent if name in trained] if partial else absent),
        _summarize(
            "the shapes differ of",
            [f"{n} ({tuple(stored[n].shape)}, model {s})" for n, s in shapes.items() if stored[n].shape != s],
        ),
        *_adapter_differences(model, settings),
    ]
    if any(problems):
        raise CheckpointError(
            f"the weights in {weights.path} do not fit this model: {'; '.join(filter(None, problems))}. "
            "Use the model config (and shape) that they were saved with"
        )
    if weights.frozen not in (None, UNCHECKED):
        _check_frozen(model, absent, weights)
    with torch.no_grad():
        for name, value in wanted.items():
            with distributed.gathered(value, writes=True):
                if value.numel():  # at ZeRO-3 rank 0 sets the full value, which is then partitioned
                    value.copy_(stored[name])


def _check_frozen(model: torch.nn.Module, absent: list[str], weights: Weights) -> None:
    from arctic_hydra.checkpoint.full_weights import checksum

    parameters = dict(model.named_parameters())
    found = checksum(model, [name for name in absent if name in parameters])
    if found != weights.frozen:
        raise CheckpointError(
            f"{weights.path} contains only the trained weights, and the frozen weights they were trained with differ from this "
            f"model's (checksum {weights.frozen}, here {found}): the base model's files have changed, or a different base "
            "model is selected"
        )


def adapter_config(path: Path) -> dict[str, Any]:
    """Return the config of an exported adapter; raises CheckpointError if it cannot be read."""
    try:
        config = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path / ADAPTER_CONFIG, error) from error
    if not isinstance(config, dict):
        raise _unreadable(path / ADAPTER_CONFIG, ValueError("it is not a JSON object"))
    return config


def has_adapter(model: Any) -> bool:
    """Whether peft has wrapped the model."""
    return hasattr(model, "peft_config")


def adapter_settings(model: Any) -> dict[str, Any]:
    """Return the settings of the model's adapter that decide what its weights do to the model; empty without one."""
    own = model.peft_config["default"].to_dict() if has_adapter(model) else {}
    return {key: own[key] for key in _ADAPTER_KEYS if key in own}


def _adapter_differences(model: Any, stored: dict[str, Any]) -> list[str]:
    """Return in which settings a stored adapter differs from that of `model`; equal shapes alone would not show them."""
    return [
        f"the adapter was trained with {key}={stored[key]}, this run has {value}"
        for key, value in adapter_settings(model).items()
        if key in stored and stored[key] != value
    ]


def _adapter_names(model: Any) -> dict[str, Any]:
    """Return the names in `model` of the weights of its adapter, by the names that an export gives them."""
    import peft

    if not isinstance(model, peft.PeftModel):
        return {}
    # Passing names instead of tensors yields the map from exported names to names in the model.
    own: Any = {name: name for name in model.state_dict(keep_vars=True)}
    return dict(peft.get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False))


def _summarize(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}" if names else ""


def _export_files(path: Path) -> list[str]:
    try:
        # In the hub's cache, files are links to others.
        index = read_state((path / "model.safetensors.index.json").resolve(), _INDEX_FILE, of_others=True)
    except StateFileError as error:
        raise CheckpointError(str(error)) from error
    if index is not None:
        return sorted(set(index["weight_map"].values()))
    return [ADAPTER] if is_adapter_export(path) else ["model.safetensors"]


def _read_export(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in _export_files(path):
        try:
            yield from load_file(path / name).items()
        except (OSError, SafetensorError) as error:
            raise _unreadable(path / name, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {error}; copy it again, or pass init_from=<weights that are complete>"
    )
