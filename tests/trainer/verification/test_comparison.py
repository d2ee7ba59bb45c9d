"""An export that differs from the trained model is told, by a sentence that names the difference."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from arctic_hydra.component import SEQUENCE_CLASSIFIER
from arctic_hydra.trainer.verification.comparison import distance, tolerance_of, verify
from arctic_hydra.trainer.verification.expectation import Expectation
from tests.trainer.verification.exports import change, expectation, export, make_model


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expectation]:
    """The export of a model whose head is tied."""
    folder = tmp_path_factory.mktemp("tied") / "export"
    model = make_model(tied=True)
    expected = expectation(model)
    export(model, folder)
    return folder, expected


def set_generation(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "generation_config.json", **values)


def change_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>", ""))


def untie(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file({**weights, **head}, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", tie_word_embeddings=False)


def lose_head(folder: Path) -> None:
    change(folder / "config.json", tie_word_embeddings=False)


def change_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= -20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


PLANTED: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "eos": (
        set_generation(eos_token_id=2),
        [
            "generation does not end where 3 '<|im_end|>' is forced",
            "generation_config.eos_token_id is 2, without 3 '<|im_end|>', which ends answers",
        ],
    ),
    "another eos": (
        set_generation(eos_token_id=[3, 300]),
        ["generation_config.eos_token_id is [3, 300], with 300 ", ", which is ordinary text"],
    ),
    "pad": (
        set_generation(pad_token_id=3),
        ["generation_config.pad_token_id is 3 '<|im_end|>', but training padded with 0 '<|pad|>'"],
    ),
    "no pad": (set_generation(pad_token_id=None), ["generation_config.pad_token_id is not set"]),
    "template": (change_template, ["its chat template is not the one of training (chat_template.jinja)"]),
    "tokenizer": (
        lambda folder: change(folder / "tokenizer_config.json", eos_token="<|im_start|>"),
        ["its tokenizer has eos_token_id 2, but that of training 3"],
    ),
    "untied head": (untie, ["embedding and head are one tied matrix in training, but two in the export"]),
    "lost head": (
        lose_head,
        ["its files lack lm_head.weight, which transformers draws at random", "its logits differ"],
    ),
    "weight": (change_weight, ["its logits differ from those of the trained model by "]),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["its model cannot be loaded and run (OSError: "],
    ),
}


def test_an_export_that_equals_the_model_is_verified(tied: tuple[Path, Expectation]) -> None:
    folder, expected = tied
    state = torch.get_rng_state()
    verdict = verify(folder, expected)
    assert verdict.differs == verdict.unchecked == []
    logits, *others = verdict.equal
    assert logits.startswith("logits ")
    assert others == ["tied head", "generation", "1 stop token", "padding", "template", "tokenizer"]
    assert verdict.verified and torch.get_rng_state().equal(state)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_named(name: str, tied: tuple[Path, Expectation], tmp_path: Path) -> None:
    folder, (plant, sentences) = shutil.copytree(tied[0], tmp_path / "export"), PLANTED[name]
    plant(folder)
    verdict = verify(folder, tied[1])
    assert not verdict.verified
    for sentence in sentences:
        assert any(sentence in text for text in verdict.differs), verdict.differs


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_merged_adapter_with_a_wrong_scale_is_named_where_the_logits_hide_it(factor: float, tmp_path: Path) -> None:
    """In bfloat16 the whole adapter changes the logits less than rounding may; its strength is measured by itself."""
    import peft
    from peft.tuners.lora import LoraLayer

    model: Any = peft.get_peft_model(
        make_model(dtype=torch.bfloat16), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"])
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    expected = expectation(model)
    assert expected.without_adapter_RV is not None
    assert distance(expected.without_adapter_RV, expected.outputs_RV) < tolerance_of(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] *= factor
    export(model.merge_and_unload(), tmp_path / "export")
    verdict = verify(tmp_path / "export", expected)
    if factor == 1:
        assert verdict.verified and "adapter scale" in verdict.equal
    elif factor < 1:  # as if rounding had taken half of it
        assert verdict.verified and "adapter scale" not in verdict.equal
        assert "rounds small changes away; checkpoint.hf.merge=false keeps them" in verdict.unchecked[0]
    else:
        [problem] = verdict.differs
        assert "its adapter acts " in problem and "so its scale (lora_alpha / r) is wrong" in problem
        assert float(problem.split("acts ")[1].split(" times")[0]) == pytest.approx(2, rel=0.2)


def test_a_reward_model_is_compared_by_its_scores(tmp_path: Path) -> None:
    model = make_model(classifier=True)
    expected = expectation(model, SEQUENCE_CLASSIFIER)
    export(model, tmp_path / "export")
    good = verify(tmp_path / "export", expected)
    assert good.verified and good.equal[1:] == ["padding", "template", "tokenizer"]
    assert good.equal[0].startswith("scores ")
    change(tmp_path / "export" / "config.json", pad_token_id=5)
    assert [text for text in verify(tmp_path / "export", expected).differs if "config.pad_token_id is 5" in text]


def test_the_tolerance_follows_from_the_data_type() -> None:
    assert [tolerance_of(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)] == pytest.approx(
        [1e-4, 0.0078125, 0.0625]
    )
    wanted_RV = torch.randn(4, 9)
    assert distance(wanted_RV + 3, wanted_RV) < 1e-6, "a constant is no difference of logits"
    assert distance(wanted_RV * torch.nan, wanted_RV) == float("inf")
