"""Train or evaluate with TRL's SFTTrainer on padded rows: `python -m tests.bench.peers.trl_train SETTINGS.json`.

Runs in an environment that has TRL; arctic_hydra is not needed there. A training prints one JSON line: seconds, supervised
tokens and loss. An evaluation waits between its passes, as `Blocks` of the harness asks for them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.bench.harness import Pauses


class CountingTrainer(SFTTrainer):
    """The trainer as it is, with sums over the supervised tokens of all batches."""

    tokens, loss_sum = 0, 0.0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        supervised = int((inputs["labels"][:, 1:] != -100).sum())
        self.tokens += supervised
        self.loss_sum += float((found[0] if return_outputs else found).detach()) * supervised
        return found


def main(path: str) -> None:
    """Do what the settings say."""
    settings = json.loads(Path(path).read_text())
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="float32")
    rows = load_dataset("json", data_files=settings["rows"], split="train", cache_dir=f"{settings['work']}/datasets")
    options = SFTConfig(
        output_dir=settings["work"],
        assistant_only_loss=True,
        max_length=settings["max_length"],
        per_device_train_batch_size=settings["batch"],
        per_device_eval_batch_size=settings["batch"],
        train_sampling_strategy="group_by_length" if settings["grouped"] else "random",
        num_train_epochs=1,
        learning_rate=1e-3,
        gradient_checkpointing=False,
        prediction_loss_only=True,
        logging_steps=20,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = CountingTrainer(model, options, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    if settings["evaluate"]:
        pauses = Pauses()
        while True:
            trainer.tokens, trainer.loss_sum = 0, 0.0
            trainer.evaluate()
            pauses.end([trainer.tokens, trainer.loss_sum / trainer.tokens])
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "tokens": trainer.tokens, "loss": trainer.loss_sum / trainer.tokens}))


if __name__ == "__main__":
    main(sys.argv[1])
