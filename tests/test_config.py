"""The identity of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra import config
from tests.composing import composed


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_identity_ignores_how_numbers_and_paths_are_written(tmp_path):
    (tmp_path / "data.jsonl").write_text("")
    base = ["data=json", "data.sources.json.path=data.jsonl"]
    absolute = ["data=json", f"data.sources.json.path={tmp_path / 'data.jsonl'}"]

    def identified(arguments):
        tree = config.absolute_paths(composed(*arguments), Path.cwd())
        return config.run_id(config.build(tree))

    same = identified(base)
    assert identified(absolute) == same
    assert identified([*base, "optimizer.lr=5e-4", "data.max_length=0.5Ki"]) == identified(
        [*base, "data.max_length=512"]
    )
    for outside in (
        "log.interval=5", "tracking=[]", "checkpoint=[]", "trainer.exit_iteration=3", "name=other",
        "checkpoint.deepspeed.save_every_n_steps=3", "data.num_proc=1", "data.cache=off", "output_root=elsewhere",
    ):  # fmt: skip
        assert identified([*base, outside]) == same, outside
    for inside in ("optimizer.lr=1e-3", "seed=1", "trainer.epochs=2", "data.max_length=256", "deepspeed=zero1"):
        assert identified([*base, inside]) != same, inside
    spread = identified([*base, "ranks=2"])
    assert spread != same, "twice the global batch"
    assert identified([*base, "trainer.gradient_accumulation_steps=2"]) == spread
