"""Registration of models by name, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from arctic_hydra.errors import DuplicateOption
from arctic_hydra.files.extensions import DISPUTED_OPTIONS
from arctic_hydra.model import registry
from arctic_hydra.model.registry import ModelSpec, RegisteredSpec, register_model_spec, registered_spec


@dataclass
class Sizes:
    vocab_size: int = 128
    hidden_size: int = 32
    dropout: float = 0.1
    name: str = "a"
    window: int | None = None


@dataclass
class Partial:
    vocab_size: int = 128


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", {})


def make() -> ModelSpec:
    raise AssertionError("composing a run does not create the spec")


@pytest.mark.parametrize(
    ("flavors", "text"),
    [
        ({}, "model.spec=mine: got no flavors"),
        ({"small": Sizes}, "flavor 'small' is <class .*Sizes'>, expected an instance of a dataclass"),
        ({"small": {"vocab_size": 3}}, "flavor 'small' is {'vocab_size': 3}, expected an instance of a dataclass"),
        ({"small": Sizes(name=Sizes())}, "name of flavor 'small' is not a plain value"),
        ({"small": Sizes(window=(1, 2))}, "window of flavor 'small' is not a plain value"),
        ({"small": Partial()}, r"flavor 'small' \(Partial\) lacks hidden_size, expected int fields"),
    ],
)
def test_configs_that_do_not_qualify_are_refused_at_registration(flavors, text):
    with pytest.raises(ValueError, match=text):
        register_model_spec("mine", flavors)


def test_a_name_is_taken_once_and_found_exactly(monkeypatch):
    with pytest.raises(ValueError, match="spec: got 'mine', but no model is registered"):
        registered_spec("mine")
    register_model_spec("mine", {"small": Sizes()})(make)
    assert registered_spec("mine").create is make
    with pytest.raises(
        DuplicateOption, match="model.spec=mine is already registered by tests.model.test_registry"
    ) as caught:
        register_model_spec("mine", {"small": Sizes()})
    for wrong in ("Mine", "tests.model.test_registry.make"):
        with pytest.raises(ValueError, match=f"spec: got '{wrong}', expected one of mine"):
            registered_spec(wrong)
    monkeypatch.setitem(DISPUTED_OPTIONS, caught.value.args[1], "extension 'b' cannot be imported")
    with pytest.raises(ValueError, match="got 'mine', a name that two models are to have, and extension 'b' cannot"):
        registered_spec("mine")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"hiden_size": 3}, "config_kwargs.hiden_size: Sizes has no such field; .*; did you mean hidden_size?"),
        ({"hidden_size": "wide"}, "config_kwargs.hidden_size: got 'wide', expected an int, such as 32"),
        ({"hidden_size": 1.5}, "config_kwargs.hidden_size: got 1.5, expected an int, such as 32"),
        ({"hidden_size": True}, "config_kwargs.hidden_size: got True, expected an int, such as 32"),
        ({"name": 3}, "config_kwargs.name: got 3, expected a str, such as 'a'"),
    ],
)
def test_values_that_a_config_does_not_take_are_refused(values, text):
    found = RegisteredSpec("mine", {"small": Sizes()}, make)
    with pytest.raises(ValueError, match=text):
        found.config("small", values)


def test_values_replace_those_of_a_flavor_and_leave_it_unchanged():
    found = RegisteredSpec("mine", {"small": Sizes(), "wide": Sizes(hidden_size=64)}, make)
    values = {"hidden_size": "1Ki", "dropout": 0, "window": 7}
    assert found.config("wide", values) == Sizes(hidden_size=1024, dropout=0.0, window=7)
    assert found.config("wide", {}) == Sizes(hidden_size=64)
    with pytest.raises(ValueError, match="flavor: got 'smal', expected one of small, wide; did you mean small?"):
        found.config("smal", {})


def test_registering_imports_no_torch():
    code = "import sys, arctic_hydra.model.registry, arctic_hydra.model.spec; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
