"""The data options in conf/ compose into the typed slots and take overrides."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import arctic_hydra.data.source.bundled
import arctic_hydra.data.source.hf
import arctic_hydra.data.source.json
import arctic_hydra.tokenizer.bundled
import arctic_hydra.tokenizer.hf  # noqa: F401
from arctic_hydra.cli.composition.schemas import store_schemas
from arctic_hydra.data.base import DataFactory
from arctic_hydra.data.prepare.truncation import Overlong
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.errors import ConfigError
from arctic_hydra.instantiate import create
from arctic_hydra.tokenizer.base import TokenizerFactory

store_schemas()  # as arctic_hydra composes


@dataclass
class DataRoot:
    """Enough of a root to compose the data options."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"data": "chat"}, {"tokenizer": "bundled"}])
    data: DataFactory = "???"  # type: ignore[assignment]
    tokenizer: TokenizerFactory = "???"  # type: ignore[assignment]


def built(repository: Path, *overrides: str) -> Any:
    ConfigStore.instance().store(name="data_root_for_tests", node=DataRoot)
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("data_root_for_tests", overrides=list(overrides))
    tree: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return SimpleNamespace(**{name: create(tree[name], name) for name in ("data", "tokenizer")})


def test_chat_is_the_bundled_slice(repository: Path) -> None:
    data = built(repository).data
    assert isinstance(data, SFTDataFactory)
    assert (data.max_length, data.packing, data.cache, data.has_evaluation) == (512, True, True, True)
    assert not list(data.check_environment())


@pytest.mark.parametrize(("text", "value"), [("off", False), ("on", True), ("false", False), ("true", True)])
def test_cache_takes_on_and_off(repository: Path, text: str, value: bool) -> None:
    assert built(repository, f"data.cache={text}").data.cache is value


def test_ultrachat_evaluates_on_the_set_it_trains_on(repository: Path) -> None:
    hub = built(repository, "data=ultrachat").data
    assert hub.sources["ultrachat"].path == hub.eval_sources["ultrachat"].path == "HuggingFaceH4/ultrachat_200k"
    local = built(
        repository, "data=ultrachat", "data.sources.ultrachat.path=/some/where", "data.overlong=keep_start"
    ).data
    assert local.eval_sources["ultrachat"].path == "/some/where"
    assert local.eval_sources["ultrachat"].split_name("eval") == "test_sft"
    assert (local.max_length, local.overlong) == (2048, Overlong.keep_start)
    assert [problem.partition(":")[0] for problem in local.check_environment()] == [
        "sources.ultrachat.path",
        "eval_sources.ultrachat.path",
    ]


def test_json_needs_a_path(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\.json\.path: required, but not set"):
        built(repository, "data=json")
    data = built(
        repository,
        "data=json",
        "data.sources.json.path=a.jsonl",
        "data.max_length=1Ki",
        "data.train_eval_split=[90%,10%]",
    ).data
    assert (data.max_length, data.train_eval_split, data.has_evaluation) == (1024, [0.9, 0.1], True)


def test_a_held_out_split_with_eval_sources_names_the_override(repository: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.train_eval_split: got .* together with eval_sources \(chat\); .*~data\.eval_sources\.chat",
    ):
        built(repository, "data.train_eval_split=[0.9,0.1]")
    assert built(repository, "data.train_eval_split=[0.9,0.1]", "~data.eval_sources.chat").data.has_evaluation


def test_bad_values_name_the_full_key(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_length: got 0, expected 2 or more"):
        built(repository, "data.max_length=0")
    with pytest.raises(ConfigError, match=r"data\.sources\.chat\.sample_count: got -1, expected 1 or more"):
        built(repository, "data.sources.chat.sample_count=-1")


def test_components_import_nothing_heavy() -> None:
    modules = [
        f"arctic_hydra.{name}"
        for name in (
            "data.sft",
            "data.source.hf",
            "data.source.json",
            "data.source.bundled",
            "tokenizer.hf",
            "tokenizer.bundled",
        )
    ]
    heavy = ("torch", "numpy", "transformers", "datasets", "pyarrow")
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
