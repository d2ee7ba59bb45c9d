"""Make the bundled chat slice and its tokenizer: `python arctic_hydra/assets/build_assets.py <source directory>`.

The source directory holds `chat/train_sft.jsonl`, `chat/test_sft.jsonl` (GSM8K in UltraChat's layout) and
`gsm8k/LICENSE`. Deterministic: the same source gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

ASSETS = Path(__file__).resolve().parent
TRAIN_BYTES = 900_000
TEST_ROWS = 100
VOCABULARY_SIZE = 4096
BOS, EOS, PAD, START = "<|bos|>", "<|im_end|>", "<|pad|>", "<|im_start|>"

# The stop token stands inside the generation block, so it is trained on; the newline after it is never generated.
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}"
    "{{ message['content'] or '' }}"
    "{% if message.get('tool_calls') %}"
    "{% for call in message['tool_calls'] %}{{ '<tool_call>' + (call | tojson) + '</tool_call>' }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>' }}"
    "{% endgeneration %}"
    "{{ '\\n' }}"
    "{% else %}"
    "{{ (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

NOTICE = """NOTICE

train_sft.jsonl holds the first {train} conversations of the training set, test_sft.jsonl the first {test} of the test
set, of GSM8K (https://github.com/openai/grade-school-math), each question and answer written as a two-turn chat in the
column layout of UltraChat (prompt, prompt_id, messages). The texts are unchanged. GSM8K is Copyright (c) 2021 OpenAI,
under the MIT License in the file LICENSE beside this one. ../tokenizer was trained on train_sft.jsonl.
"""


def copy_slice(source: Path, target: Path, max_bytes: int | None = None, max_rows: int | None = None) -> int:
    """Copy whole lines from the start of `source` until a limit is reached; return the number of lines."""
    lines: list[bytes] = []
    size = 0
    for line in source.read_bytes().splitlines(keepends=True):
        if (max_bytes is not None and size + len(line) > max_bytes) or len(lines) == max_rows:
            break
        lines.append(line)
        size += len(line)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join(lines))
    return len(lines)


def train_tokenizer(chat_file: Path) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the message texts of `chat_file`."""
    rows = [json.loads(line) for line in chat_file.read_text(encoding="utf-8").splitlines()]
    texts = [message["content"] for row in rows for message in row["messages"]]
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: the slice is arithmetic, and merged digit groups would fill the small vocabulary.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, START, EOS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files that `AutoTokenizer.from_pretrained` needs."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def build(source: Path, target: Path = ASSETS) -> None:
    """Write `chat/` and `tokenizer/` below `target` from the files below `source`."""
    train = copy_slice(source / "chat" / "train_sft.jsonl", target / "chat" / "train_sft.jsonl", max_bytes=TRAIN_BYTES)
    test = copy_slice(source / "chat" / "test_sft.jsonl", target / "chat" / "test_sft.jsonl", max_rows=TEST_ROWS)
    shutil.copyfile(source / "gsm8k" / "LICENSE", target / "chat" / "LICENSE")
    (target / "chat" / "NOTICE").write_text(NOTICE.format(train=train, test=test), encoding="utf-8")
    write_tokenizer(train_tokenizer(target / "chat" / "train_sft.jsonl"), target / "tokenizer")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="directory with chat/ and gsm8k/")
    build(parser.parse_args().source)
