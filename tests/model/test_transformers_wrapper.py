"""Registered models behind the interface of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from arctic_hydra.errors import ConfigError, ModelError
from arctic_hydra.model import registry
from arctic_hydra.model.layers import layers
from arctic_hydra.model.registry import ModelSpec, StateDictAdapter, register_model_spec
from arctic_hydra.model.spec import SpecModelFactory, load_export
from arctic_hydra.model.transformers_wrapper import missing_names
from arctic_hydra.model.vocabulary import fit_vocabulary

pytestmark = pytest.mark.usefixtures("lab_models")


@dataclass
class Sizes:
    vocab_size: int = 16
    hidden_size: int = 8


class Bag(nn.Module):
    """The least model of all."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.head


def factory(model: Any = Bag, **given: Any) -> SpecModelFactory:
    """Return the factory of a model that is registered until the end of the test."""
    settings = {name: given.pop(name) for name in list(given) if name in SpecModelFactory.__dataclass_fields__}
    registry._SPECS.pop("mine", None)
    register_model_spec("mine", {"only": Sizes()})(lambda: ModelSpec(model=model, **given))
    return SpecModelFactory(spec="mine", dtype="fp32", **settings)


def made(spec: str, **settings: Any) -> tuple[SpecModelFactory, Any]:
    torch.manual_seed(0)
    factory = SpecModelFactory(spec=spec, dtype="fp32", **settings)
    factory.check_model()
    return factory, factory.create_model(factory.create_config())


class Nothing(nn.Module):
    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


class Misshapen(Bag):
    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.embed(input_ids)

    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(16, 8)

    def get_output_embeddings(self) -> Any:
        return self.embed


class Hidden(Bag):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.embed(input_ids)


class Pair(Bag):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return super().forward(input_ids), None


class Averaging(Bag):
    def __init__(self, config: Sizes) -> None:
        super().__init__(config)
        self.norm = nn.BatchNorm1d(config.hidden_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(input_ids).mT).mT)


class Gated(Bag):
    def __init__(self, config: Sizes) -> None:
        super().__init__(config)
        self.gate = nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize(
    ("model", "problems"),
    [
        (Nothing, ["has no method forward(input_ids)", "has no method get_input_embeddings()", "get_output_embeddings()"]),
        (
            Misshapen,
            ["forward() requires mask", "get_input_embeddings() returns Embedding(16, 8), expected the model's nn.Embedding",
             "get_output_embeddings() returns Embedding(16, 8), expected the model's nn.Linear with vocab_size=16 rows or None"],
        ),
        (Hidden, ["forward() returns a tensor of shape [1, 8, 8], expected logits of shape [B, T, V], here [1, 8, 16]"]),
        (Averaging, ["norm averages over all tokens of a batch in training"]),
        (Gated, ["gate is a parameter without dimensions, which DeepSpeed cannot send to other ranks"]),
        (Pair, ["forward() returns a tuple, expected logits"]),
        (lambda config: 3, ["mine (int) is a int, expected a torch.nn.Module"]),
    ],
)  # fmt: skip
def test_everything_that_a_model_lacks_is_reported_at_once(model, problems):
    with pytest.raises(ConfigError) as caught:
        factory(model).check_model()
    assert len(caught.value.problems) == len(problems)
    for found, text in zip(caught.value.problems, problems, strict=True):
        assert found.startswith("model.spec: mine (") and text in found and "docs/extending/models.md" in found


def test_layers_that_the_spec_does_not_name_cannot_be_recomputed_or_compiled():
    with pytest.raises(ConfigError) as caught:
        factory(disable_activation_checkpoint=False, compile=True).check_model()
    assert ["disable_activation_checkpoint" in text or "compile" in text for text in caught.value.problems] == [
        True
    ] * 2
    with pytest.raises(ConfigError, match="has no layer of the spec's layer_class, GRU"):
        factory(layer_class=nn.GRU).check_model()


def test_a_model_that_reads_values_is_checked_when_it_is_created():
    class Values(Bag):
        def __init__(self, config: Sizes) -> None:
            super().__init__(config)
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]

    valued = factory(Values)
    valued.check_model()
    assert valued.create_model(valued.create_config()).model.rates == [0, 0.5, 1]
    real = factory(Kernel)
    real.check_model()
    assert real.create_model(real.create_config())(torch.zeros(1, 2, dtype=torch.int64)).logits.shape == (1, 2, 16)
    nothing = factory(Nothing)
    with pytest.raises(ConfigError, match="has no method get_input_embeddings"):
        nothing.create_model(nothing.create_config())


def test_a_function_that_returns_no_spec_is_named():
    registry._SPECS.pop("mine", None)
    register_model_spec("mine", {"only": Sizes()})(lambda: Bag)  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError, match="the function registered as mine returned a type, expected a ModelSpec"):
        SpecModelFactory(spec="mine").check_model()


@pytest.mark.parametrize("flavor", ["debug", "base"])
def test_the_decoder_exports_as_a_llama_with_equal_logits_and_comes_back(flavor, tmp_path):
    small = {"hidden_size": 64, "num_hidden_layers": 2}
    _, model = made("decoder", flavor=flavor, config_kwargs=small)
    assert model.config.tie_word_embeddings == (flavor == "debug")
    fit_vocabulary(model, 4100, [4099], 8)
    assert model.model.embed.num_embeddings == model.model.head.out_features == 4104
    assert (model.model.head.weight is model.model.embed.weight) == (flavor == "debug")
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is LlamaForCausalLM and theirs.config.architectures == ["LlamaForCausalLM"]
    ids = torch.arange(40)[None] * 7 % 4104
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    ours = model.from_export(dict(theirs.named_parameters()))  # tied ones once
    for name, value in ours.items():
        assert torch.equal(value, model.state_dict()[name])


def test_the_recurrent_model_exports_its_own_layout_and_loads(tmp_path):
    _, model = made("gru")
    fit_vocabulary(model, 4097, [4096], 1)
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_export(tmp_path)
    assert loaded.model.embed.num_embeddings == 4097 and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    padded = {"attention_mask": torch.tensor([[0, 1], [1, 1]])}
    with pytest.raises(ModelError, match="rows may be padded at their end only; pass one prompt at a time"):
        loaded.generate(torch.tensor([[5, 6], [5, 6]]), max_new_tokens=1, **padded)
    assert loaded.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape == (1, 5)
    renamed = {
        name.replace("embed", "table"): value
        for name, value in load_file(sorted(tmp_path.glob("*.safetensors"))[0]).items()
    }
    save_file(renamed, sorted(tmp_path.glob("*.safetensors"))[0])
    with pytest.raises(
        ModelError, match=r"the weights are not those of gru, flavor .*as it is registered now: .* are missing"
    ):
        load_export(tmp_path)
    made("decoder")[1].save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match="is not an export in the layout of a registered model"):
        load_export(tmp_path / "llama")


def test_recomputed_layers_give_the_same_gradients():
    gradients = []
    for disabled in (True, False):
        _, model = made("decoder", disable_activation_checkpoint=disabled)
        assert [type(layer).__name__ for layer in layers(model)] == ["Block", "Block"]
        calls: list[int] = []
        model.model.blocks[0].norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(torch.arange(9)[None]).logits.square().sum().backward()
        assert len(calls) == (1 if disabled else 2)
        gradients.append([p.grad for p in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)


def test_weights_are_cast_but_buffers_stay_fp32():
    class Buffered(Bag):
        def __init__(self, config: Sizes) -> None:
            super().__init__(config)
            self.register_buffer("rates", torch.ones(2))

    half = factory(Buffered)
    half.dtype = "bf16"
    model = half.create_model(half.create_config())
    assert model.model.head.weight.dtype == torch.bfloat16 and model.model.rates.dtype == torch.float32


class Kernel(Bag):
    """Reads memory, as custom kernels do."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        assert input_ids.data_ptr()
        return super().forward(input_ids)


class BrokenLayout(StateDictAdapter):
    """Fails."""

    def hf_config(self) -> Any:
        raise KeyError("width")

    def to_hf(self, state_dict: Any) -> Any:
        return state_dict

    def from_hf(self, state_dict: Any) -> Any:
        return state_dict


class WrongLayout(StateDictAdapter):
    """Forgets the head, and cannot return."""

    def hf_config(self) -> Any:
        from transformers import GPT2Config

        return GPT2Config(vocab_size=16, n_embd=8, n_layer=0, n_head=1, n_positions=8, tie_word_embeddings=False)

    def to_hf(self, state_dict: Any) -> Any:
        return {"transformer.wte.weight": state_dict["embed.weight"]}

    def from_hf(self, state_dict: Any) -> Any:
        return {"embed.weight": state_dict["transformer.wte.weight"][:, :4]}


def test_a_wrong_adapter_is_refused_before_any_data_is_prepared():
    with pytest.raises(ConfigError) as caught:
        factory(state_dict_adapter=WrongLayout).check_model()
    text = str(caught.value)
    assert "WrongLayout: to_hf() lacks weights of GPT2LMHeadModel: lm_head.weight, transformer.ln_f.bias" in text
    assert "WrongLayout: from_hf(to_hf()) lacks weights of Bag: head.bias, head.weight" in text
    assert "from_hf(to_hf()) has weights in other shapes than Bag: embed.weight" in text
    with pytest.raises(ConfigError, match=r"mine \(Bag\) BrokenLayout raises KeyError: 'width'"):
        factory(state_dict_adapter=BrokenLayout).check_model()


class DividingLayout(WrongLayout):
    """Makes several weights of one, as an adapter does for a fused projection."""

    def to_hf(self, state_dict: Any) -> Any:
        embed, (scale, shift) = state_dict["embed.weight"], state_dict["head.bias"].chunk(2)
        body = {"wte.weight": embed, "wpe.weight": embed[:8], "ln_f.weight": scale, "ln_f.bias": shift}
        return {"lm_head.weight": state_dict["head.weight"], **{f"transformer.{n}": v for n, v in body.items()}}

    def from_hf(self, state_dict: Any) -> Any:
        bias = torch.cat([state_dict["transformer.ln_f.weight"], state_dict["transformer.ln_f.bias"]])
        embed = state_dict["transformer.wte.weight"]
        return {"embed.weight": embed, "head.weight": state_dict["lm_head.weight"], "head.bias": bias}


def test_an_adapter_may_divide_a_weight(tmp_path):
    dividing = factory(state_dict_adapter=DividingLayout)
    dividing.check_model()
    model = dividing.create_model(dividing.create_config())
    model.save_pretrained(tmp_path)
    exported = DividingLayout(None).to_hf(model.model.state_dict())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert exported.keys() == theirs.keys() == load_file(tmp_path / "model.safetensors").keys()
    assert all(torch.equal(theirs[name], value) for name, value in exported.items())


def test_hooks_get_the_model_and_may_not_rename_its_weights():
    seen: list[Any] = []

    def shard(model: nn.Module, world: Any) -> nn.Module:
        seen.append((type(model), world.size))
        return model

    def wrap(model: nn.Module, world: Any) -> nn.Module:
        return nn.Sequential(model)

    chosen = factory(
        parallelize=shard, post_optimizer_build=lambda optimizer, model: seen.append((optimizer, type(model)))
    )
    model = chosen.create_model(chosen.create_config())
    assert chosen.parallelize(model) is model
    chosen.post_optimizer_build("optimizer", model)  # type: ignore[arg-type]
    assert seen == [(Bag, 1), ("optimizer", Bag)]
    wrong = factory(parallelize=wrap)
    with pytest.raises(ModelError, match="the hook parallelize of mine renamed parameters"):
        wrong.parallelize(wrong.create_model(wrong.create_config()))


def test_a_plain_module_is_told_all_that_it_lacks():
    assert missing_names(nn.Linear(2, 2)) == ["get_input_embeddings", "get_output_embeddings", "config"]
    bag: Any = Bag(Sizes())
    bag.config = Sizes()
    assert missing_names(bag) == ["config.get_text_config()"]
    bag.config.get_text_config = lambda: bag.config
    assert missing_names(bag) == ["config.num_hidden_layers"]
