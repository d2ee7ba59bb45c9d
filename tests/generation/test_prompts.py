"""Prompts are the tokens that precede the answer in training."""

from __future__ import annotations

import pytest

from arctic_hydra.data.encode.chat import ChatEncoder
from arctic_hydra.data.formats.messages import Chat
from arctic_hydra.errors import DataError
from arctic_hydra.generation.prompts import PromptEncoder
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ping?"}]


def _tokenizer(*, adds_bos: bool = False, template: str | None = None):
    from tokenizers.processors import TemplateProcessing

    tokenizer = BundledTokenizerFactory(chat_template=template).create_tokenizer()
    if adds_bos:
        tokenizer.bos_token = "<|im_start|>"
        special = [("<|im_start|>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("start", ["", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_prompt_is_the_beginning_of_the_example_in_training(adds_bos, start):
    body = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = _tokenizer(adds_bos=adds_bos, template=start + body)
    [example] = ChatEncoder(tokenizer).encode([Chat([*MESSAGES, {"role": "assistant", "content": "Pong."}])])
    prompt = PromptEncoder(tokenizer).chat(MESSAGES)
    assert prompt == example.ids.tolist()[: example.spans[0][0]]
    assert PromptEncoder(tokenizer).text("Ping?")[: adds_bos + 1].count(tokenizer.bos_token_id) == adds_bos


def test_what_a_template_does_not_support_is_one_sentence():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0].content }}"
    encoder = PromptEncoder(_tokenizer(template=template))
    assert encoder.has_template and encoder.chat(MESSAGES[1:])
    with pytest.raises(
        DataError, match=r"message 0: role 'system' at the start|the chat template fails: .*no system role"
    ):
        encoder.chat(MESSAGES)
