"""Loading a tokenizer: what cannot be loaded is reported without waiting for the network."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from arctic_hydra.assets import ASSETS
from arctic_hydra.errors import ModelError
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from arctic_hydra.tokenizer.hf import HFTokenizerFactory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS / "tokenizer", tmp_path / "tokenizer"))


def edit_config(directory: Path, **values: Any) -> None:
    path = directory / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("name", ["/no/such/place", "./nothing", "~/no-such-tokenizer"])
def test_a_missing_path_never_tries_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("tried to load"))
    (problem,) = HFTokenizerFactory(name_or_path=name).check_environment()
    assert problem.startswith(
        f"name_or_path: got {name!r}, expected a directory with a tokenizer, but there is no such path"
    )
    with pytest.raises(ModelError, match=r"tokenizer\.name_or_path: got .* but there is no such path"):
        HFTokenizerFactory(name_or_path=name).create_tokenizer()


def test_a_directory_without_a_tokenizer_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name, message in (
        (tmp_path, "a directory without tokenizer files; expected one of tokenizer.json"),
        (tmp_path / "config.json", "which is a file"),
    ):
        with pytest.raises(ModelError, match=message):
            HFTokenizerFactory(name_or_path=str(name)).create_tokenizer()
        assert list(HFTokenizerFactory(name_or_path=str(name)).check_environment())


def test_damaged_files_are_named(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer in '.*' cannot be loaded \(.*\); check its files"):
        HFTokenizerFactory(name_or_path=str(directory)).create_tokenizer()


def test_an_unreachable_hub_id_fails_quickly_and_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(
        ModelError, match=r"'nobody/nothing' is not a local path and cannot be loaded .*offline, download it first"
    ):
        HFTokenizerFactory(name_or_path="nobody/nothing").create_tokenizer()
    assert time.monotonic() - start < 20


def test_a_missing_pad_token_becomes_eos(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_config(directory, pad_token=None)
    with caplog.at_level("INFO"):
        tokenizer = HFTokenizerFactory(name_or_path=str(directory)).create_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert "has no pad token: padding uses the eos token '<|im_end|>'" in caplog.text
    edit_config(directory, eos_token=None)
    with pytest.raises(ModelError, match="has neither a pad token nor an eos token"):
        HFTokenizerFactory(name_or_path=str(directory)).create_tokenizer()


def test_chat_template_by_path_and_as_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages }}")
    for value in (str(path), "{{ messages }}"):
        assert BundledTokenizerFactory(chat_template=value).create_tokenizer().chat_template == "{{ messages }}"
    missing = BundledTokenizerFactory(chat_template="no.jinja")
    assert list(missing.check_environment()) == [
        "chat_template: got 'no.jinja', expected a Jinja template or the path of a file with one; there is no such file"
    ]
    with pytest.raises(ModelError, match=r"chat_template: got 'no\.jinja'"):
        missing.create_tokenizer()


def test_a_tokenizer_that_panics_or_holds_huge_tokens_is_refused(directory: Path) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    replace = {"type": "Replace", "pattern": {"String": ""}, "content": "b" * 1000}
    path.write_text(json.dumps({**content, "normalizer": replace}))
    with pytest.raises(ModelError, match=r"fails on a short text \(PanicException: .*\); correct its tokenizer.json"):
        HFTokenizerFactory(name_or_path=str(directory)).create_tokenizer()
    path.write_text(json.dumps(content))
    edit_config(directory, eos_token="x" * 10_001)
    with pytest.raises(
        ModelError, match=r"has the token 'xx.*' of 10,001 characters, expected at most 10,000; correct"
    ):
        HFTokenizerFactory(name_or_path=str(directory)).create_tokenizer()
