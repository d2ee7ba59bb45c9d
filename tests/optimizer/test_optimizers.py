"""Each optimizer on real engines: DeepSpeed's Adams against torch's, Muon the same at every ZeRO stage."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import transformers

from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.model.vocabulary import fit_vocabulary
from arctic_hydra.optimizer import deepspeed_ops
from arctic_hydra.optimizer.adamw import AdamWFactory
from arctic_hydra.optimizer.cpu_adam import CPUAdamFactory
from arctic_hydra.optimizer.fused_adam import FusedAdamFactory
from arctic_hydra.optimizer.muon import MuonFactory
from arctic_hydra.optimizer.muon_adamw import MuonAdamW
from tests.ranks import run_ranks
from tests.trainer.loop import documents, full_weights, make_trainer, tiny_factory

DATA = documents([20, 60, 10, 25, 12, 9, 31, 8] * 3, [1, 50, 7, 0, 7, 8, 20, 2] * 3)


def trained(folder, optimizer, stage, **settings):
    """Train six steps of four documents; return losses, final weights, and which parameters Muon took."""
    size = 4 // torch.distributed.get_world_size()
    trainer = make_trainer(DATA, folder, stage=stage, optimizer=optimizer, micro_batch_size=size, **settings)
    rows = []
    trainer._record = rows.append
    trainer.train()
    return [row["loss"] for row in rows], full_weights(trainer)


def compare(ours, theirs, tolerance):
    (losses, weights), (expected, wanted) = ours, theirs
    assert losses == pytest.approx(expected, abs=tolerance)
    far = max(float((weights[name] - wanted[name]).abs().max()) for name in wanted)
    print(
        f"losses within {max(abs(a - b) for a, b in zip(losses, expected, strict=True)):.1e}, weights within {far:.1e}"
    )
    assert far < tolerance
    return far


ADAM = {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.9, 0.95]}


@pytest.fixture(scope="module")
def adamw(tmp_path_factory):
    return run_ranks(1, trained, tmp_path_factory.mktemp("adamw"), AdamWFactory(**ADAM), 0)[0]


@pytest.mark.extras
@pytest.mark.parametrize("factory", [FusedAdamFactory, CPUAdamFactory])
@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 2), (2, 3)])
def test_deepspeeds_adams_equal_torchs(adamw, tmp_path, factory, ranks, stage):
    for ours in run_ranks(ranks, trained, tmp_path, factory(**ADAM), stage):
        compare(ours, adamw, 2e-5)


MUON = {"lr": 1e-2, "adam_lr": 1e-2, "weight_decay": 0.1}


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
    """To the precision of Newton-Schulz in bf16, which two orders of summation leave 1e-2 of an update apart."""
    for ours in run_ranks(ranks, _muon, tmp_path, stage):
        compare(ours, muon, 5e-3)


def network(**values):
    torch.manual_seed(0)
    factory = tiny_factory(**values)
    return factory.create_model(factory.create_config())


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_hidden_matrices(tied):
    model = network(tie_word_embeddings=tied)
    factory = MuonFactory(lr=0.02, adam_lr=0.001, weight_decay=0.1, layerwise_lr_decay=0.5)
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
    groups = MuonFactory().create_optimizer(model).param_groups
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
    adapted = LoraFactory(r=4, modules_to_save=full).convert(model)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert under_muon(adapted) == {name for name in trained if "lora_" in name}
    assert any("lora_" not in name for name in trained)


def test_muon_goes_on_from_a_saved_state():
    first, second = network(), network()
    optimizers = [MuonFactory(**MUON).create_optimizer(model) for model in (first, second)]
    assert all(isinstance(optimizer, MuonAdamW) for optimizer in optimizers)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    step(first, optimizers[0], 1)
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))  # loading copies no tensor
    for model, optimizer in zip((first, second), optimizers, strict=True):
        step(model, optimizer, 2)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_a_missing_compiler_is_said_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(deepspeed_ops.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    for factory in (FusedAdamFactory, CPUAdamFactory):
        [problem] = factory().check_environment()
        assert "at its first use, and this machine lacks a C++ compiler (g++)" in problem
        assert problem.endswith("or pass optimizer=adamw")
