"""Missing scores are computed once, by any number of ranks, and what is stored does not depend on how."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from arctic_hydra.distributed import World
from arctic_hydra.errors import ConfigError
from arctic_hydra.stopping import StopRequest
from arctic_hydra.trainer.scoring import score_plan, scorer
from arctic_hydra.trainer.scoring.scored_loader import ScoredLoader
from arctic_hydra.trainer.scoring.scorer import Scoring, store_scores
from tests.ranks import run_ranks
from tests.trainer.loop import pairs
from tests.trainer.scoring.samples import loader_of

RECORD = np.dtype([("place", "<i4"), ("two", "<f4", (2,))])
DATA = {"a": pairs([(n % 7 + 1, n % 5 + 1) for n in range(23)]), "b": pairs([(3, 9), (12, 1)], seed=1)}


def tools_of(folder, **options):
    world = World.from_env()
    place = SimpleNamespace(micro_batch_size=2, gradient_accumulation_steps=1, world=world)
    loaders = [loader_of(folder / "data", data, place, **options) for data in (DATA, {"b": DATA["b"]})]
    stop = StopRequest(folder / "STOP")
    tools = SimpleNamespace(world=world, device=torch.device("cpu"), stop=stop, evaluates=False)
    tools.loader, tools.eval_loader = loaders
    return tools


def scored(calls=None, stop_after=None, folder=None):
    """Return a function that makes a model whose scores are functions of the tokens."""

    def compute(batch):
        if calls is not None:
            calls.append(batch.num_tokens)
            if stop_after is not None and len(calls) == stop_after:
                (folder / "STOP").touch()
        places_K = batch.position_ids_BT.flatten()[batch.rows_K]
        return {"place": places_K, "two": torch.stack([batch.targets_K, places_K], dim=1) / 7}

    return lambda: compute


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("scores/*/*") if path.is_file()}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(score_plan, "BATCHES_PER_PART", 2)


def _fill(folder):
    assert store_scores(tools_of(folder), Scoring({"weights": "w"}, RECORD), folder, scored())


def test_ranks_share_the_parts_and_an_interruption_changes_nothing(tmp_path, caplog):
    for name in ("one", "two", "stopped"):
        (tmp_path / name).mkdir()
    tools_of(tmp_path / "two")  # writes the documents
    run_ranks(2, _fill, tmp_path / "two")
    tools, calls = tools_of(tmp_path / "one"), []
    with caplog.at_level(logging.INFO):
        assert store_scores(tools, Scoring({"weights": "w"}, RECORD), tmp_path / "one", scored(calls))
    whole = content(tmp_path / "one")
    assert len(whole) > 6 and content(tmp_path / "two") == whole
    assert "scoring a: 0 of " in caplog.text and "done, " in caplog.text
    folder, wanted = tmp_path / "stopped", Scoring({"weights": "w"}, RECORD)
    tools = tools_of(folder)
    assert not store_scores(tools, wanted, folder, scored([], stop_after=3, folder=folder))
    assert not isinstance(tools.loader, ScoredLoader) and 0 < len(content(folder)) < len(whole)
    (folder / "STOP").unlink()
    tools, again = tools_of(folder), []
    assert store_scores(tools, wanted, folder, scored(again))
    assert content(folder) == whole and sum(again) < sum(calls)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert store_scores(tools_of(folder), wanted, folder, lambda: pytest.fail("a model was made"))
    assert "scores of a are complete: 46 documents" in caplog.text


@pytest.mark.parametrize("packing", [True, False])
def test_batches_hold_the_records_of_their_positions(tmp_path, packing):
    tools, compute = tools_of(tmp_path, packing=packing), scored()()
    store_scores(tools, Scoring({}, RECORD), tmp_path, scored())
    seen = 0
    for loader in (tools.loader, tools.eval_loader):
        for epoch in range(2):
            for window in loader.windows(epoch):
                for batch in window.micro_batches:
                    for name, values in compute(batch).items():
                        assert torch.equal(batch.stored[name], values.to(batch.stored[name].dtype)), name
                    seen += batch.num_supervised
    assert seen == 2 * sum(
        len(ids) - 6 for loader in (DATA, {"b": DATA["b"]}) for p in loader.values() for s in p for ids, _ in s
    )


def test_other_documents_or_another_model_have_an_entry_of_their_own(tmp_path):
    for about, options in (({"weights": "w"}, {}), ({"weights": "x"}, {}), ({"weights": "w"}, {"pack_tokens": 128})):
        store_scores(tools_of(tmp_path, **options), Scoring(about, RECORD), tmp_path, scored())
    assert len(list(tmp_path.glob("scores/*/about.json"))) == 6


def test_a_full_disk_is_reported_before_anything_is_computed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match=r"trainer.scores_dir: .* GiB are free at .*, but the scores need .* GiB"):
        store_scores(tools_of(tmp_path), Scoring({}, RECORD), tmp_path, lambda: pytest.fail("a model was made"))


def test_it_waits_for_another_process_and_uses_what_that_one_stored(tmp_path, monkeypatch, caplog):
    store_scores(tools_of(tmp_path), Scoring({}, RECORD), tmp_path, scored())
    locks = [FileLock(path) for path in tmp_path.glob("scores/*.lock")]
    for lock in locks:
        lock.acquire()
    monkeypatch.setattr(scorer, "LOCK_SECONDS", 0.01)
    waited = []
    monkeypatch.setattr(scorer, "_acquire", lambda lock, real=scorer._acquire: _second(lock, real, locks, waited))
    with caplog.at_level(logging.INFO):
        assert store_scores(tools_of(tmp_path), Scoring({}, RECORD), tmp_path, lambda: pytest.fail("a model was made"))
    assert waited and "waiting for another process that computes the same scores" in caplog.text


def _second(lock, real, locks, waited):
    if real(lock):
        return True
    waited.append(lock)
    for other in locks:
        other.release()
    return False
