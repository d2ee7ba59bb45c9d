"""Muon: which parameters it takes, and the same result at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch
import transformers

from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.model.vocabulary import fit_vocabulary
from arctic_hydra.optimizer.muon import MuonFactory
from tests.optimizer.runs import MUON, compare, network, trained
from tests.ranks import run_ranks
from tests.trainer.loop import attached


def _muon(folder, stage):
    # DeepSpeed compiles its Newton-Schulz; a process forked from one that has compiled would wait for threads of its parent.
    torch.compiler.set_stance("force_eager")
    return trained(folder, MuonFactory(**MUON), stage, clipping=0.0)


@pytest.fixture(scope="module")
def muon(tmp_path_factory):
    return run_ranks(1, _muon, tmp_path_factory.mktemp("muon"), 0)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (2, 1), (2, 2), (2, 3)])
def test_muon_is_the_same_at_every_stage(muon, tmp_path, ranks, stage):
    """Up to the precision of Newton-Schulz in bf16, where another order of summation changes an update by 1e-2."""
    for ours in run_ranks(ranks, _muon, tmp_path, stage):
        compare(ours, muon, 5e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_hidden_matrices(tied):
    model = network(tie_word_embeddings=tied)
    factory = attached(MuonFactory(lr=0.02, adam_lr=0.001, weight_decay=0.1, layerwise_lr_decay=0.5))
    optimizer = factory.create_optimizer(model)
    kind = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = kind[id(parameter)]
        assert group["use_muon"] is ("proj" in name), name
        scale = 0.25 if ".0." in name else 0.5 if ".1." in name else None
        if scale:
            assert group["lr"] == pytest.approx(scale * (0.02 if group["use_muon"] else 0.001)), name


def under_muon(model):
    """Return the names of the parameters that Muon takes."""
    groups = attached(MuonFactory()).create_optimizer(model).param_groups
    taken = {id(p) for group in groups if group["use_muon"] for p in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in taken}


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_muon_leaves_embeddings_of_positions(architecture):
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": 0}
    more = {"ffn_dim": 48, "word_embed_proj_dim": 32} if architecture == "opt" else {}
    config = transformers.AutoConfig.for_model(architecture, max_position_embeddings=64, **sizes, **more)
    model = transformers.AutoModelForCausalLM.from_config(config)
    layers = {name for name, p in model.named_parameters() if p.ndim == 2 and (".h.0." in name or ".layers.0." in name)}
    assert under_muon(model) == layers and len(layers) >= 4


@pytest.mark.parametrize("full", [[], ["lm_head"], ["embed_tokens"]])
def test_muon_leaves_what_peft_trains_of_embedding_and_head(full):
    model = network(tie_word_embeddings=False)
    fit_vocabulary(model, 130, [128, 129], 1)
    adapted = attached(LoraFactory(r=4, modules_to_save=full)).convert(model)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert under_muon(adapted) == {name for name in trained if "lora_" in name}
    assert any("lora_" not in name for name in trained)
