"""`task=export`, `task=evaluate` and `init_from`, through the real command."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

from tests.checkpoint.test_store import flip_one_bit
from tests.command import SMALL, metrics, only_run, run

pytestmark = pytest.mark.xdist_group("tasks")  # what they share is made once

TINY = f"{SMALL} trainer.train_iters=6 data.sources.chat.sample_count=40 tracking=[]"
TRAINED = f"{TINY} deepspeed=zero3"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two ranks at ZeRO-3 with checkpoints of steps 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    run(f"{TRAINED} ranks=2 checkpoint.deepspeed.save_every_n_steps=4 trainer.eval_frequency=4", folder)
    return folder, only_run(folder)


def test_export_of_any_checkpoint_equals_the_one_of_the_run(trained):
    """In one process, from shards that two ranks wrote at ZeRO-3."""
    folder, run_dir = trained
    arguments = f"{TRAINED} ranks=2 trainer.eval_frequency=4 task=export"
    done = run(arguments, folder)
    assert "checkpoints/step-00000006 to" in done.stdout and "export-step-00000006 verified: logits " in done.stdout
    during, after = (load_file(run_dir / name / "model.safetensors") for name in ("export", "export-step-00000006"))
    assert during.keys() == after.keys()
    assert all(during[name].equal(value) for name, value in after.items())
    run(f"{arguments} from_checkpoint=4", folder)
    earlier = load_file(run_dir / "export-step-00000004" / "model.safetensors")
    assert any(not earlier[name].equal(value) for name, value in after.items())


def test_evaluation_of_a_checkpoint_is_that_of_the_training(trained):
    folder, run_dir = trained
    expected = {row["step"]: row["eval/loss"] for row in metrics(run_dir) if "eval/loss" in row}
    same_batch = "ranks=1 trainer.gradient_accumulation_steps=2"  # one rank looks at what two have written
    done = run(f"{TRAINED} {same_batch} trainer.eval_frequency=4 task=evaluate from_checkpoint=4", folder)
    assert "evaluation at step 4: loss" in done.stdout
    result = json.loads((run_dir / "task-evaluate" / "result.json").read_text())
    assert result["eval/loss"] == pytest.approx(expected[4], abs=1e-6)
    assert json.loads((run_dir / "record.json").read_text())["status"] == "finished"
    assert len(metrics(run_dir)) == 9, "the run's own metrics are left alone"


def test_init_from_an_export_and_a_checkpoint_starts_at_their_loss(trained, tmp_path):
    _, run_dir = trained
    expected = next(row["eval/loss"] for row in reversed(metrics(run_dir)) if "eval/loss" in row)
    for name, source in (("a", run_dir / "export"), ("b", run_dir / "checkpoints" / "step-00000006"), ("c", run_dir)):
        run(f"{TINY} name={name} init_from={source} trainer.train_iters=1 checkpoint=[]", tmp_path)
        first = metrics(only_run(tmp_path, name))[0]
        assert (first["step"], first["eval/loss"]) == (0, pytest.approx(expected, abs=1e-6))


def test_damage_and_what_does_not_fit_are_refused(trained, tmp_path):
    _, run_dir = trained
    broken = tmp_path / "step-00000006"
    shutil.copytree(run_dir / "checkpoints" / "step-00000006", broken)
    flip_one_bit(broken / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    done = run(f"{TINY} task=export from_checkpoint={broken}", tmp_path, code=1)
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt is damaged" in done.stderr
    wider = run(f"{TINY} model.hidden_size=128 init_from={run_dir}", tmp_path, code=1)
    assert "the shapes differ of model.embed_tokens.weight" in wider.stderr
    deeper = run(f"{TINY} model.num_hidden_layers=3 init_from={run_dir}", tmp_path, code=1)
    assert "it lacks model.layers.2.self_attn.q_proj.weight" in deeper.stderr
    assert "Traceback" not in done.stderr + wider.stderr + deeper.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("from_checkpoint=4", "from_checkpoint: got 4, but task=train ignores it"),
        ("task=report from_checkpoint=4", "from_checkpoint: got 4, but task=report ignores it"),
        ("init_from=./absent", "which is not a directory; expected an export, a checkpoint or a run directory"),
        (
            "export=best",
            "export: got best, but task=train ignores it; after the training, pass task=export export=best",
        ),
        (
            "task=export export=4",
            "export: got '4', expected best; select another checkpoint with from_checkpoint=<step|path>",
        ),
        (
            "task=export export=best from_checkpoint=4",
            "export: got best, but from_checkpoint=4 selects another checkpoint",
        ),
        ("task=export", "does not exist: this config has never been trained"),
        ("task=evaluate from_checkpoint=./absent", "from_checkpoint: got"),
        ("task=evaluate ~data.eval_sources.chat", "task: got evaluate, but there is no evaluation data"),
    ],
)
def test_requests_without_a_meaning(arguments, text, tmp_path):
    done = run(f"{TINY} {arguments}", tmp_path, code=2)
    assert text in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_step_that_is_not_there(trained):
    folder, _ = trained
    done = run(f"{TRAINED} trainer.eval_frequency=4 task=evaluate from_checkpoint=5", folder, code=1)
    assert "step-00000005 cannot be used: there is no such directory. Steps below" in done.stderr
    best = run(f"{TRAINED} trainer.eval_frequency=4 task=export export=best", folder, code=1)
    assert "holds no checkpoint with a metric" in best.stderr
