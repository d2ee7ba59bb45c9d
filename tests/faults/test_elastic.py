"""Another number of ranks at the same global batch goes on where the run stood, through the real command."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.command import SMALL, losses, only_run, run

ARGUMENTS = (
    f"{SMALL} trainer.train_iters=6 data.sources.chat.sample_count=40 tracking=[] deepspeed=zero2 callback=[recorder] "
    "trainer.eval_at_start=false"
)
TWO, ONE = "ranks=2 trainer.gradient_accumulation_steps=1", "ranks=1 trainer.gradient_accumulation_steps=2"


def examples(run_dir):
    """Return how often each example was trained on, over all ranks."""
    lines = [line for path in run_dir.glob("examples.jsonl.rank*") for line in path.read_text().splitlines()]
    return Counter(example for line in lines for batch in json.loads(line) for example in batch)


@pytest.mark.faults
@pytest.mark.parametrize(("first", "second"), [(TWO, ONE), pytest.param(ONE, TWO, marks=pytest.mark.long)])
def test_ranks_change_and_every_example_is_seen_once(first, second, my_lab, tmp_path):
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    straight.mkdir()
    changed.mkdir()
    run(f"{ARGUMENTS} {first}", straight, PYTHONPATH=str(my_lab))
    run(f"{ARGUMENTS} {first} trainer.exit_iteration=3", changed, code=75, PYTHONPATH=str(my_lab))
    done = run(f"{ARGUMENTS} {second}", changed, PYTHONPATH=str(my_lab))
    assert "resharding step-00000003 from" in done.stderr and "resumed  from step-00000003" in done.stdout
    assert losses(only_run(changed)) == pytest.approx(losses(only_run(straight)), abs=1e-5)
    assert examples(only_run(changed)) == examples(only_run(straight))
    assert set(examples(only_run(changed)).values()) == {1}
