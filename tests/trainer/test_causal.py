"""The causal trainer: selects its data, rejects chats and trains on every token."""

from __future__ import annotations

from pathlib import Path

import pytest

from arctic_hydra.data.causal import CausalDataFactory
from arctic_hydra.errors import ConfigError
from tests.command import SMALLEST, losses, only_run, run
from tests.composing import built


def test_the_trainer_brings_its_data() -> None:
    chosen = built("trainer=causal", "data.sources.text.path=a.txt")
    assert isinstance(chosen.data, CausalDataFactory) and set(chosen.data.sources) == {"text"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("trainer=causal", "data=chat"),
            r"data: got sft .* but trainer=causal \(CausalTrainer\) works with data=causal",
        ),
        (
            ("data=text", "data.sources.text.path=x"),
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
