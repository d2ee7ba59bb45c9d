"""Training with a teacher's stored predictions is training with the teacher, without it in memory."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch

from arctic_hydra.data.base import BatchGeometry
from arctic_hydra.data.cache.token_store import JoinedStore
from arctic_hydra.data.load.loader import LoaderOptions, PackedLoader
from arctic_hydra.distributed import World
from arctic_hydra.errors import ArcticHydraError, CheckpointError, ConfigError, ModelError
from arctic_hydra.trainer.distillation.distill import DistillTrainer
from arctic_hydra.trainer.distillation.divergence import MostLikely, WholeLogits, divergence
from arctic_hydra.trainer.distillation.stored_teacher import StoredTeacher, most_likely, weight_files, weights_hash
from arctic_hydra.trainer.distillation.teacher import Teacher
from arctic_hydra.trainer.head import tap_head
from arctic_hydra.trainer.loss import LossComputer
from arctic_hydra.trainer.scoring import score_plan
from tests.ranks import run_ranks
from tests.trainer.distillation.test_distill import DATA, HELD, MIX, teacher_model
from tests.trainer.distillation.test_divergence import BETAS, formula
from tests.trainer.loop import batch_of, full_weights, make_trainer
from tests.trainer.scoring.samples import stored

CPU = torch.device("cpu")
SETTINGS = {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "epochs": 2, **MIX}
ONE = SimpleNamespace(micro_batch_size=1, gradient_accumulation_steps=1, world=SimpleNamespace(size=1, rank=0))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    teacher_model().save_pretrained(folder)
    return str(folder)


class Loader(PackedLoader):
    """Documents that no report was made of."""

    def summary(self):
        return {"max_length": self.options.pack_tokens}


def loader_of(folder, documents, trainer, packed=True):
    store = JoinedStore({"a": stored(folder / "data", documents)})
    geometry = BatchGeometry(trainer.micro_batch_size, trainer.gradient_accumulation_steps, trainer.world, seed=3)
    options = LoaderOptions(packing=packed, pad_token_id=0, pack_tokens=64, shuffle=True, prefetch_steps=0)
    return Loader(store, np.arange(len(store)), ["a"], geometry, options)


class TopK(DistillTrainer):
    """Learns the most likely tokens of a teacher that runs in every step."""

    def _create_teacher(self, tools):
        live = super()._create_teacher(tools)

        def targets(batch):
            found = most_likely(live, batch, self.top_k, 128)
            return MostLikely(found["ids"], found["logps"], found["tail"])

        return SimpleNamespace(targets=targets, checksum=live.checksum)


class Watched(DistillTrainer):
    """Counts what the teacher is asked to predict."""

    def _load_teacher(self):
        found = super()._load_teacher()
        self.weights_of_teacher = list(found.losses.engine.parameters())
        return found

    def prepare(self):
        self.asked, self.weights_of_teacher, ask = [], [], Teacher.targets

        def targets(teacher, batch):
            self.asked.append(batch)
            return ask(teacher, batch)

        Teacher.targets = targets
        super().prepare()
        assert isinstance(self._teacher, StoredTeacher) and bool(self.weights_of_teacher) == bool(self.asked)
        held = [(weight, getattr(weight, "ds_tensor", weight)) for weight in self.weights_of_teacher]
        assert all(tensor.untyped_storage().nbytes() == 0 for pair in held for tensor in pair)


def trainer_of(folder, path, trainer_class=DistillTrainer, **settings):
    packed = settings.get("packed", True)
    return make_trainer(
        lambda trainer: loader_of(folder, DATA, trainer, packed),
        folder,
        eval_data=lambda trainer: loader_of(folder, HELD, trainer, packed),
        teacher_path=path,
        scores_dir=str(folder),
        trainer_class=trainer_class,
        **{**SETTINGS, **settings},
    )


def history(trainer):
    rows = []
    trainer._record = rows.append
    trainer.train()
    names = ("loss", "kd_loss", "nll_loss", "accuracy")
    kept = [{name: row[name] for name in row if name.split("/")[-1] in names} for row in rows]
    return kept, full_weights(trainer), trainer.state_dict()


def _compared(folder, path, settings):
    """Return the histories with a teacher and with stored predictions, both of 5 and of all tokens."""
    score_plan.BATCHES_PER_PART = 2
    found = [
        history(trainer_of(folder, path, TopK, top_k=5, **settings)),
        history(trainer_of(folder, path, Watched, teacher="cached", top_k=5, **settings)),
    ]
    if settings:
        return [found]
    whole = history(trainer_of(folder, path))
    again = trainer_of(folder, path, teacher="cached", top_k=128)
    return [found, [whole, history(again)]]


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [(1, {}), (2, {"stage": 3, "packed": False, "gradient_accumulation_steps": 1})],
    ids=["packed", "padded-zero3"],
)
def test_losses_evaluation_and_weights_are_those_with_the_teacher(tmp_path, teacher, ranks, settings):
    for documents in (DATA, HELD):
        loader_of(tmp_path, documents, ONE)  # written by one process
    for pairs in run_ranks(ranks, _compared, tmp_path, teacher, settings):
        for (rows, weights, state), (cached, ours, kept) in pairs:
            assert len(rows) == len(cached) >= 6 and state["teacher"] and kept["teacher"]
            for row, other in zip(rows, cached, strict=True):
                assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
            for name, value in weights.items():
                torch.testing.assert_close(ours[name], value, atol=5e-5, rtol=0, msg=name)


def _kept(folder, path, other):
    """Store predictions, train from them without reading the teacher's weights, and return how many entries other settings add."""
    first = trainer_of(folder, path, Watched, teacher="cached", top_k=3)
    assert first.asked
    again = trainer_of(folder, path, Watched, teacher="cached", top_k=3, beta=1.0, ce_share=0.0)
    again.train()
    again.probe()  # as some steps later
    assert again.asked == again.weights_of_teacher == []
    with pytest.raises(CheckpointError, match=r"trainer.teacher_path: the weights in .* are not those with which"):
        again.load_state_dict({"teacher": weights_hash(weight_files(other), World())})
    entries, added = set(), []
    for model, change in ((path, {}), (path, {"top_k": 4}), (path, {"temperature": 1.0}), (other, {})):
        trainer_of(folder, model, **{"teacher": "cached", "top_k": 3, **change})
        now = {place.parent.name for place in folder.glob("scores/*/about.json")}
        added.append(len(now - entries))
        entries = now
    with pytest.raises(ConfigError, match=r"trainer.top_k: got 129, but student and teacher have 128 tokens; expected"):
        trainer_of(folder, path, teacher="cached", top_k=129)
    return added


def test_stored_predictions_are_used_again_and_their_key_follows_all_that_they_depend_on(teacher, tmp_path):
    other = teacher_model()
    with torch.no_grad():
        other.lm_head.weight[5, 5] += 1
    other.save_pretrained(tmp_path / "other")
    [added] = run_ranks(1, _kept, tmp_path, teacher, str(tmp_path / "other"))
    assert added == [2, 2, 2, 2]  # of training and evaluation


def test_weights_that_are_not_loaded_are_known_by_the_content_of_their_files(teacher, tmp_path, monkeypatch):
    def found(name):
        return weights_hash(weight_files(str(name)), World())

    cached = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(teacher, cached / "snapshots" / "0123abcd")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder, first = cached / "snapshots" / "0123abcd", found(teacher)
    file = folder / "model.safetensors"
    os.utime(file, (0, 0))
    (folder / "README.md").write_text("edited")
    assert found(folder) == found("owner/name") == first
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert found(folder) == found("owner/name") != first
    file.rename(folder / "pytorch_model.bin")
    assert found("owner/name")
    with pytest.raises(ModelError, match="holds no files of weights, expected model.safetensors"):
        found(tmp_path)
    file.mkdir()
    with pytest.raises(ConfigError, match=r"trainer.teacher_path: cannot read .*model.safetensors \(Is a directory\)"):
        found(folder)
    with pytest.raises(ModelError, match=r"^trainer.teacher_path: 'owner/other' cannot be loaded: "):
        found("owner/other")


@pytest.fixture(scope="module")
def predicted():
    """Return a batch, a teacher at temperature 2 on either way to its logits, and these."""
    model, batch = teacher_model(), batch_of(DATA)
    model.eval()
    computers = [LossComputer(model, None), LossComputer(model, tap_head(model, CPU), chunk_rows=7)]
    teachers = [Teacher(computer, 2.0) for computer in computers]
    targets = teachers[0].targets(batch)
    assert isinstance(targets, WholeLogits)
    return batch, teachers, targets.logits_KV


def test_what_is_stored_are_the_most_likely_tokens_and_the_rest(predicted):
    batch, teachers, logits_KV = predicted
    probabilities_KV = (logits_KV[:, :100].double() / 2).softmax(-1)  # a student with a smaller vocabulary
    top = probabilities_KV.topk(6)
    for teacher in teachers:
        found = most_likely(teacher, batch, 6, 100)
        assert found["ids"].dtype == torch.int32 and torch.equal(found["ids"].long(), top.indices)
        torch.testing.assert_close(found["logps"].double().exp(), top.values, rtol=1e-5, atol=0)
        torch.testing.assert_close(found["tail"].double().exp(), 1 - top.values.sum(-1), rtol=1e-5, atol=0)
        nothing = most_likely(teacher, batch_of([]), 6, 100)
        assert [tuple(column.shape) for column in nothing.values()] == [(0, 6), (0, 6), (0,)]


@pytest.mark.parametrize("beta", BETAS)
def test_few_tokens_are_a_lower_bound_and_all_are_the_divergence(predicted, beta):
    batch, [teacher, _], logits_KV = predicted
    student_KV = 3 * torch.randn(len(logits_KV), 130, generator=torch.Generator().manual_seed(0))
    pair = [part.double().softmax(-1) for part in (student_KV[:, :128], logits_KV / 2)]
    expected, bound = formula(*pair, beta), torch.zeros(())
    for count in (1, 8, 64, 128):
        scaled_KV = student_KV.clone().requires_grad_()
        batch.stored = most_likely(teacher, batch, count, 128)
        ours = divergence(*StoredTeacher("w", 128).targets(batch).classes(slice(None), scaled_KV), beta)
        ours.sum().backward()
        assert scaled_KV.grad.isfinite().all() and not scaled_KV.grad[:, 128:].any()
        assert (ours.double() <= expected * (1 + 1e-5)).all() and (ours >= bound - 1e-5).all()
        ids = batch.stored["ids"].long()
        sides = [torch.cat([p.gather(1, ids), 1 - p.gather(1, ids).sum(-1, keepdim=True)], 1) for p in pair]
        if count < 128:
            torch.testing.assert_close(ours.double(), formula(*sides, beta), rtol=1e-5, atol=1e-6)
        bound = ours.detach()
    torch.testing.assert_close(bound.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_without_predictions_is_an_error():
    with pytest.raises(ArcticHydraError, match=r"trainer.teacher: a batch has no stored predictions: they are inco"):
        StoredTeacher("w", 128).targets(batch_of(HELD))


def test_sequences_that_ranks_share_and_an_adapter_are_refused():
    shared = {"teacher_path": "x", "sequence_parallel_size": 2}
    with pytest.raises(ValueError, match=r"sequence_parallel_size: got 2, but predictions are stored for whole"):
        DistillTrainer(teacher="cached", **shared)
    with pytest.raises(ConfigError, match=r"trainer.sequence_parallel_size: got 2, but predictions are stored"):
        DistillTrainer(**shared).store_scores()
    with pytest.raises(ConfigError, match=r"trainer.teacher: got adapter_off, whose predictions cannot be stored"):
        DistillTrainer(teacher="adapter_off", ce_share=0.5).store_scores()
    with pytest.raises(ValueError, match=r"top_k: got 0, expected"):
        DistillTrainer(teacher="cached", teacher_path="x", top_k=0)
