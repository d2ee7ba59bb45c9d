"""The profiler writes a trace of the chosen steps."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

from arctic_hydra.callback.profiler import Profiler
from tests.ranks import run_ranks
from tests.trainer.loop import documents, make_trainer

DATA = documents([12] * 6, [4] * 6)


def _profiled(folder, steps, all_ranks, output_dir=None):
    trainer = make_trainer(DATA, folder)
    profiler = Profiler(skip_steps=1, steps=steps, all_ranks=all_ranks, output_dir=output_dir)
    trainer.set_callbacks([profiler], trainer.world)
    trainer.attach(trainer)
    trainer.train()


def _events(path):
    return [event for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if event.get("name")]


def test_it_writes_a_trace_of_the_chosen_steps(tmp_path):
    run_ranks(1, _profiled, tmp_path, 2, False)
    [path] = (tmp_path / "profile").iterdir()
    assert path.name == "rank-00000-from-step-2.json.gz"
    names = [event["name"] for event in _events(path)]
    assert [name for name in ("step 1", "step 2", "step 3", "step 4") if name in names] == ["step 2", "step 3"]
    assert "aten::mm" in names


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    run_ranks(1, _profiled, tmp_path, 2, False, "/proc/nowhere")
    assert not (tmp_path / "profile").exists()


def test_a_run_with_too_few_steps_to_record_is_a_warning(caplog):
    trainer = SimpleNamespace(world=SimpleNamespace(is_main=True), global_step=0)
    profiler = Profiler(skip_steps=2)
    profiler.on_step_start(trainer, {})
    profiler.on_step_end(trainer, {})
    profiler.on_train_end(trainer, {})
    assert "recorded nothing, as this start had 1 steps and callback.profiler.skip_steps=2" in caplog.text


def test_it_writes_one_of_each_rank_also_if_training_ends_before(tmp_path):
    run_ranks(2, _profiled, tmp_path, 100, True, str(tmp_path / "traces"))
    own = tmp_path / "traces" / tmp_path.parent.name / tmp_path.name  # runs do not overwrite each other's
    assert sorted(path.name for path in own.iterdir()) == [f"rank-0000{rank}-from-step-2.json.gz" for rank in (0, 1)]
