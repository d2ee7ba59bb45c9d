"""Prepare conversations with ArcticTraining: `arctic.py ROWS.jsonl TOKENIZER WORK PROCESSES MAX_LENGTH [DUMP]`.

Runs in an environment that has ArcticTraining (transformers 4); arctic_hydra is not needed there.
"""

# ruff: noqa: E402 (it reads its environment while it is imported)

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

for name, value in {
    "RANK": 0,
    "LOCAL_RANK": 0,
    "WORLD_SIZE": 1,
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": 29571,
}.items():
    os.environ[name] = str(value)
os.environ["DS_ACCELERATOR"] = "cpu"

from arctic_training.config.trainer import get_config
from arctic_training.data.sft_factory import SFTDataFactory
from arctic_training.trainer.sft_trainer import SFTTrainer
from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig


def main(rows: str, tokenizer_path: str, work: str, processes: str, max_length: str, dump: str = "") -> None:
    """Time the way from the rows to the packed data set, or write ids and labels of each row to `dump`."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    model, dataset = Path(work) / "model", Path(work) / "rows"
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **size).save_pretrained(model)
    tokenizer.save_pretrained(model)
    # It reads no JSON lines; the rows are made ready for it outside the measured time.
    load_dataset("json", data_files=rows, split="train", cache_dir=f"{work}/datasets").save_to_disk(str(dataset))
    mapping = {"user": "messages.role.user", "assistant": "messages.role.assistant"}
    source = {"type": "huggingface_instruct", "name_or_path": str(dataset), "role_mapping": mapping, "split": ""}
    config = get_config(
        {
            "type": "sft",
            "micro_batch_size": 1,
            "model": {
                "type": "huggingface",
                "name_or_path": str(model),
                "dtype": "fp32",
                "attn_implementation": "eager",
            },
            "data": {
                "sources": [source],
                "max_length": int(max_length),
                "num_proc": int(processes),
                "pack_samples": True,
                "cache_dir": f"{work}/cache",
                "cache_fs_type": "local",
            },
        }
    )
    took = []
    build = SFTDataFactory.__call__

    def timed(self: SFTDataFactory) -> object:
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        made = build(self)
        took.append({"seconds": time.perf_counter() - start, "cpu": sum(os.times()[:4]) - cpu})
        return made

    SFTDataFactory.__call__ = timed
    trainer = SFTTrainer(config, mode="process-data")
    packed = trainer.train_dataloader.dataset
    tokens = sum(sum(lengths) for lengths in packed["packed_sample_seqlens"])
    print(json.dumps({**took[0], "tokens": tokens, "packs": len(packed)}))
    if dump:
        factory = SFTDataFactory(trainer)
        (processed,) = (load() for load in factory._get_data_sources(config.data.sources))
        with Path(dump).open("w", encoding="utf-8") as file:
            for row in processed:
                file.write(json.dumps([row["input_ids"], row["labels"]]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
