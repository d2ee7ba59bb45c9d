"""The names that a config may use are those of the losses, and lists of them are subsets."""

from __future__ import annotations

from arctic_hydra.trainer.preference.choices import PAIR_LOSS_NAMES, PER_TOKEN, SMOOTHED
from arctic_hydra.trainer.preference.losses import PAIR_LOSSES
from arctic_hydra.trainer.preference.sequence_logps import Answers, Pairs


def test_the_lists_say_which_losses_use_smoothing_and_lengths():
    import torch

    scores = torch.tensor([1.0]), torch.tensor([-2.0])
    assert tuple(PAIR_LOSSES) == PAIR_LOSS_NAMES
    for name, loss in PAIR_LOSSES.items():
        short, long = (Pairs(*(Answers(score, torch.tensor([tokens])) for score in scores)) for tokens in (1, 5))
        assert (loss(short, 0.5, 0.1) != loss(short, 0.5, 0.2)).any() == (name in SMOOTHED), name
        assert (loss(short, 0.5, 0.1) != loss(long, 0.5, 0.1)).any() == (name in PER_TOKEN), name
