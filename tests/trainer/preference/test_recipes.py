"""The recipes of preference training, on a tiny model and a directory in the layout of their data set."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command import only_run, run

TINY = "model.hidden_size=64 model.intermediate_size=128 model.num_hidden_layers=2 data.num_proc=1 log.report=false"


@pytest.fixture
def ultrafeedback(tmp_path):
    """Return a directory with the columns, splits and file names of HuggingFaceH4/ultrafeedback_binarized."""
    rows = []
    for n in range(12):
        asked = {"role": "user", "content": f"What is {n} + 1?"}
        chosen, rejected = ([asked, {"role": "assistant", "content": text}] for text in (f"It is {n + 1}.", "No idea."))
        scores = {"score_chosen": 8.0, "score_rejected": 3.0}
        texts = {"prompt": asked["content"], "prompt_id": str(n), "messages": chosen}
        rows.append({**texts, "chosen": chosen, "rejected": rejected, **scores})
    folder = tmp_path / "ultrafeedback"
    (folder / "data").mkdir(parents=True)
    for split, part in (("train_prefs", rows[:8]), ("test_prefs", rows[8:]), ("train_sft", rows[:1])):
        pq.write_table(pa.Table.from_pylist(part), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("recipe", ["dpo", "dpo_lora"])
def test_recipes_of_dpo_train_on_a_directory_in_the_layout_of_their_data_set(recipe, ultrafeedback, tmp_path):
    command = (
        f"experiment={recipe} model=tiny {TINY} tracking=[] trainer.gradient_accumulation_steps=1 "
        f"trainer.epochs=4 optimizer.lr=1e-2 data.sources.ultrafeedback.path={ultrafeedback}"
    )
    done = run(command, tmp_path)
    assert "8 examples" in done.stdout and "evaluation: 4 examples" in done.stdout
    lines = [json.loads(line) for line in (only_run(tmp_path, recipe) / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line["eval/rewards/margins"] for line in lines if "eval/rewards/margins" in line]
    assert evaluations[0] == 0 and evaluations[-1] > 0.1
