"""What is printed while an answer is generated."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from arctic_hydra.tasks.chat_stream import AnswerStream, dimmed
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _shown(monkeypatch, out: io.StringIO, text: str, prompt: str = "Why?") -> tuple[str, str]:
    tokenizer = BundledTokenizerFactory().create_tokenizer()
    monkeypatch.setattr(sys, "stdout", out)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    stop = tokenizer("!", add_special_tokens=False)["input_ids"][-1]
    stream = AnswerStream(tokenizer, [stop], ids)
    stream.put(torch.tensor([ids]))
    for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], stop]:
        stream.put(torch.tensor([token]))
    stream.end()
    return out.getvalue(), stream.text


def test_reasoning_is_dimmed_in_a_terminal_and_control_characters_are_shown(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    text = "<think>so it is</think>\nYes \x1b[2Jindeed"
    printed, plain = _shown(monkeypatch, Terminal(), text)
    assert printed == "\x1b[2m<think>so it is</think>\x1b[0m\nYes ␛[2Jindeed\x1b[0m\n" and plain == text
    opened, _ = _shown(monkeypatch, Terminal(), "so</think>\nYes", prompt="Why?<think>\n")
    assert opened == "\x1b[2mso</think>\x1b[0m\nYes\x1b[0m\n"


@pytest.mark.parametrize("out", [io.StringIO, Terminal])
def test_a_pipe_and_a_terminal_without_styles_get_the_text_only(out, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = "<think>so</think> Yes, näh 好"
    assert _shown(monkeypatch, out(), text) == (f"{text}\n", text)
    assert dimmed("a", Terminal()) == "a"
