"""The options of the config group, as Hydra composes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import arctic_hydra.checkpoint
from arctic_hydra.component import create
from arctic_hydra.errors import ConfigError

CONF = Path(arctic_hydra.checkpoint.__file__).parents[2] / "conf" / "checkpoint"


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., Any]:
    """Return `compose(*overrides)` -> the checkpoint engines by name."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    (tmp_path / "checkpoint").symlink_to(CONF)
    (tmp_path / "root.yaml").write_text("defaults: [{checkpoint: [deepspeed, hf]}, _self_]\n")

    def call(*overrides: str) -> Any:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            cfg = hydra_compose("root", list(overrides))
        return create(cfg.checkpoint) if "checkpoint" in cfg else {}

    return call


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ["deepspeed", "hf"]),
        (["checkpoint=[hf,deepspeed]"], ["hf", "deepspeed"]),
        (["checkpoint=hf"], ["hf"]),
        (["checkpoint=[]"], []),
    ],
)
def test_several_engines_in_the_order_given(compose, overrides, expected) -> None:
    assert list(compose(*overrides)) == expected


def test_defaults(compose) -> None:
    engines = compose()
    assert (engines["deepspeed"].auto_resume, engines["deepspeed"].can_resume) == (True, True)
    assert (engines["hf"].auto_resume, engines["hf"].can_resume) == (False, False)
    assert (engines["deepspeed"].keep_last, engines["hf"].save_end_of_training) == (2, True)


def test_human_numbers(compose) -> None:
    engine = compose("checkpoint.deepspeed.save_every_n_steps=1K", "checkpoint.deepspeed.keep_last=null")["deepspeed"]
    assert (engine.save_every_n_steps, engine.keep_last) == (1000, None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("checkpoint.deepspeed.keep_last=0", r"checkpoint.deepspeed.keep_last: got 0, expected 1 or more"),
        ("checkpoint.hf.save_name=a/b", r"checkpoint.hf.save_name: got 'a/b', expected a plain directory name"),
        ("checkpoint.hf.max_shard_size=big", r"checkpoint.hf.max_shard_size: got 'big', expected a size such as"),
    ],
)
def test_refused_values_name_the_key(compose, override, expected) -> None:
    with pytest.raises(ConfigError, match=expected):
        compose(override)


def test_importing_the_options_loads_no_torch() -> None:
    code = (
        "import sys, arctic_hydra.checkpoint; sys.exit(bool({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    root = CONF.parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
