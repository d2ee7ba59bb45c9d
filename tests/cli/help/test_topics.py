"""From a word on the command line to its page."""

from __future__ import annotations

import pytest

from arctic_hydra.__main__ import main


@pytest.mark.parametrize(
    ("topic", "begins", "holds"),
    [
        ("trainer", "trainer: one of these, with trainer=OPTION\n", "  trainer.epochs=1 "),
        ("launcher", "hydra/launcher: ", "  hydra.launcher.slots=null "),
        ("hydra/sweeper", "hydra/sweeper: ", "  hydra.sweeper.n_trials=20 "),
        ("callback", "callback: several at once, as in callback=[early_stopping,ema]\n", "callback.ema.decay=0.999"),
        ("tracking", "tracking: several at once, as in tracking=[mlflow,tensorboard]\n", "tracking.mlflow.uri"),
        ("data/sources", "data/sources: several at once", "Their keys are those of `--help source`"),
        ("run", "Keys of the run itself", "  seed=42 "),
        ("trainer=dpo", "trainer=dpo\n", "trainer.reference=auto"),
        ("checkpoint=[hf]", "checkpoint=hf\n", "checkpoint.hf.merge=null"),
        ("adamw", "optimizer=adamw\n", "optimizer.lr=0.0005"),
        ("trainer.epochs=3", "trainer.epochs\n", "  default     1\n"),
        ("trainer.beta", "trainer.beta\n", "With trainer=simpo:\n"),
        ("seed", "seed\n", "  type        integer 0 to 1.8e19\n"),
        ("lr", "optimizer.lr\n", "Numbers may be written as"),
        ("data.sources.mine.path", "data.sources.<name>.path\n", "none: required"),
        ("checkpoint.hf", "checkpoint.hf.enabled\n", "checkpoint.hf.merge\n"),
    ],
)
def test_a_topic_has_its_page(topic, begins, holds, capsys):
    assert main(["--help", topic]) == 0
    page = capsys.readouterr().out
    assert page.startswith(begins) and holds in page
    assert max(map(len, page.splitlines())) <= 80


def test_several_topics_make_one_page(capsys):
    assert main(["trainer=dpo", "seed=3", "--help"]) == 0
    page = capsys.readouterr().out
    assert "trainer=dpo\n" in page and "\n\nseed\n" in page


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        ("trainr", "there is no such group, option or key; the nearest are trainer"),
        ("trainer.epoch", "there is no such group, option or key; the nearest are trainer.epochs"),
        ("learning_rate", "there is no such group, option or key; "),
        ("zzzz", "there is no such group, option or key; --help lists the groups"),
        ("trainer=dpi", "trainer has no such option; expected one of sft, causal, "),
        ("json", "is an option of several groups; expected one of data=json, "),
    ],
)
def test_an_unknown_topic_names_the_nearest_ones(topic, error, capsys):
    assert main(["--help", topic]) == 2
    assert f"error: --help {topic}: {error}" in capsys.readouterr().err
