"""Random weights of any shape: the same on every rank and at every ZeRO stage."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
import torch

from arctic_hydra import engine
from arctic_hydra.checkpoint.full_weights import gather_weights
from arctic_hydra.errors import ModelError
from arctic_hydra.model.hf import HFModelFactory, check_config_values
from arctic_hydra.model.random import RandomModelFactory
from tests.command import losses, only_run, run
from tests.ranks import run_ranks

SHAPE = {"architecture": "qwen3", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def factory(**values):
    return RandomModelFactory(**{**SHAPE, **LAYERS, **values})


def digests(stage, seed=1, **values):
    """Return a digest of each weight of the model that one rank makes, gathered where ZeRO-3 shards it."""
    maker = factory(**values)
    config = engine.ZeROFactory(stage=stage).fill(1, 1, torch.distributed.get_world_size(), maker.dtype, 32)
    torch.manual_seed(seed)
    with engine.model_init(config):
        model = maker.create_model(maker.create_config())
    assert stage != 3 or all(p.numel() == 0 for p in model.parameters())
    weights = gather_weights(model, keep=True, beside=Path(tempfile.mkdtemp()))
    return {name: hashlib.sha256(w.float().numpy().tobytes()).hexdigest() for name, w in weights.items()}


def test_ranks_and_stages_start_equal(tmp_path):
    expected = run_ranks(1, digests, 0)[0]
    assert len(set(expected.values())) > 14
    for stage in (0, 3):
        assert run_ranks(2, digests, stage) == [expected, expected]
    assert run_ranks(1, digests, 0, 2)[0]["lm_head.weight"] != expected["lm_head.weight"]


def test_initialization_keeps_the_random_state_and_rope_in_fp32():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    maker = factory(dtype="bf16", hf_config_kwargs={"tie_word_embeddings": True})
    model = maker.create_model(maker.create_config())
    assert torch.equal(torch.rand(1), expected)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert float(model.lm_head.weight.float().std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model.model.norm.weight, torch.ones_like(model.model.norm.weight))


def test_a_named_config_defines_the_shape(tmp_path):
    factory().create_config().save_pretrained(tmp_path)
    config = RandomModelFactory(name_or_path=str(tmp_path), num_hidden_layers=3).create_config()
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("qwen3", 32, 3)
    assert len(config.layer_types) == 3


def test_values_derived_from_a_named_config_follow_the_given_sizes(tmp_path):
    factory(architecture="llama", head_dim=None).create_config().save_pretrained(tmp_path)
    config = RandomModelFactory(name_or_path=str(tmp_path), hidden_size=64).create_config()
    assert (config.hidden_size, config.head_dim, config.vocab_size) == (64, 16, 96)


def test_values_that_only_the_models_code_reads(tmp_path):
    """The config of Qwen3-MoE lacks a head size, but its model reads one and its checkpoints set it."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    made = factory(architecture="qwen3_moe", head_dim=None, hf_config_kwargs={"head_dim": 16, **experts})
    config = made.create_config()
    assert made.create_model(config).model.layers[0].self_attn.q_proj.weight.shape == (4 * 16, 32)
    config.save_pretrained(tmp_path)
    check_config_values(config, {"head_dim": 8}, "model.hf_config_kwargs")
    named = RandomModelFactory(name_or_path=str(tmp_path), head_dim=8)
    assert named.create_config().head_dim == 8
    with pytest.raises(ModelError, match="model.hf_config_kwargs.head_dims: Qwen3MoeConfig has no such value"):
        check_config_values(config, {"head_dims": 8}, "model.hf_config_kwargs")


def test_values_that_only_the_configs_constructor_takes():
    values = {"global_head_dim": 16, "vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8}
    config = factory(architecture="gemma4_text", hf_config_kwargs=values).create_config()
    assert [layer.head_dim for layer in config.per_layer_config] == [8, 16]
    with pytest.raises(ModelError, match="global_head_dim: Gemma4TextConfig has no such value"):
        check_config_values(config, {"global_head_dim": 32}, "model.hf_config_kwargs")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"architecture": "qwen33"}, r"model.architecture: got 'qwen33', .*did you mean qwen3\?"),
        ({"architecture": "t5"}, "expected a model type that transformers has a causal model for"),
        ({"hf_config_kwargs": {"experts": 3}}, "model.hf_config_kwargs.experts: Qwen3Config has no such value"),
        (
            {"num_key_value_heads": 32},
            "model.num_key_value_heads: got 32, expected a divisor of the 4 attention heads; pass",
        ),
        ({"head_dim": 15}, "model: ValueError: RoPE requires an even rotary dimension"),
        (
            {"hf_config_kwargs": {"layer_types": ["full_attention"]}},
            "model: ValueError: .num_hidden_layers. .2. must be equal",
        ),
        (
            {"architecture": "smollm3", "vocab_size": 96},
            "model.vocab_size: got 96, but the config's pad_token_id=128004 is not below it; pass .*pad_token_id: null",
        ),
    ],
)
def test_impossible_shapes_are_refused(values, text):
    with pytest.raises(ModelError, match=text):
        factory(**values).create_config()


def test_values_that_the_models_code_rejects(tmp_path):
    maker = factory(hf_config_kwargs={"hidden_act": "sillu"})
    with pytest.raises(ModelError, match="model: KeyError: 'sillu'; see the documentation"):
        maker.create_model(maker.create_config())
    factory().create_config().save_pretrained(tmp_path)
    stored = HFModelFactory(name_or_path=str(tmp_path), hf_config_kwargs={"num_attention_heads": "four"})
    with pytest.raises(ModelError, match="model.hf_config_kwargs: TypeError: .*expected int, got str"):
        stored.create_config()


def test_exactly_one_of_name_and_architecture_is_given():
    with pytest.raises(ValueError, match=r"architecture: got both of name_or_path and architecture; pass"):
        factory(name_or_path="x/y")
    with pytest.raises(ValueError, match="architecture: got neither of"):
        factory(architecture=None)


def test_a_run_trains_from_scratch(tmp_path):
    shape = " ".join(f"model.{name}={value}" for name, value in (SHAPE | LAYERS).items())
    arguments = (
        f"model=random {shape} model.dtype=fp32 trainer.train_iters=8 optimizer.lr=1e-2 tracking=[] data.num_proc=1"
    )
    refused = run(f"{arguments} data.max_length=256", tmp_path, code=1)
    assert "model: has 96 embedding rows, but the tokenizer has 4096 tokens" in refused.stderr
    run(f"{arguments} model.vocab_size=4Ki data.max_length=256 name=fits", tmp_path)
    fallen = losses(only_run(tmp_path, "fits"))
    assert fallen[-1] < fallen[0] - 0.5
