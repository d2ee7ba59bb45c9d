"""Names of dtypes and of attention."""

from __future__ import annotations

import pytest

from arctic_hydra.config import run_id
from arctic_hydra.model.names import DTYPE_ALIASES
from tests.composing import built
from tests.trainer.loop import tiny_factory


@pytest.mark.parametrize(
    ("alias", "name"), [(alias, name) for name, aliases in DTYPE_ALIASES.items() for alias in aliases]
)
def test_every_alias_of_a_dtype_becomes_its_name(alias, name):
    factory = tiny_factory(dtype=alias.upper())
    assert factory.dtype == name
    assert str(factory.torch_dtype).startswith("torch.") and factory.torch_dtype.is_floating_point


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="dtype: got 'int8', expected one of bf16, fp16, fp32"):
        tiny_factory(dtype="int8")
    with pytest.raises(
        ValueError, match="attn_implementation: got 'flash', expected one of arctic_varlen, sdpa, eager"
    ):
        tiny_factory(attn_implementation="flash")


def test_an_alias_on_the_command_line_is_the_same_run():
    assert (
        run_id(built("model.dtype=torch.float32"))
        == run_id(built("model.dtype=fp32"))
        != run_id(built("model.dtype=torch.bfloat16"))
    )
