# ruff: noqa: E501 (tables of messages)
"""Parameter groups by pattern, with every optimizer's own fields at their defaults."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.errors import ConfigError
from arctic_hydra.optimizer.adamw import AdamWFactory
from arctic_hydra.scheduler.linear import LinearScheduler
from tests.trainer.loop import tiny_factory


@pytest.fixture(scope="module")
def model():
    factory = tiny_factory(tie_word_embeddings=False)
    return factory.create_model(factory.create_config())


def table(model, **fields):
    """Return (lr, weight decay) of each parameter by name, and the optimizer."""
    optimizer = AdamWFactory(lr=1.0, weight_decay=0.1, **fields).create_optimizer(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (pytest.approx(group["lr"]), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    return found, optimizer


def test_norms_never_decay_and_patterns_add_to_them(model):
    found, _ = table(model, no_decay=["embed_tokens"])
    undecayed = {name for name, (_, decay) in found.items() if decay == 0}
    assert undecayed == {name for name in found if "norm" in name or name == "model.embed_tokens.weight"}
    assert found.keys() == dict(model.named_parameters()).keys()


def test_groups_scale_the_rate_and_set_the_decay(model):
    groups = {
        "head": {"patterns": ["lm_head"], "lr_scale": "50%"},
        "attention": {"patterns": ["self_attn"], "weight_decay": 0},
    }
    found, optimizer = table(model, groups=groups)
    assert found["lm_head.weight"] == (0.5, 0.1)
    assert found["model.layers.1.self_attn.q_proj.weight"] == (1.0, 0)
    assert found["model.layers.1.mlp.up_proj.weight"] == (1.0, 0.1)
    assert optimizer.param_groups[0]["lr"] == 1.0, "the rate in the metrics is the unscaled one"


def test_every_group_follows_the_schedule(model):
    _, optimizer = table(model, groups={"head": {"patterns": ["lm_head"], "lr_scale": 0.5}})
    scheduler = LinearScheduler(warmup_ratio=0.0).create_scheduler(optimizer, 10)
    whole, half = [], []
    for _ in range(10):
        whole.append(optimizer.param_groups[0]["lr"])
        half.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
    assert half == pytest.approx([rate / 2 for rate in whole]) and whole[0] > whole[5] > whole[-1]


def test_layerwise_decay_starts_at_the_head(model):
    found, _ = table(model, layerwise_lr_decay=0.5)
    rates = {name: rate for name, (rate, _) in found.items()}
    assert rates["lm_head.weight"] == rates["model.norm.weight"] == 1.0
    assert rates["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert rates["model.layers.0.mlp.up_proj.weight"] == 0.25
    assert rates["model.embed_tokens.weight"] == 0.125
    names = ["gpt_neox.embed_in.weight", "gpt_neox.layers.0.mlp.weight", "embed_out.weight"]
    assert list(AdamWFactory(layerwise_lr_decay=0.5)._layer_scales(names).values()) == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"no_decay": ["embed_token_"]}, r"optimizer.no_decay: 'embed_token_' matches no parameter; did you mean 'embed_tokens' \(as in"),
        ({"groups": {"x": {"patterns": ["q_prj"], "lr_scale": 2}}}, r"optimizer.groups.x.patterns: 'q_prj' matches no parameter; did you mean 'q_proj'"),
        (
            {"groups": {"a": {"patterns": ["q_proj"], "lr_scale": 2}, "b": {"patterns": ["layers.0"], "lr_scale": 3}}},
            "optimizer.groups.b.patterns: model.layers.0.self_attn.q_proj.weight is also in optimizer.groups.a",
        ),
    ],
)  # fmt: skip
def test_patterns_that_match_nothing_or_overlap_are_refused(model, fields, text):
    with pytest.raises(ConfigError, match=text):
        table(model, **fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"no_decay": ["("]}, r"no_decay: got '\(', which is not a valid regular expression"),
        ({"no_decay": [""]}, "no_decay: got an empty pattern"),
        ({"groups": {"x": {"patterns": ["a"]}}}, "groups.x: got .* expected patterns with lr_scale or weight_decay"),
        ({"groups": {"x": {"patterns": ["a"], "lr": 1}}}, "groups.x.lr: there is no such key; a group has patterns, lr_scale"),
        ({"groups": {"x": {"patterns": ["a"], "lr_scale": -1}}}, "groups.x.lr_scale: got -1, expected a number of 0 or more"),
        ({"groups": {"x": {"patterns": "a", "lr_scale": 1}}}, "groups.x.patterns: got 'a', expected a list"),
        ({"layerwise_lr_decay": 0}, "layerwise_lr_decay: got 0, expected more"),
        ({"layerwise_lr_decay": 2}, "got 2, expected 1 or less"),
    ],
)  # fmt: skip
def test_malformed_groups_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        AdamWFactory(**fields)


def test_layerwise_decay_needs_layers():
    with pytest.raises(
        ConfigError, match="optimizer.layerwise_lr_decay: got 0.5, but no trainable parameter lies in a numbered"
    ):
        AdamWFactory(layerwise_lr_decay=0.5).create_optimizer(torch.nn.Linear(2, 2))
