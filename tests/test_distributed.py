"""The ranks: their environment, their GPUs and the collectives of this package."""

from __future__ import annotations

import os

import pytest

from arctic_hydra import distributed
from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError
from tests.ranks import run_ranks


def test_the_world_is_read_from_the_environment(monkeypatch):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert World.from_env() == World(0, 1, 0, 1)
    for name, value in zip(names, "5824", strict=True):
        monkeypatch.setenv(name, value)
    world = World.from_env()
    assert world == World(5, 8, 2, 4) and not world.is_main
    assert world.data_parallel(2) == World(2, 4, 2, 4), "ranks 4 and 5 share their sequences"


@pytest.mark.parametrize("value", ["abc", "", "-1", "1.0", "²", "9" * 5000])
def test_a_rank_that_is_no_number_is_named(value, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", value)
    with pytest.raises(
        ConfigError, match=r"^LOCAL_RANK: got '.*' in the environment, expected a whole number; unset it$"
    ):
        World.from_env()


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 3), ("0,2", 2), ("", 0), ("-1", 0), ("0,1,2,3,4", 3), ("GPU-a, ", 1)]
)
def test_gpus_are_counted_without_torch(visible, count, monkeypatch, tmp_path):
    for index in range(3):
        (tmp_path / str(index)).mkdir()
    monkeypatch.setattr(distributed, "Path", lambda path: tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert distributed.count_gpus() == count


def test_deepspeed_uses_the_cpu_where_there_are_no_gpus(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    for gpus, accelerator in ((2, "xpu"), (0, "cpu")):
        monkeypatch.setattr(distributed, "count_gpus", lambda gpus=gpus: gpus)
        distributed.choose_accelerator()
        assert os.environ["DS_ACCELERATOR"] == accelerator


def test_one_process_needs_no_process_group():
    assert distributed.sum_over_ranks([1, 2]) == [1, 2]
    assert distributed.broadcast_object("x") == "x"
    assert distributed.gather_objects("x") == ["x"]
    assert distributed.sequence_group() is None
    distributed.barrier()


def exchange():
    import torch

    world = World.from_env()
    distributed.start(world, 60)  # again: does nothing
    distributed.start_sequence_groups(world, 2, 60)
    group = distributed.sequence_group()
    with distributed.without_sequence_group():
        inside = distributed.sequence_group()
    assert group is not None and distributed.sequence_group() is group and inside is None
    sums = distributed.sum_over_ranks([world.rank, 1])
    total = distributed.sum_tensor(torch.tensor([float(world.rank)])).tolist()
    shared = distributed.broadcast_object({"from": world.rank})
    gathered = distributed.gather_objects(world.rank * 10)
    distributed.barrier()
    distributed.stop()
    return (group.rank, group.size), sums, total, shared, gathered


def test_collectives_return_the_same_on_every_rank():
    results = run_ranks(2, exchange)
    assert [result[0] for result in results] == [(0, 2), (1, 2)]
    for result in results:
        assert result[1:] == ([1, 2], [1.0], {"from": 0}, [0, 10])
