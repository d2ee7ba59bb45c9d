"""The cache key follows everything that decides the tokens of a row, and nothing else."""

from __future__ import annotations

import os
import shutil
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from arctic_hydra.data.prepare import key as key_module
from arctic_hydra.data.prepare.key import CODE_VERSION
from arctic_hydra.data.prepare.preparer import PrepareOptions
from arctic_hydra.data.prepare.truncation import Malformed, Overlong
from arctic_hydra.data.sft import SFTDataFactory, TrainOn
from arctic_hydra.distributed import World
from tests.data.cache.samples import entries, key
from tests.data.samples import (
    CHATML_TAGS_WITH_HEADER,
    CHATML_UNTAGGED,
    QWEN_TOOLS,
    factory,
    make_tokenizer,
)


def with_templates(**named: str) -> Any:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = named
    return tokenizer


def test_the_key_follows_content_and_options(small_chats: Path, tokenizer: Any, private_cache: Path) -> None:
    first = key(small_chats, tokenizer)
    os.utime(small_chats, (1, 1))
    assert key(small_chats, tokenizer) == first, "touching the file changes nothing"
    elsewhere = small_chats.parent / "moved" / small_chats.name
    elsewhere.parent.mkdir()
    shutil.copy(small_chats, elsewhere)
    assert key(elsewhere, tokenizer) == first, "the place of the file changes nothing"
    assert key(small_chats, tokenizer, packing=False, num_proc=2) == first, "packing works on prepared data"
    others = [
        key(small_chats, tokenizer, max_length=100),
        key(small_chats, tokenizer, mask_inputs=False),
        key(small_chats, tokenizer, overlong=Overlong.keep_end),
        key(small_chats, tokenizer, malformed=Malformed.drop),
        key(small_chats, tokenizer, train_on=TrainOn.last),
        key(small_chats, make_tokenizer(tokenizer.chat_template, eos_token="</s>")),
        key(small_chats, make_tokenizer(tokenizer.chat_template)),
        key(small_chats, make_tokenizer(CHATML_UNTAGGED)),
        key(small_chats, with_templates(default=CHATML_UNTAGGED, tool_use=QWEN_TOOLS)),
        key(small_chats, with_templates(default=CHATML_UNTAGGED, tool_use=CHATML_TAGS_WITH_HEADER)),
    ]
    stat = small_chats.stat()
    small_chats.write_bytes(small_chats.read_bytes().replace(b"Answer 3", b"Answer 4"))
    os.utime(small_chats, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    others.append(key(small_chats, tokenizer))
    assert len({first, *others}) == 12
    assert len(entries(private_cache)) == 12


def test_code_version_is_part_of_the_key(small_chats: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key(small_chats, tokenizer)
    monkeypatch.setattr(key_module, "CODE_VERSION", CODE_VERSION + 1)
    assert key(small_chats, tokenizer) != first


@pytest.mark.parametrize(
    ("fields", "follows"),
    [({}, False), ({"labelled": False}, False), ({"labelled": True}, True), ({"pairs": True}, True)],
)
def test_the_version_of_answers_is_part_of_their_keys_only(
    fields: dict[str, bool], follows: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PrepareOptions(max_length=8, mask_inputs=True, overlong="drop", malformed="error", **fields)
    first = key_module.cache_key("rows", tokenizer, options)
    monkeypatch.setattr(key_module, "ANSWERS_VERSION", key_module.ANSWERS_VERSION + 1)
    assert (key_module.cache_key("rows", tokenizer, options) != first) == follows


def test_the_key_of_a_template_that_writes_the_date_is_that_of_yesterday(
    small_chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("{{ strftime_now('%Y-%m-%d') }}" + CHATML_UNTAGGED)
    first = factory(small_chats).process("train", tokenizer, World())
    monkeypatch.setattr(SFTDataFactory, "load", lambda *_: pytest.fail("the cache was not used"))
    for module in (key_module, chat_template_utils):
        for name, real in (("date", date), ("datetime", datetime)):
            monkeypatch.setattr(module, name, tomorrow(real), raising=False)
    assert key(small_chats, tokenizer) == first.key


def tomorrow(kind: Any) -> Any:
    """Return the class with a clock that is a day ahead."""
    ahead = timedelta(days=1)
    clock = {name: classmethod(lambda cls, name=name: getattr(kind, name)() + ahead) for name in ("today", "now")}
    return type(kind.__name__, (kind,), clock)
