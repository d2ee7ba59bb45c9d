"""Why an export is not loaded a second time, and with which library it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arctic_hydra.trainer.verification.comparison import verify
from arctic_hydra.trainer.verification.expectation import Expectation
from arctic_hydra.trainer.verification.reloading import load, reason_against
from tests.trainer.verification.exports import change, expectation, export, make_model


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Expectation]:
    model = make_model()
    export(model, tmp_path / "export")
    return tmp_path / "export", expectation(model)


def test_what_no_library_loads_is_said_and_the_rest_is_checked(exported: tuple[Path, Expectation]) -> None:
    folder, expected = exported
    assert reason_against(folder, expected) == ""
    change(folder / "config.json", model_type="my_own")
    verdict = verify(folder, expected)
    assert verdict.unchecked == ["logits and generation (no library loads a model of type 'my_own')"]
    assert verdict.verified and "1 stop token" in verdict.equal
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    assert reason_against(folder, expected) == "the base model of the adapter is in no file that peft could load"


def test_a_model_too_large_for_memory_or_time_is_not_loaded_again(exported: tuple[Path, Expectation]) -> None:
    folder, expected = exported
    slow = replace(expected, parameters=10**11)
    assert reason_against(folder, slow) == "it may take 21 minutes on the CPU"
    assert reason_against(folder, replace(slow, reload_seconds=1300)) == ""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert reason_against(folder, slow).startswith("it needs 447.0 GiB of memory, and ")


def test_the_merged_model_of_a_quantized_base_is_another_one(exported: tuple[Path, Expectation]) -> None:
    folder, expected = exported
    quantized = replace(expected, quantization={"load_in_4bit": True})
    assert "the base was quantized in training" in reason_against(folder, quantized)


def test_an_adapter_is_loaded_by_peft_in_the_data_type_of_training(tmp_path: Path) -> None:
    import peft

    base = make_model()
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    export(model, tmp_path / "export")
    expected = expectation(model)
    loaded = load(tmp_path / "export", replace(expected, dtype=torch.bfloat16))
    assert loaded.library == "peft" and loaded.model.dtype == torch.bfloat16
    verdict = verify(tmp_path / "export", expected)
    assert verdict.verified and verdict.unchecked == ["adapter scale (it changes no logits yet)"]
