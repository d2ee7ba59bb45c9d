"""Float8 products by torchao, emulated and on the CPU: losses and gradients near the plain ones."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch

from arctic_hydra.converter.float8 import Float8Converter
from arctic_hydra.errors import ConfigError
from tests.converter import lab
from tests.trainer.loop import tiny_factory


def trained(kind, folder, model):
    arguments = f"converter=[float8] converter.float8.emulate=true converter.float8.recipe={kind}"
    return lab.train_each({"plain": "checkpoint=[]", "float8": f"{arguments} checkpoint=[]"}, folder, model)


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["tensorwise", "rowwise"])
def test_losses_are_close_to_those_without_float8(kind, tmp_path):
    lab.warm()
    model = lab.save_model(tmp_path / "model")
    found = lab.in_ranks(1, trained, kind, tmp_path, model)
    plain, rounded = found["plain"], found["float8"]
    assert rounded["losses"] != plain["losses"]
    assert rounded["losses"] == pytest.approx(plain["losses"], rel=5e-3)
    assert rounded["norms"] == pytest.approx(plain["norms"], rel=0.1)
    assert all(not value.equal(plain["weights"][name]) for name, value in rounded["weights"].items() if "proj" in name)


RECIPES = ["tensorwise", "rowwise", "rowwise_with_gw_hp"]


@pytest.mark.extras
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_kernel_supports_any_number_of_tokens(recipe, monkeypatch):
    """CUDA's kernel takes an inner dimension and a last one that are multiples of 16; the CPU's takes any."""
    sizes, multiply = [], torch._scaled_mm

    def recording(a, b, *more, **settings):
        sizes.append((*a.shape, b.shape[1]))
        return multiply(a, b, *more, **settings)

    monkeypatch.setattr(torch, "_scaled_mm", recording)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    torch.manual_seed(0)
    plain = tiny_factory(tie_word_embeddings=False)
    plain = plain.create_model(plain.create_config())
    rounded = Float8Converter(recipe=recipe).convert(deepcopy(plain))
    ids = torch.arange(37)[None]
    rounded(ids, labels=ids).loss.backward()
    plain(ids, labels=ids).loss.backward()
    assert len(sizes) == 2 * 7 * (2 if recipe == "rowwise_with_gw_hp" else 3)
    assert all(k % 16 == 0 and n % 16 == 0 for _, k, n in sizes), sizes
    for (name, p), q in zip(rounded.named_parameters(), plain.parameters(), strict=True):
        assert float((p.grad - q.grad).norm() / q.grad.norm()) < 0.2, name


@pytest.mark.extras
def test_there_is_no_rounding_within_exactly():
    factory, ids = tiny_factory(tie_word_embeddings=False), torch.arange(9)[None]
    model = factory.create_model(factory.create_config()).eval()
    converter = Float8Converter(emulate=True)
    with torch.no_grad():
        plain = model(ids).logits
        converter.convert(model)
        with converter.without_rounding(model):
            assert torch.equal(model(ids).logits, plain)
        assert not torch.equal(model(ids).logits, plain)


@pytest.mark.extras
def test_a_model_without_a_layer_to_convert_is_refused():
    factory = tiny_factory(hidden_size=24, intermediate_size=40)
    model = factory.create_model(factory.create_config())
    with pytest.raises(ConfigError, match="converter.float8: LlamaForCausalLM has no linear layer to convert"):
        Float8Converter(emulate=True).convert(model)


ENVIRONMENT = [
    ("converter=[float8]", "converter.float8.recipe: converter=.float8. needs torchao, which is not installed"),
    ("converter=[float8]", "converter.float8.recipe: converter=.float8. needs a CUDA GPU, .* or pass converter.float8.emulate=true"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), ENVIRONMENT)
def test_environment_problems(arguments, text, model, monkeypatch):
    assert re.search(text, lab.environment_problems(arguments, model, monkeypatch))
