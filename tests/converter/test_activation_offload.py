"""Offloading activations to host memory needs layers that are recomputed."""

from __future__ import annotations

import pytest

from arctic_hydra.converter.activation_offload import ActivationOffload
from arctic_hydra.errors import ModelError
from tests.trainer.loop import tiny_factory


def test_offloading_needs_recomputed_layers():
    factory = tiny_factory(disable_activation_checkpoint=True)
    with pytest.raises(ModelError, match="no layer of the model recomputes its activations"):
        ActivationOffload().convert(factory.create_model(factory.create_config()))
