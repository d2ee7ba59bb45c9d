"""Byte-level BPE tokenizers of several families, and texts for them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from arctic_hydra.assets import ASSETS

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> Any:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def bundled(pre_tokenizer: Any = None, normalizer: Any = None) -> Tokenizer:
    backend = Tokenizer.from_file(str(ASSETS / "tokenizer" / "tokenizer.json"))
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


BACKENDS = {
    "bundled": bundled(),
    "gpt 2": bundled(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama 3": bundled(split(LLAMA_3)),
    "qwen": bundled(split(LLAMA_3.replace("{1,3}", "")), normalizers.NFC()),
    "o200k": bundled(split(O200K)),
}


PIECES = [
    "<|im_start|>",
    "<|im_end|>",
    "assistant\n",
    " ",
    "  ",
    "\n\n",
    "'s",
    "'LL",
    "don't",
    "1234",
    "...",
    "é",
    "e\u0301",
]


PIECES += ["你好", "😀", "\u2028", "ſ", "½", "٣", "\u00a0", "\u200b", "Ⅷ", "\x1c", "A", "Über", "\U0001fadf"]


TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=12).map("".join)
