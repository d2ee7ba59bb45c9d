"""Full weights on the CPU, gathered from the ranks or read from a checkpoint."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest


def test_gathering_at_zero_3_holds_one_parameter_at_a_time(in_ranks, lab, tmp_path) -> None:
    """At most one parameter is gathered at a time, and its copy is backed by a file."""

    def run(rank: int) -> Any:
        from arctic_hydra.checkpoint import full_weights

        state = lab.start(tmp_path, rank, zero=3, world_size=2)
        model, original, most = state.engine.module, full_weights.gathered, []

        @contextmanager
        def watched(value: Any) -> Any:
            with original(value):
                yield
                most.append(sum(parameter.numel() for parameter in model.parameters()))

        full_weights.gathered = watched
        copies = full_weights.gather_weights(model, keep=rank == 0, beside=tmp_path / "beside")
        largest = max(parameter.ds_numel for parameter in model.parameters())
        with open("/proc/self/maps") as maps:
            mapped = [line.split()[0].split("-") for line in maps if str(tmp_path / "beside") in line]
        ranges = [(int(first, 16), int(last, 16)) for first, last in mapped]
        backed = [any(first <= copy.data_ptr() < last for first, last in ranges) for copy in copies.values()]
        return max(most), largest, len(backed), sum(backed), len(list(model.parameters()))

    main, other = in_ranks(2, run)
    assert main[0] == main[1] and other[0] == other[1]
    assert main[2] == main[3] == main[4] > 10 and other[2] == 0


def test_an_error_of_a_copy_is_raised_after_the_other_weights_were_gathered(libraries, tmp_path, monkeypatch) -> None:
    """Such as too little memory on one rank: the others would wait for it."""
    from arctic_hydra.checkpoint import full_weights

    seen, gathered = [], full_weights.gathered
    monkeypatch.setattr(full_weights, "gathered", lambda value: seen.append(value) or gathered(value))

    def no_memory(value: Any, file: Any) -> Any:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(full_weights, "_host_copy", no_memory)
    with pytest.raises(RuntimeError, match="allocate"):
        full_weights.gather_weights(libraries.torch.nn.Linear(2, 2), keep=True, beside=tmp_path, whole=True)
    assert len(seen) == 2


@pytest.mark.parametrize(("zero", "world_size"), [(0, 1), (2, 1), (3, 2)])
def test_a_checkpoint_holds_the_weights_that_a_gather_returns(zero, world_size, in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> Any:
        from arctic_hydra.checkpoint import full_weights

        state = lab.start(tmp_path, rank, zero=zero, world_size=world_size)
        lab.train(state, 1)
        path = lab.checkpoint(state).save()
        gathered = full_weights.gather_weights(state.engine.module, keep=rank == 0, beside=tmp_path / "beside")
        read = full_weights.read_checkpoint_weights(path)
        first = full_weights.checksum(state.engine.module, ["lm_head.weight"])
        lab.train(state, 1)
        second = full_weights.checksum(state.engine.module, ["lm_head.weight"])
        if rank == 0:
            assert gathered.keys() == read.keys()
            assert all(gathered[name].equal(read[name]) for name in read)
        return first, second

    results = in_ranks(world_size, run)
    assert results == [results[0]] * world_size
    assert results[0][0] != results[0][1], "other weights have another checksum"


def _with_buffers() -> Any:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Embedding(2, 0))
    model[0].weight.data = torch.arange(16.0).view(4, 4)
    model[0].register_buffer("stored", torch.ones(()))
    model[0].scale = torch.ones(4)

    def store_scale(module, state, prefix, metadata):
        state[prefix + "SCB"] = module.scale  # as 8-bit layers of bitsandbytes do

    model[0].register_state_dict_post_hook(store_scale)
    model[0].register_buffer("temporary", torch.ones(2), persistent=False)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.data.copy_(layer.weight.flip(0)),
        lambda layer: layer.weight.data.neg_(),
        lambda layer: layer.stored.add_(1),
        lambda layer: layer.scale.add_(1),
    ],
    ids=["order", "signs", "buffer", "scale"],
)
def test_the_content_hash_follows_the_order_of_values_and_all_that_is_stored(change) -> None:
    from arctic_hydra.checkpoint.full_weights import content_hash

    model = _with_buffers()
    first, rest = content_hash(model), content_hash(model, lambda name: not name.startswith("0."))
    model[0].temporary.add_(1)
    assert content_hash(model) == first != rest
    change(model[0])
    assert content_hash(model) != first
    assert content_hash(model, lambda name: not name.startswith("0.")) == rest
