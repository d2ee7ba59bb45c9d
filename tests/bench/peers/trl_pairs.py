"""Train with TRL's DPOTrainer, KTOTrainer, RewardTrainer, or its experimental CPO, ORPO and GKD: `trl_pairs.py SETTINGS.json`.

Runs in an environment that has TRL; arctic_hydra is not needed there. Prints one JSON line: the log of each step and the
seconds that each took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback


class StepTimes(TrainerCallback):
    """Wall-clock seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def trainer_of(name: str) -> tuple[Any, Any]:
    """Return the trainer class and the class of its options."""
    if name == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig
    if name == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOTrainer, KTOConfig
    if name == "reward":
        from trl import RewardConfig, RewardTrainer

        return RewardTrainer, RewardConfig
    if name == "distill":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        return GKDTrainer, GKDConfig
    if name == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer, CPOConfig


def main(settings_path: str) -> None:
    """Train as the settings say."""
    settings = json.loads(Path(settings_path).read_text())
    trainer_class, options_class = trainer_of(settings["trainer"])
    kind = AutoModelForSequenceClassification if settings["trainer"] == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(settings["model"], dtype="float32")
    teacher = {}
    if settings["teacher"]:
        teacher["teacher_model"] = AutoModelForCausalLM.from_pretrained(settings["teacher"], dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    options = options_class(
        output_dir=settings["work"],
        per_device_train_batch_size=settings["batch"],
        gradient_accumulation_steps=settings["accumulation"],
        max_steps=settings["steps"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        max_length=settings["max_length"],
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        **settings["options"],
    )
    rows = load_dataset("json", data_files=settings["rows"], split="train", cache_dir=f"{settings['work']}/datasets")
    times = StepTimes()
    trainer = trainer_class(
        model, args=options, train_dataset=rows, processing_class=tokenizer, callbacks=[times], **teacher
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"steps": steps, "seconds": times.seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
