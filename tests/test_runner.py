"""The first twenty steps against a plain PyTorch loop that uses neither DeepSpeed nor this package's loss and data code."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.command import ROOT, losses, only_run, run

STEPS, WARMUP, PEAK, BATCH = 20, 2, 1e-3, 4


def plain_examples(limit):
    """Render each conversation on its own; the template's own mask says what is trained on."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "arctic_hydra" / "assets" / "tokenizer")
    for line in (ROOT / "arctic_hydra" / "assets" / "chat" / "train_sft.jsonl").read_text().splitlines():
        chat = json.loads(line)["messages"]
        out = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        if len(out["input_ids"]) <= limit:
            yield torch.tensor(out["input_ids"]), torch.tensor(out["assistant_masks"], dtype=torch.bool)


def plain_losses(order):
    """Train on the examples of each step, one document after another, and return each step's mean token loss."""
    torch.manual_seed(42)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True,
        )
    )  # fmt: skip
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-8)
    examples = list(plain_examples(256))
    history = []
    for step, chosen in enumerate(order, start=1):
        documents = [examples[index] for index in chosen]
        trained = sum(int(mask[1:].sum()) for _, mask in documents)
        total = 0.0
        for ids, mask in documents:
            logits = model(ids[None]).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[mask[1:]].sum() / trained
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = (step - WARMUP) / (STEPS + 1 - WARMUP)
        rate = PEAK * (step / WARMUP if step <= WARMUP else 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        history.append(total)
    return history


@pytest.mark.parametrize("packing", ["true", "false"])
def test_first_twenty_steps_equal_a_plain_loop(packing, my_lab, tmp_path):
    run(
        "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.max_length=256 data.num_proc=1 "
        f"optimizer.lr={PEAK} scheduler.warmup_steps={WARMUP} trainer.train_iters={STEPS} trainer.micro_batch_size=2 "
        f"trainer.gradient_accumulation_steps={BATCH // 2} data.packing={packing} tracking=[] checkpoint=[] callback=[recorder]",
        tmp_path,
        PYTHONPATH=str(my_lab),
    )
    run_dir = only_run(tmp_path)
    recorded = [json.loads(line) for line in (run_dir / "examples.jsonl.rank0").read_text().splitlines()]
    order = [[example for batch in step for example in batch] for step in recorded]
    assert len(order) == STEPS
    assert losses(run_dir) == pytest.approx(plain_losses(order), abs=1e-4)
