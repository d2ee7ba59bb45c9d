"""DeepSpeed's files: code in a checkpoint never runs, and frozen weights can be omitted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.errors import CheckpointError


def message(action: Any) -> str:
    """Return the text of the CheckpointError that `action` must raise."""
    with pytest.raises(CheckpointError) as caught:
        action()
    return str(caught.value)


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("pattern", ["rank-00001.pt", "*model_states.pt", "*optim_states.pt"])
def test_code_in_a_checkpoint_is_rejected_and_does_not_run(pattern, in_ranks, lab, tmp_path) -> None:
    """The manifest matches the file: whoever can change one can change both, so hashes do not protect here."""
    evidence = tmp_path / "ran"

    def run(rank: int) -> str:
        import torch

        from arctic_hydra import distributed
        from arctic_hydra.checkpoint import store

        state = lab.start(tmp_path, rank, zero=2, world_size=2)
        lab.train(state, 1)
        path = lab.checkpoint(state).save()
        if rank == 0:
            [victim, *_] = path.glob(pattern)
            torch.save({"x": Malicious(evidence)}, victim)
            manifest = store._read_manifest(path, of_others=False)
            stage = store.Stage(1, path, {name: store.hash_file(path / name) for name in manifest.pop("files")})
            store._write_manifest(stage, manifest)
        distributed.barrier()
        return message(lab.checkpoint(state).load)

    first, second = in_ranks(2, run)
    assert first == second
    assert "cannot be loaded without running code from it" in first
    assert not evidence.exists()


@pytest.mark.parametrize(
    ("name", "is_left_out"),
    [
        ("model.layers.0.q_proj.weight", True),
        ("model.layers.0.q_proj.weight.absmax", True),  # scales of a quantized weight
        ("model.layers.0.q_proj.weight_scale", False),
        ("model.layers.0.lora_A.weight", False),
    ],
)
def test_a_save_omits_weights_and_their_quantization_state(name, is_left_out, libraries, tmp_path) -> None:
    from arctic_hydra.checkpoint.store import CheckpointStore, Stage
    from arctic_hydra.checkpoint.writer import SafeCheckpointEngine

    taken: dict[str, Any] = {}
    engine = SafeCheckpointEngine(
        CheckpointStore(tmp_path, rank=0),
        Stage(1, tmp_path),
        taken.__setitem__,
        frozenset({"model.layers.0.q_proj.weight"}),
    )
    engine.save({"module": {name: 1}, "ds_version": "x"}, str(tmp_path / "mp_rank_00_model_states.pt"))
    assert taken == {"mp_rank_00_model_states.pt": {"module": {} if is_left_out else {name: 1}, "ds_version": "x"}}
