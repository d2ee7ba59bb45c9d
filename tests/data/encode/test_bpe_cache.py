"""The word cache returns the ids of the tokenizer, or leaves the text to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from arctic_hydra.data.encode.bpe_cache import WordTokenizer
from tests.data.encode.backends import BACKENDS, TEXTS, bundled, split

WORDS = {name: WordTokenizer.of(backend) for name, backend in BACKENDS.items()}


@pytest.mark.parametrize("name", BACKENDS)
def test_ids_and_positions_equal_those_of_the_tokenizer(name: str) -> None:
    words, backend = WORDS[name], BACKENDS[name]
    assert words is not None
    taken = []

    @settings(deadline=None, max_examples=300)
    @given(TEXTS, st.lists(st.integers(0, 60), max_size=3).map(sorted))
    @example("<|im_start|>assistant\nIt's 12 or 3.<|im_end|>\n", [22, 45])
    def check(text: str, positions: list[int]) -> None:
        positions = [position for position in positions if position <= len(text)]
        neighbors = ["<|im_start|>", text, "neighbor"]  # texts of one batch are independent
        found, whole = words.encode([text, text], [positions, []])
        assert str(words.encode(neighbors, [[], positions, []])[1]) == str(found)
        if whole is not None:
            assert whole[0].tolist() == backend.encode(text, add_special_tokens=False).ids
            taken.append(text)
        if found is not None:
            ids, bounds = found
            assert whole is not None and ids.tolist() == whole[0].tolist()
            for position, bound in zip(positions, bounds, strict=True):
                assert backend.decode(ids[bound:].tolist(), skip_special_tokens=False) == text[position:]

    check()
    assert any(text.isascii() for text in taken) and any(not text.isascii() for text in taken)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_character_is_split_like_the_tokenizer_or_left_to_it(name: str) -> None:
    words, backend = WORDS[name], BACKENDS[name]
    assert words is not None
    lefts = 0
    for first in range(0x80, 0x3100, 16):
        text = " ".join(f"a{chr(code)}1{chr(code)} {chr(code)}'" for code in range(first, first + 16))
        (found,) = words.encode([text], [[]])
        lefts += found is None
        assert found is None or found[0].tolist() == backend.encode(text, add_special_tokens=False).ids
    assert lefts < 300


def test_a_position_within_a_word_is_left_to_the_tokenizer() -> None:
    words = WORDS["bundled"]
    assert words is not None
    found = words.encode(["hello world", "hello world", "hello", "<|im_end|>"], [[5], [6], [2], [3]])
    assert [encoding is None for encoding in found] == [False, True, True, True]


def test_a_character_of_a_different_class_in_the_tokenizer_is_left_to_it() -> None:
    """U+0295 is a letter without case for one library and of lower case for the other: " ʕAa" is one word or two."""
    described = json.loads(BACKENDS["o200k"].to_str())
    model, added = described["model"], described["added_tokens"]
    last = pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str("\u0295")[0][0][-1]
    model["vocab"][last + "A"] = 1 + max(*model["vocab"].values(), *(token["id"] for token in added))
    model["merges"].insert(0, [last, "A"])
    backend = Tokenizer.from_str(json.dumps(described))
    words = WordTokenizer.of(backend)
    assert words is not None
    texts = ["\u0295Aa", "A\u0295Aa", "the \u0295Is"]
    for text, found in zip(texts, words.encode(texts, [[]] * 3), strict=True):
        assert found is None or found[0].tolist() == backend.encode(text, add_special_tokens=False).ids


def test_a_word_that_its_tokens_do_not_decode_to_is_left_to_the_tokenizer() -> None:
    described = json.loads(bundled().to_str())
    model = described["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if "©" not in token}  # a byte of é
    model["merges"] = [pair for pair in model["merges"] if "©" not in "".join(pair)]
    backend = Tokenizer.from_str(json.dumps(described))
    words = WordTokenizer.of(backend)
    assert words is not None
    texts = ["one two", "an é here", "an é here", "three"]
    found = words.encode(texts, [[3], [], [2, 3, 4], [5]])
    assert [encoding is None for encoding in found] == [False, True, True, False]


def test_results_do_not_depend_on_batch_size_or_table_size(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {index}: café {index * index} <|im_start|>word\n  more" for index in range(300)]
    positions = [[0, text.index("<"), len(text)] for text in texts]
    once = WORDS["qwen"]
    assert once is not None
    wanted = once.encode(texts, positions)
    assert all(encoding is not None for encoding in wanted)
    monkeypatch.setattr("arctic_hydra.data.encode.bpe_cache.BATCH_CHARACTERS", 500)
    monkeypatch.setattr("arctic_hydra.data.encode.bpe_cache.MAX_SEGMENTS", 50)
    small = WordTokenizer.of(BACKENDS["qwen"])
    assert small is not None
    assert str(small.encode(texts, positions)) == str(wanted) == str(small.encode(texts, positions))


def test_an_added_token_with_spaces_is_one_token() -> None:
    backend = bundled()
    backend.add_tokens([AddedToken("<a b c>", normalized=False)])
    words = WordTokenizer.of(backend)
    assert words is not None
    texts = ["see <a b c> and <a b> c", "<a b c><a b c>"]
    for text, found in zip(texts, words.encode(texts, [[], []]), strict=True):
        assert found is not None and found[0].tolist() == backend.encode(text, add_special_tokens=False).ids


def with_added(**options: Any) -> Tokenizer:
    backend = bundled()
    backend.add_tokens([AddedToken("<tool>", **options)])
    return backend


def with_model(model: Any) -> Tokenizer:
    backend = bundled()
    backend.model = model
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        with_added(lstrip=True, normalized=False),
        with_added(single_word=True, normalized=False),
        with_added(normalized=True),
        with_model(models.BPE(dropout=0.1)),
        with_model(models.Unigram([("a", 0.0)], 0)),
        bundled(normalizer=normalizers.Lowercase()),
        bundled(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        bundled(pre_tokenizers.Metaspace()),
        bundled(pre_tokenizers.Whitespace()),
        bundled(split(r"\P{L}+|\p{L}+")),  # a syntax that Python does not support
        bundled(split(r"[\p{M}]+|\s+|\S")),
        bundled(split(r"(\p{L}+)|(\s+)|.")),  # has groups
        bundled(split(r"[[:alpha:]]+|\s+|[^\s[:alpha:]]+")),
        bundled(split(r"\p{L}+")),  # leaves gaps between its matches, which are words too
    ],
)
def test_unsupported_tokenizers_get_no_cache(backend: Tokenizer) -> None:
    assert WordTokenizer.of(backend) is None
