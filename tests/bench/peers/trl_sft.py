"""Prepare conversations with TRL's SFTTrainer: `trl_sft.py ROWS.jsonl TOKENIZER WORK PROCESSES MAX_LENGTH [DUMP]`.

Runs in an environment that has TRL; arctic_hydra is not needed there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from datasets import load_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

WORK_DONE = {"seconds": 0.0, "cpu": 0.0}


class TimedTrainer(SFTTrainer):
    """The trainer as it is, with the time that its preparation of the data takes."""

    def _prepare_dataset(self, *args: object, **kwargs: object) -> object:
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        prepared = super()._prepare_dataset(*args, **kwargs)
        WORK_DONE["seconds"] += time.perf_counter() - start
        WORK_DONE["cpu"] += sum(os.times()[:4]) - cpu
        return prepared


def main(rows: str, tokenizer_path: str, work: str, processes: str, max_length: str, dump: str = "") -> None:
    """Time the way from the file to the packed data set, or write ids and labels of each row to `dump`."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **size))
    options = SFTConfig(
        output_dir=f"{work}/trl",
        assistant_only_loss=True,
        max_length=int(max_length),
        packing=not dump,
        dataset_num_proc=int(processes) if int(processes) > 1 else None,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    dataset = load_dataset("json", data_files=rows, split="train", cache_dir=f"{work}/datasets")
    WORK_DONE.update(seconds=time.perf_counter() - start, cpu=sum(os.times()[:4]) - cpu)
    trainer = TimedTrainer(model, options, train_dataset=dataset, processing_class=tokenizer)
    prepared = trainer.train_dataset
    tokens = sum(sum(lengths) for lengths in prepared["seq_lengths"]) if not dump else 0
    print(json.dumps({**WORK_DONE, "tokens": tokens, "packs": len(prepared)}))
    if dump:
        with Path(dump).open("w", encoding="utf-8") as file:
            for row in prepared:
                file.write(json.dumps([row["input_ids"], row["labels"]]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
