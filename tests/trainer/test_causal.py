"""The causal trainer: selects its data, rejects chats and trains on every token."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra import config
from arctic_hydra.cli.composition.compose import compose_config
from arctic_hydra.cli.overrides import normalize
from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.errors import ConfigError
from arctic_hydra.trainer.causal import CausalTrainer
from tests.command import SMALLEST, losses, only_run, run
from tests.composing import built


def test_the_trainer_brings_its_data() -> None:
    chosen = built("trainer=causal", "data.sources.text.path=a.txt")
    assert isinstance(chosen.data, CausalDataFactory) and set(chosen.data.sources) == {"text"}


def test_texts_bring_their_trainer_unless_another_is_chosen(tmp_path: Path) -> None:
    texts = ["data=text", "data.sources.text.path=a.txt"]
    composed = compose_config(texts, "config")
    assert composed.choices["trainer"] == "causal"
    assert composed.followed == ["trainer=causal, which data=text is for"]
    assert isinstance(config.build(composed.job).trainer, CausalTrainer)
    keyed = compose_config(["data=unpaired", "trainer.desirable_weight=2"], "config")  # a key that only kto has
    assert (keyed.choices["trainer"], keyed.job["trainer"]["desirable_weight"]) == ("kto", 2)
    assert compose_config(["data=preference"], "config").choices["trainer"] == "sft", "several trainers are for pairs"
    (tmp_path / "data").mkdir()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults:\n  - text\n  - _self_\ncolumn: body\n")
    header = "# @package _global_\n"
    (tmp_path / "experiment" / "7.yaml").write_text(f"{header}defaults:\n  - override /data: mine\n")
    composed = compose_config([normalize("experiment=7")], "config", str(tmp_path))
    assert (composed.choices["trainer"], composed.job["data"]["column"]) == ("causal", "body")
    (tmp_path / "whole.yaml").write_text(
        "defaults:\n  - config\n  - override data: text\n  - override trainer: sft\n  - _self_\n"
    )
    assert compose_config([], "whole", str(tmp_path)).choices["trainer"] == "sft"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("trainer=causal", "data=chat"),
            r"data: got sft .* but trainer=causal \(CausalTrainer\) works with data=causal",
        ),
        (
            ("trainer=sft", "data=text", "data.sources.text.path=x"),
            r"data: got causal .* but trainer=sft \(SFTTrainer\) works with data=sft",
        ),
    ],
)
def test_data_of_the_other_trainer_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(*overrides)


@pytest.mark.slow
def test_a_run_learns_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat sat on the mat, and then the cat sat on the hat.\n" * 200)
    run(f"trainer=causal data.sources.text.path=a.txt {SMALLEST} trainer.train_iters=12 tracking=none", tmp_path)
    seen = losses(only_run(tmp_path))
    assert len(seen) == 12 and seen[-1] < seen[0] - 0.5
