"""No adapter."""

from __future__ import annotations

import pytest
import torch

from arctic_hydra.converter.peft.none import NoPeft
from arctic_hydra.errors import ConfigError
from tests.converter import lab


def test_the_model_stays_as_it_is():
    model = torch.nn.Linear(2, 2)
    assert NoPeft().convert(model) is model and not NoPeft().adapts and NoPeft().trains_in_full == []


REFUSED = [
    ("checkpoint.hf.merge=true", "checkpoint.hf.merge: got true, but peft=none trains no adapter to merge"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_merging_without_an_adapter_is_refused(arguments, text, model):
    with pytest.raises(ConfigError, match=text):
        lab.compose_run(arguments, None if "model=tiny" in arguments else model)
