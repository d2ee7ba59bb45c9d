"""With the chunked loss, a micro-batch synchronizes neither with the device nor with other ranks, and a step once with each."""

from __future__ import annotations

import pytest

from tests.bench.bench_synchronization import RANKS, per_micro_batch, per_step
from tests.ranks import run_ranks


@pytest.mark.parametrize("packed", [False, True])
def test_a_micro_batch_adds_no_host_read_and_no_collective(packed, tmp_path):
    for added in run_ranks(RANKS, per_micro_batch, tmp_path, 0, True, packed):
        added.pop("Tensor.tolist" if packed else "", None)  # from the attention on the CPU, for a host tensor
        assert added == {}


@pytest.mark.parametrize("stage", [0, 2])
def test_a_step_adds_one_host_read_and_one_collective_to_those_of_deepspeed(stage, tmp_path):
    """The collective is that of the counts, which are on the host; the read is the gradient norm. A log line adds one of each."""
    agreed = {"c10d.allreduce_": 1, "Tensor.tolist": 1, "aten._local_scalar_dense": 1}
    logged = {**agreed, "c10d.allreduce_": 2, "Tensor.tolist": 2}
    assert run_ranks(RANKS, per_step, tmp_path, stage) == [{False: agreed, True: logged}] * RANKS


def test_the_counter_sees_what_waits(tmp_path):
    def look():
        import torch

        from tests.bench.bench_synchronization import counted

        value = torch.ones(2)

        def waits():
            if value.sum() > 1:
                torch.distributed.all_reduce(value)
            value.tolist()
            value.nonzero()

        return counted(waits)

    for counts in run_ranks(2, look):
        assert counts == {"aten._local_scalar_dense": 1, "c10d.allreduce_": 1, "Tensor.tolist": 1, "aten.nonzero": 1}
