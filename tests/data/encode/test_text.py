"""Plain texts with an answer at the end: same ids as the tokenizer's, and the answer is supervised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from arctic_hydra.data.encode.spans import Encoded
from arctic_hydra.data.encode.text import TextEncoder
from arctic_hydra.data.formats.messages import PlainText, RowProblem
from tests.data.encode.backends import BACKENDS, TEXTS, bundled


def encoder(backend: Tokenizer, **special: int | None) -> TextEncoder:
    tokenizer: Any = SimpleNamespace(
        backend_tokenizer=backend, **{"bos_token_id": None, "eos_token_id": None, "unk_token_id": None, **special}
    )
    return TextEncoder(tokenizer)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_word_cache_does_not_change_ids_or_spans(name: str) -> None:
    backend = BACKENDS[name]
    looked_up, worked_out = encoder(backend), encoder(backend)
    assert looked_up._word_cache is not None
    worked_out._word_cache = None

    @settings(deadline=None, max_examples=300)
    @given(TEXTS, TEXTS)
    @example("Question: 2 + 2?\n", "Answer: 4")
    @example("", " ")
    @example("a", "")
    def check(prompt: str, answer: str) -> None:
        texts = [PlainText(prompt + answer, len(prompt)), PlainText(answer), PlainText(prompt)]
        for text, found, wanted in zip(texts, looked_up.encode(texts), worked_out.encode(texts), strict=True):
            assert isinstance(found, Encoded) and isinstance(wanted, Encoded)
            assert (found.ids.tolist(), found.spans) == (wanted.ids.tolist(), wanted.spans)
            ((first, last),) = found.spans
            assert last == len(found.ids)
            if backend.normalizer is None:
                decoded = backend.decode(found.ids[first:].tolist(), skip_special_tokens=False)
                assert decoded == text.text[text.start :]

    check()


def test_bos_and_eos_are_written_once() -> None:
    bos, eos = (BACKENDS["bundled"].token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    plain = encoder(BACKENDS["bundled"], bos_token_id=bos, eos_token_id=eos)
    twice = plain.encode([PlainText("a b"), PlainText("a b<|im_end|>")])
    assert [item.ids.tolist() for item in twice if isinstance(item, Encoded)] == [twice[0].ids.tolist()] * 2
    assert twice[0].ids[-1] == eos and twice[0].ids[0] != bos  # this tokenizer writes none at the start


def sentence_piece(kind: str) -> Tokenizer:
    """Return a small tokenizer that adds a prefix space to every text, in one of the ways to configure that."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    spaces = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.pre_tokenizer = spaces  # trained on words, used on whole texts where that is the kind
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(["Answer: two is the answer", "hello world, hello two"] * 9, trainer)
    if kind == "prepend":
        backend.pre_tokenizer = pre_tokenizers.Split("\0", "isolated")
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind != "words":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return backend


BORDERS = [
    ("Answer:", " two", " two"),
    ("Answer: ", "two", " two"),
    ("Answer: ", "two is é 你", " two is é 你"),
    ("hello\n", "world", "world"),
    ("hello", "world", "world"),
    ("hel", "lo world", "hello world"),
    ("Answer: two", "", ""),
]


@pytest.mark.parametrize("kind", ["prepend", "always", "first", "words"])
@pytest.mark.parametrize(("prompt", "answer", "trained"), BORDERS)
def test_no_prefix_space_is_inserted_between_prompt_and_answer(
    kind: str, prompt: str, answer: str, trained: str
) -> None:
    backend = sentence_piece(kind)
    text = prompt + answer
    (found,) = encoder(backend).encode([PlainText(text, len(prompt))])
    assert isinstance(found, Encoded)
    assert found.ids.tolist() == backend.encode(text).ids, "no token that the text does not have"
    ((first, last),) = found.spans
    whole, before = (backend.decode(ids.tolist(), skip_special_tokens=False) for ids in (found.ids, found.ids[:first]))
    assert before + trained == whole == text and last == len(found.ids)


def test_no_byte_level_prefix_space_is_inserted_between_prompt_and_answer() -> None:
    backend = bundled(pre_tokenizers.ByteLevel(add_prefix_space=True))
    found = encoder(backend).encode([PlainText("It is two", 6), PlainText("It is two", 5), PlainText("Qxqxq", 3)])
    assert all(isinstance(item, Encoded) for item in found)
    texts = [backend.decode(item.ids.tolist()) for item in found if isinstance(item, Encoded)]
    assert texts == [" It is two", " It is two", " Qxqxq"]


def test_an_answer_that_its_tokens_do_not_decode_to_is_refused() -> None:
    backend = bundled(normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.NFC()]))
    found = encoder(backend).encode([PlainText("say Ja", 3), PlainText("Say ja", 3), PlainText("say Ja")])
    assert isinstance(found[0], RowProblem) and found[0].reason == "tokenizer"
    assert "the tokens of an answer do not decode to its text: expected ' Ja', got ' ja'" in str(found[0])
    assert isinstance(found[1], Encoded) and isinstance(found[2], Encoded)
