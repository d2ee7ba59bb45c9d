"""Code of user-defined sources and data factories: changed code is other data, though the files are the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.data.code_identity import code_identity
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World
from tests.data.samples import chat, factory, write_lines

SOURCE = """
from typing import Any
from arctic_hydra.data.source.json import JsonSource


class {name}(JsonSource):
    '''A source of our own.'''

    def load(self, split: str) -> Any:
        rows = super().load(split)
        taken = [row["messages"] for row in rows.take(range(len(rows)))]
        return [{{"messages": [m | {{"content": m["content"].{method}()}} for m in row]}} for row in taken]
"""

DERIVED = """
from dataclasses import dataclass
from my_base import Base


@dataclass(kw_only=True)
class Mine(Base):
    times: int = 1
"""

Module = Callable[..., Any]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """A function that writes a user module and reimports it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # bytecode is matched by a modification time in whole seconds
    written: list[str] = []

    def imported(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        written.append(name)
        return importlib.import_module(name)

    yield imported
    for name in written:
        sys.modules.pop(name, None)


def source_text(method: str, name: str = "Mine") -> str:
    return SOURCE.format(method=method, name=name)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return str(write_lines(tmp_path / "a.jsonl", [chat("Say it", "It is Said")]))


def prepared(source: Any, tokenizer: Any) -> tuple[str, str]:
    """Return the key of the prepared data, and its text."""
    store = factory(Path(), sources={"mine": source}).process("train", tokenizer, World())
    return store.key, tokenizer.decode(store.ids(0))


def test_a_source_that_overrides_load_never_gets_the_tokens_of_another(
    module: Module, rows: str, tokenizer: Any
) -> None:
    """It used to get those of JsonSource on the same file from the cache."""
    seen = [prepared(JsonSource(path=rows), tokenizer)]
    for method in ("upper", "lower"):
        seen.append(prepared(module("my_rows", source_text(method)).Mine(path=rows), tokenizer))
    assert ["It is Said" in seen[0][1], "IT IS SAID" in seen[1][1], "it is said" in seen[2][1]] == [True] * 3
    assert len({key for key, _ in seen}) == 3
    again = module("my_rows", "# Only a comment was added.\n" + source_text("lower")).Mine(path=rows)
    assert prepared(again, tokenizer) == seen[2]


def test_the_code_of_a_base_class_and_the_fields_it_adds_are_part_of_it(module: Module, rows: str) -> None:
    identities = []
    for method in ("upper", "lower"):
        module("my_base", source_text(method, name="Base"))
        mine = module("my_derived", DERIVED).Mine
        identities += [code_identity(mine(path=rows)), code_identity(mine(path=rows, times=2))]
    assert len({str(identity) for identity in identities}) == 4
    assert identities[0]["component"] == "my_derived.Mine" and identities[1]["fields"] == {"times": 2}


def test_the_code_of_a_data_factory_is_part_of_it(module: Module, rows: str) -> None:
    text = "from arctic_hydra.data.sft import SFTDataFactory\n\n\nclass Mine(SFTDataFactory):\n    number = {}\n"
    seen = []
    for number in (1, 2):
        data = module("my_data", text.format(number)).Mine(sources={"mine": JsonSource(path=rows)})
        seen.append(str(data.identities("train")))
    assert len(set(seen)) == 2


def test_a_class_typed_at_a_prompt_is_unique_and_built_in_ones_have_no_code() -> None:
    kinds = []
    for _ in range(2):
        scope: dict[str, Any] = {"JsonSource": JsonSource, "__name__": "nowhere"}
        exec("class Typed(JsonSource): pass", scope)
        kinds.append(scope["Typed"](path="x"))
    first, second = (code_identity(source) for source in kinds)
    assert first["component"] == second["component"] == "nowhere.Typed" and first["code"] != second["code"]
    assert code_identity(kinds[0]) == first
    ours = {"component": "source/json", "version": 1, "code": [], "fields": {}}
    assert code_identity(JsonSource(path="x")) == ours
