# ruff: noqa: E501 (templates)
"""Templates, tokenizers and small files for the data tests; nothing here needs a network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from arctic_hydra.assets import ASSETS
from arctic_hydra.data.base import BatchGeometry
from arctic_hydra.data.sft import SFTDataFactory
from arctic_hydra.data.source.json import JsonSource
from arctic_hydra.distributed import World

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3_ALWAYS = LLAMA_3.replace("{% if add_generation_prompt %}", "").removesuffix(
    "{% endif %}"
)  # asks after every chat
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
CHATML_UNTAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TAGS_WITHOUT_STOP = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TAGS_WITH_HEADER = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ '<|im_start|>assistant\n' + m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3's: only the last answer opens with a (here empty) thought, so rendered turns are no prefix of the whole chat.
QWEN_THINK = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Numbers the messages from the end: every prefix of a chat is rendered differently.
NUMBERED = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' ~ (messages | length - loop.index) ~ m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>' }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + ('</s>' if m['role'] == 'assistant' else '') + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
# The templates of families that call tools, cut to what matters here.
QWEN_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] or '' }}{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' + c.function | tojson + '\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3_TOOLS = (
    "{{ bos_token }}{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' + tools | tojson + '<|eot_id|>' }}"
    "{% endif %}{% for m in messages %}{% if m.tool_calls %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' "
    "+ m.tool_calls[0].function | tojson + '<|eot_id|>' }}{% else %}{{ '<|start_header_id|>' + "
    "('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\n\n' }}"
    "{{ (m.content | tojson if m.role == 'tool' else m.content | trim) + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL_TOOLS = (
    "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.tool_calls %}"
    "{{ '[TOOL_CALLS] ' + m.tool_calls[0].function | tojson + eos_token }}{% elif m.role == 'tool' %}"
    "{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
DEEPSEEK_TOOLS = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}{% elif m.role == 'tool' %}{{ '<tool_output>' + m.content + '</tool_output>' }}{% else %}"
    "{{ '<｜Assistant｜>' + (m.content or '') }}{% for c in m.tool_calls or [] %}{{ '```json\n' + c.function | tojson + '\n```' }}"
    "{% endfor %}{{ '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
DEEPSEEK_V3_TOOLS = (  # wants arguments as text and a type, and writes calls only where the content is null
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] + '<｜Assistant｜>' }}{% elif m['role'] == 'tool' %}"
    "{{ '<｜tool▁outputs▁begin｜>' + m['content'] + '<｜tool▁outputs▁end｜>' }}{% elif m['content'] is none %}"
    "{{ '<｜tool▁calls▁begin｜>' }}{% for c in m['tool_calls'] %}{{ c['type'] + '<｜tool▁sep｜>' + c['function']['name'] + "
    "'\n```json\n' + c['function']['arguments'] + '\n```' }}{% endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}"
    "{% else %}{{ m['content'] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
)
PHI_TOOLS = (
    "{% if tools %}{{ '<|system|>\n' + tools | tojson + '<|end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|' + m.role + '|>\n' + (m.content or '') }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA_TOOLS = (
    "{{ bos_token }}{% if tools %}{{ '<start_of_turn>user\n' + tools | tojson + '<end_of_turn>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (m.content or '') | trim }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PLAIN_TOOLS = (
    "{% if tools %}{{ tools | tojson + '\n' }}{% endif %}{% for m in messages %}{{ '### ' + m.role + ':\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ '</s>' if m.role == 'assistant' else '' }}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
# Below, what the makers' templates do that is harder to mask, cut to it.
COHERE_2 = (  # two stop tokens
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + ('<|CHATBOT_TOKEN|>' if m.role == 'assistant' else '<|USER_TOKEN|>') }}"
    "{{ ('<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' if m.role == 'assistant' else m.content) + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}"
)
COHERE_2_TAGS = COHERE_2.replace(
    "{{ ('<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' if m.role == 'assistant' else m.content) + '<|END_OF_TURN_TOKEN|>' }}",
    "{% if m.role == 'assistant' %}{{ '<|START_RESPONSE|>' }}{% generation %}{{ m.content + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|END_OF_TURN_TOKEN|>' }}{% endif %}",
)
GPT_OSS = (  # channels, and another stop token and no thoughts in turns that others follow
    "{{ '<|start|>system<|message|>' + tools | tojson + '<|end|>' if tools else '' }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.tool_calls %}{{ '<|start|>assistant to=' + m.tool_calls[0].function.name + '<|channel|>commentary<|message|>' "
    "+ m.tool_calls[0].function.arguments | tojson + '<|call|>' }}{% elif loop.last and not add_generation_prompt %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + (m.content | tojson if m.role == 'tool' else m.content) + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
DEEPSEEK_THINK = (  # asks for a thought, writes none
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
DEEPSEEK_THINK_TAGS = DEEPSEEK_THINK.replace(
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}",
    "{% generation %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}{% endgeneration %}",
)
QWEN_3 = (  # thoughts after the last question only, an empty one in the last turn
    "{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' if tools else '' }}{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% set content = m.content or '' %}{% set thought = m.reasoning_content or '' %}{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ content }}{% for c in m.tool_calls or [] %}"
    "{{ ('\n' if content else '') + '<tool_call>\n' + c.function | tojson + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_2_5_TAGS = (  # the tag is opened within the header
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant' }}{% generation %}{{ '\n' + m.content + '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_TAGS = (  # an eos token after the stop token of the last turn
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|end|>\n' }}"
    "{% endgeneration %}{% else %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}"
)
LFM_2 = (  # lists the tools and leaves out the calls
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LFM_2_CALLS = LFM_2.replace(  # calls written as Python
    "(m.content or '')",
    "(m.content or '') + ('<|tool_call_start|>[' + m.tool_calls[0].function.name + '(' + (m.tool_calls[0].function.arguments.items() "
    "| map('join', '=') | join(', ')) + ')]<|tool_call_end|>' if m.tool_calls else '')",
)
NO_STOP = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
SPECIALS = (
    "<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>",
    "<|assistant|>", "<|system|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
    "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
    "<|END_OF_TURN_TOKEN|>", "<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>", "<|endoftext|>",
)  # fmt: skip


def make_tokenizer(template: str | None, adds_bos: bool = False, **special: str) -> PreTrainedTokenizerBase:
    """Return the bundled vocabulary with the special tokens of other families, and the given template."""
    backend = Tokenizer.from_file(str(ASSETS / "tokenizer" / "tokenizer.json"))
    backend.add_special_tokens(list(SPECIALS))
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def make_llama_2_tokenizer(template: str) -> PreTrainedTokenizerBase:
    """Return a small tokenizer of SentencePiece's kind: spaces are written as a mark, one is put before every text."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    names = ["<unk>", *SPECIALS, "<|im_start|>", "<|im_end|>", "<|pad|>"]
    special = [AddedToken(name, special=True, normalized=False) for name in names]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special + [AddedToken(f"<0x{byte:02X}>", special=False) for byte in range(256)],
        show_progress=False,
    )
    backend.train_from_iterator(["It is 2. I did. What is the world? Starts and ends, fine."], trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|pad|>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **named)


def chat(*contents: str) -> dict[str, Any]:
    """Return a row of user and assistant messages in turn."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": text} for index, text in enumerate(contents)]}


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def geometry(
    micro: int = 1, accumulation: int = 1, rank: int = 0, size: int = 1, seed: int = 7, steps: int = 0
) -> BatchGeometry:
    return BatchGeometry(micro, accumulation, World(rank, size, rank, size), seed, steps)


def shared(name: str) -> Path:
    """Return a file of the real data beside the repository; skips the test where there is none."""
    path = Path(__file__).parents[3] / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"no real data at ../shared/data/{name}")
    return path


def factory(path: Path, **fields: Any) -> SFTDataFactory:
    return SFTDataFactory(**{"sources": {"mine": JsonSource(path=str(path))}, "num_proc": 1, **fields})
