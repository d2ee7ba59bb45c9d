"""The memory profiler needs a GPU; tests/gpu/test_callbacks.py runs it on one."""

from __future__ import annotations

from tests.command import SMALL, run


def test_it_is_refused_on_a_machine_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mode = "callback.memory_profiler.mode=e2e callback.memory_profiler.max_entries=1k"
    done = run(f"{SMALL} callback=[memory_profiler] {mode} task=check", tmp_path, code=2)
    assert "callback.memory_profiler.mode: records the memory of a CUDA GPU, but this machine has none" in done.stderr
