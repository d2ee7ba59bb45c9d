"""Metrics and trackers are opened by the first rank only, and before training."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from arctic_hydra.assembly.run_tools import Outputs, finish_trackers, open_outputs
from arctic_hydra.checkpoint.initial_weights import Weights
from arctic_hydra.distributed import World
from arctic_hydra.errors import StateFileError


def test_only_the_first_rank_opens_files_and_it_reads_the_old_ones_first(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    other, first = (SimpleNamespace(world=World(rank=rank, size=2)) for rank in (1, 0))
    assert open_outputs(None, tmp_path, other, None) == Outputs()
    with pytest.raises(StateFileError, match="metrics.jsonl:1: not a line of metrics"):
        open_outputs(None, tmp_path, first, None)


def test_a_tracker_that_fails_does_not_keep_the_others_from_finishing():
    class Broken:
        option_name = "broken"

        def finish(self, status):
            raise OSError("gone")

    finished = []
    trackers = [Broken(), SimpleNamespace(finish=finished.append)]
    finish_trackers(SimpleNamespace(tools=SimpleNamespace(trackers=trackers)), "finished")
    assert finished == ["finished"]


def test_another_adapter_is_loaded_over_the_weights_that_the_run_starts_from(tmp_path, monkeypatch):
    from arctic_hydra.assembly import run_tools

    created = []
    monkeypatch.setattr(run_tools, "create_model", lambda *arguments: created.append(arguments[3:]))
    monkeypatch.setattr(run_tools, "warn_of_another_base", lambda *arguments: None)
    monkeypatch.setattr(run_tools.engine, "model_init", lambda config: contextlib.nullcontext())
    for name in ("adapter_model", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").touch()
    run = SimpleNamespace(trainer=SimpleNamespace(create_config=lambda model: None), model=None)
    start, adapter, whole = (Weights(tmp_path / name, None) for name in ("start", "adapter_model", "model"))
    for path in (str(adapter.path), str(whole.path), None):
        model = SimpleNamespace(start=start, engine_config={})
        run_tools._once_more(run, SimpleNamespace(tokenizer=None), model, path)
    assert created == [(start, adapter), (whole, None), (start, None)]
