"""The first option that a trainer's type hint names is its default."""

from __future__ import annotations

from pathlib import Path

from tests.command import run


def test_the_first_hint_is_the_default_and_a_choice_wins(my_lab: Path, tmp_path: Path) -> None:
    lab = {"PYTHONPATH": str(my_lab)}
    composed = run("trainer=choosy model.name_or_path=org/model --cfg job", tmp_path, **lab).stdout
    assert "arctic_hydra.model.hf.HFModelFactory" in composed
    assert "arctic_hydra.tokenizer.hf.HFTokenizerFactory" in composed, "the option of the model chooses it"
    assert "arctic_hydra.scheduler.linear.LinearScheduler" in composed
    assert "arctic_hydra.data.sft.SFTDataFactory" in composed, (
        "its class is no option, so the default of the config stays"
    )
    chosen = run("trainer=choosy model=tiny --cfg job", tmp_path, **lab).stdout
    assert "arctic_hydra.model.tiny.TinyModelFactory" in chosen
    told = run("trainer=choosy model=tiny task=check", tmp_path, **lab).stdout
    assert told.startswith("default  scheduler=linear, the first that trainer=choosy names\n")
