"""Models that mix the documents of a packed row are rejected before the first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from arctic_hydra.data.batch import Batch
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.attention import varlen_attention
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.trainer.isolation import Subject, check_attention, check_causality, check_isolation, check_sum
from arctic_hydra.trainer.loss import LossComputer
from arctic_hydra.trainer.sft import SFTTrainer
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
STATE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
CASES = {
    "llama": ({}, ["arctic_varlen", "sdpa", "eager"], []),
    "mixtral": (EXPERTS, ["arctic_varlen", "sdpa"], []),
    # Their layers do not pass the document bounds to attention; masks from positions work.
    "stablelm": ({}, ["sdpa", "eager"], ["arctic_varlen"]),
    "nemotron": ({}, ["sdpa", "eager"], ["arctic_varlen"]),
    # A recurrent state, or the model's own positions, that continue across documents.
    "falcon_h1": (STATE, [], ["arctic_varlen", "sdpa", "eager"]),
    "bloom": ({"n_layer": 2, "n_head": 4}, [], ["arctic_varlen", "eager"]),
}


def factory(architecture: str, attention: str) -> RandomModelFactory:
    sizes = {key: value for key, value in SIZES.items() if architecture != "bloom" or "size" in key}
    values = sizes | CASES.get(architecture, ({},))[0]
    config = transformers.AutoConfig.for_model(architecture)
    return RandomModelFactory(
        architecture=architecture,
        dtype="fp32",
        attn_implementation=attention,
        disable_activation_checkpoint=True,
        hf_config_kwargs={key: value for key, value in values.items() if hasattr(config, key)},
    )


def subject(model: torch.nn.Module, attention: str) -> Subject:
    return Subject(LossComputer(model, None).loss_sum, model, torch.device("cpu"), attention, "trainer=sft")


@pytest.mark.parametrize("architecture", CASES)
def test_models_that_mix_documents_are_detected(architecture: str) -> None:
    _, apart, mixed = CASES[architecture]
    for attention in (*apart, *mixed):
        maker = factory(architecture, attention)
        torch.manual_seed(0)
        model = maker.create_model(maker.create_config()).train()
        if attention in apart:
            check_isolation(subject(model, attention))
        else:
            with pytest.raises(
                ConfigError,
                match=rf"data.packing: got true, but \w+ \(under trainer=sft\) mixes .*{attention}.*data.packing=false",
            ):
                check_isolation(subject(model, attention))
        assert model.training


@pytest.mark.parametrize("architecture", ["llama", "stablelm", "falcon_h1", "mamba"])
def test_causal_models_pass(architecture: str) -> None:
    maker = factory(architecture, "arctic_varlen")
    model = maker.create_model(maker.create_config()).train()
    check_causality(subject(model, "arctic_varlen"))
    for packed in (False, True):
        check_sum(subject(model, "arctic_varlen"), packed)
    assert model.training
    assert transformers.AttentionInterface()["arctic_varlen"] is varlen_attention


def test_a_model_that_never_calls_our_attention_is_refused() -> None:
    """Bloom selects its mask by the attention's name and has none for `arctic_varlen`, so it would not be causal."""
    for attention in ("arctic_varlen", "eager"):
        maker = factory("bloom", attention)
        model = maker.create_model(maker.create_config())
        if attention == "eager":
            check_causality(subject(model, attention))
            continue
        with pytest.raises(ConfigError, match="got arctic_varlen, but BloomForCausalLM has its own attention code"):
            check_attention(model, torch.device("cpu"))


def test_a_model_that_is_not_causal_is_refused() -> None:
    maker = factory("bert", "eager")
    model = maker.create_model(maker.create_config())
    with pytest.raises(
        ConfigError,
        match=r"in BertLMHeadModel \(under trainer=sft\) with .*eager tokens depend on later ones: .*is_decoder: true",
    ):
        check_causality(subject(model, "eager"))


def test_a_recurrent_state_is_refused_if_ranks_share_sequences() -> None:
    maker = factory("falcon_h1", "arctic_varlen")
    model = maker.create_model(maker.create_config())
    with pytest.raises(
        ConfigError,
        match=r"sequence_parallel_size: got 2, but in FalconH1ForCausalLM \(under trainer=sft\) tokens interact outside",
    ):
        check_isolation(subject(model, "arctic_varlen"), 2)


def _refused_then_trained(folder: Path, stage: int) -> str:
    data = documents([8, 6, 7], [4, 3, 5])
    model = factory("stablelm", "arctic_varlen")
    with pytest.raises(ConfigError) as error:
        make_trainer(data, folder, stage=stage, model=model)
    make_trainer(data, folder, stage=stage, model=model, packed=False).train()
    return str(error.value)


def test_all_ranks_refuse_packing_and_train_without_it(tmp_path: Path) -> None:
    for text in run_ranks(2, _refused_then_trained, tmp_path, 3):
        assert "data.packing: got true, but StableLmForCausalLM (under trainer=sft) mixes" in text


class Peeking(SFTTrainer):
    """Reads the logits one position late: those at the token that is to be predicted."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(replace(batch, rows_K=batch.rows_K + 1))


class FromInputs(SFTTrainer):
    """Takes the targets from the input tokens."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(replace(batch, targets_K=batch.input_ids_BT.flatten()[batch.rows_K + 1]))


class Everything(SFTTrainer):
    """Trains on all tokens, supervised or not."""

    looks_ahead = "it trains on tokens after the supervised ones"

    def loss(self, batch: Batch) -> torch.Tensor:
        rows = torch.arange(batch.input_ids_BT.numel() - 1)
        targets = batch.input_ids_BT.flatten()[1:]
        return super().loss(replace(batch, rows_K=rows, targets_K=targets, source_K=torch.zeros_like(rows)))


class Declared(Everything):
    looks_ahead = mixes_documents = "it trains on whole rows"


class Mean(SFTTrainer):
    """Returns a mean, as losses of torch do by default."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) / batch.num_supervised


class DeclaredMean(Mean):
    not_additive = "its step divides by nothing"


class Vector(SFTTrainer):
    """Returns a loss for each position."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) * torch.ones(batch.num_supervised)


class Nothing(SFTTrainer):
    """Returns nothing."""

    def loss(self, batch: Batch) -> torch.Tensor:  # type: ignore[return]
        super().loss(batch)


class NoGraph(SFTTrainer):
    """Returns numbers."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch).detach()


class VectorInSteps(Vector):
    """Returns a loss for each position, in training only."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) if self.tools.engine.module.training else super().loss(batch).mean()


class OfDocuments(SFTTrainer):
    """Has a loss of each document that is not a sum over its positions, as preference losses."""

    def loss(self, batch: Batch) -> torch.Tensor:
        assert batch.document_K is not None
        parts = [
            super(OfDocuments, self).loss(batch.only(batch.document_K == d)) for d in set(batch.document_K.tolist())
        ]
        return torch.stack(parts).sigmoid().sum()


class RowMean(SFTTrainer):
    """Averages over the tokens of a padded row, so that a document's loss depends on the longest one of its micro-batch."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) / batch.input_ids_BT.shape[1]


class Remembers(SFTTrainer):
    """Subtracts a mean of its earlier losses."""

    baseline = 0.0

    def loss(self, batch: Batch) -> torch.Tensor:
        total = super().loss(batch)
        self.baseline = 0.9 * self.baseline + 0.1 * float(total.detach()) / batch.num_supervised
        return total - self.baseline * batch.num_supervised


class MixesRows(SFTTrainer):
    """Adds to each loss a little of the tokens of all rows."""

    micro_batch_size = 2

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) + 1e-4 * batch.input_ids_BT.float().mean(0)[:4].sum() * batch.num_supervised


class Infinite(SFTTrainer):
    """Overflows."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) / 0.0


class Critic(SFTTrainer):
    """Has a second model with dropout, which sees the supervised tokens only."""

    def loss(self, batch: Batch) -> torch.Tensor:
        scores = torch.nn.functional.dropout(batch.targets_K.float() / 4096, 0.5)
        return super().loss(batch) + scores.sum()


class OfPairs(SFTTrainer):
    """Compares the answers of pairs, so that a single document has no loss."""

    def units(self, batch: Batch) -> int:
        return len(batch.document_lengths) // 2

    def loss(self, batch: Batch) -> torch.Tensor:
        losses_K = self._losses.losses(batch)[0]
        sums_D = losses_K.new_zeros(len(batch.document_lengths)).index_add(0, batch.document_K, losses_K)
        margins_P2 = sums_D.reshape(-1, 2)
        return -torch.nn.functional.logsigmoid(margins_P2[:, 1] - margins_P2[:, 0]).sum()


class MeanOfPairs(OfPairs):
    """Returns a mean over the pairs."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) / self.units(batch)


class ScaledMean(SFTTrainer):
    """Multiplies a mean by the number of positions, which is not a number where there are none."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return self._losses.losses(batch)[0].mean() * batch.num_supervised


class EmptyStack(OfDocuments):
    """Stacks the losses of documents, of which there may be none."""


class Labelled(SFTTrainer):
    """Reads numbers that only its own data holds."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return super().loss(batch) * batch.stored["weight"].sum()


def _probed(folder: Path, cls: type[SFTTrainer], packed: bool) -> list[str]:
    trainer = make_trainer(documents([8, 6], [4, 3]), folder, packed=packed)
    state = torch.get_rng_state()
    trainer.__class__ = cls
    trainer.micro_batch_size = vars(cls).get("micro_batch_size", 1)
    try:
        trainer.probe()
    except ConfigError as error:
        return error.problems
    except KeyError as error:
        return error.__notes__
    assert torch.equal(torch.get_rng_state(), state)
    return []


@pytest.mark.parametrize(
    ("cls", "packed", "refusal"),
    [
        (Peeking, False, "tokens depend on later ones: changing the tokens after a supervised position changed"),
        (FromInputs, True, ""),
        (Everything, False, ""),
        (Everything, True, "changing the first document, which is not supervised, changed the loss of the second"),
        (Declared, True, ""),
        (OfDocuments, True, ""),
        (OfDocuments, False, ""),
        (DeclaredMean, True, ""),
        (
            Vector,
            True,
            "trainer=Vector: `loss` returned a tensor of shape [4] for 4 supervised positions, expected a scalar",
        ),
        (
            Nothing,
            True,
            "trainer=Nothing: `loss` returned None for 4 supervised positions, expected a scalar tensor: the sum",
        ),
        (Mean, True, "trainer=Mean: on LlamaForCausalLM the loss of two documents is "),
        (Mean, False, "expected their sum"),
        (RowMean, False, "expected their sum"),
        (
            MixesRows,
            False,
            "trainer.micro_batch_size: got more than 1, but LlamaForCausalLM (under trainer=MixesRows) mixes the rows",
        ),
        (Remembers, True, "trainer=Remembers: `loss` returned "),
        (Infinite, True, "`loss` returned inf before the first step, expected a finite number"),
        (Critic, True, ""),
        (OfPairs, True, ""),
        (OfPairs, False, ""),
        (MeanOfPairs, True, "the loss of two pairs is "),
        (
            Labelled,
            True,
            "without labels and stored scores; a trainer whose loss needs more overrides `probed_loss`",
        ),
    ],
)
def test_the_loss_of_the_trainer_is_probed(cls: type[SFTTrainer], packed: bool, refusal: str, tmp_path: Path) -> None:
    [problems] = run_ranks(1, _probed, tmp_path, cls, packed)
    assert (refusal in problems[0]) if refusal else problems == []


@pytest.mark.parametrize(
    ("cls", "found"),
    [
        (ScaledMean, "returned nan"),
        (EmptyStack, "raised RuntimeError (stack expects a non-empty TensorList)"),
        (OfPairs, "raised RuntimeError (shape '[-1, 2]' is invalid for input of size 1)"),
    ],
)
def test_a_loss_that_a_rank_without_examples_cannot_compute_is_refused(
    cls: type[SFTTrainer], found: str, tmp_path: Path
) -> None:
    assert run_ranks(1, _probed, tmp_path, cls, True) == [[]]
    for problems in run_ranks(2, _probed, tmp_path, cls, True):
        assert f"`loss` {found} for a batch without supervised positions" in problems[0]


class LateMixing(SFTTrainer):
    """Mixes documents by a weight that is zero until the first step."""

    def loss(self, batch: Batch) -> torch.Tensor:
        mixed = batch.input_ids_BT.float().mean() * batch.num_supervised
        return super().loss(batch) + 0.01 * min(self.global_step, 1) * mixed


def _trained(folder: Path, cls: type[SFTTrainer]) -> tuple[int, list[str]]:
    trainer = make_trainer(documents([8, 6] * 4, [4, 3] * 4), folder)
    trainer.__class__ = cls
    trainer.probe()
    try:
        trainer.train()
    except ConfigError as error:
        return trainer.global_step, error.problems
    return trainer.global_step, []


def test_what_begins_at_zero_is_found_after_the_first_step(tmp_path: Path) -> None:
    [(step, problems)] = run_ranks(1, _trained, tmp_path, LateMixing)
    assert step == 1 and len(problems) == 1


def test_a_loss_without_a_graph_or_not_a_scalar_is_refused_in_the_first_step(tmp_path: Path) -> None:
    [(step, [problem])] = run_ranks(1, _trained, tmp_path, NoGraph)
    assert step == 0 and problem.startswith("trainer: the loss of a step has no graph, so no weight gets a gradient")
    [(step, [problem])] = run_ranks(1, _trained, tmp_path, VectorInSteps)
    assert step == 0 and "is a tensor of shape [4], expected a scalar tensor: the sum over its units" in problem
