"""Callbacks that need a GPU: the memory profiler's snapshots, and the kernels in a trace."""

from __future__ import annotations

import pickle

import pytest

from tests.command import SMALL, only_run, run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("mode", ["step", "e2e"])
def test_the_memory_profiler_writes_a_snapshot(tmp_path, mode):
    chosen = f"callback=[memory_profiler] callback.memory_profiler.mode={mode}"
    run(f"{SMALL} {chosen} trainer.train_iters=2 tracking=[] checkpoint=[] ranks=1", tmp_path)
    snapshot = pickle.loads((only_run(tmp_path) / "memory_profile" / "0.pickle").read_bytes())
    assert any(trace for trace in snapshot["device_traces"])


def test_the_profiler_records_kernels(tmp_path):
    import gzip

    chosen = "callback=[profiler] callback.profiler.skip_steps=1 callback.profiler.steps=1"
    run(f"{SMALL} {chosen} trainer.train_iters=3 tracking=[] checkpoint=[] ranks=1", tmp_path)
    [trace] = (only_run(tmp_path) / "profile").iterdir()
    assert b'"cat": "kernel"' in gzip.decompress(trace.read_bytes())
