"""Which exports of a run are verified, and how a run ends whose export differs."""

from __future__ import annotations

import json

import pytest

from tests.command import SMALL, losses, only_run, run
from tests.converter import lab

CODE = '''
from arctic_hydra.callback.base import Callback
from arctic_hydra.checkpoint import export_config
from arctic_hydra.component import component


@component(group="callback", name="forgetful")
class Forgetful(Callback):
    """Lets exports forget the stop token that was trained."""

    def on_save_start(self, trainer, facts):
        export_config.special_tokens = lambda *_: {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lab.warm()
    return lab.save_model(tmp_path_factory.mktemp("model"), tied=True)


def test_the_first_export_of_a_start_and_the_final_one_are_verified_at_zero_3(model, tmp_path):
    arguments = "deepspeed=zero3 ranks=2 trainer.train_iters=3 checkpoint.hf.save_every_n_steps=1 callback=[ema]"
    result = lab.in_ranks(2, lab.perform, arguments, tmp_path / "run", model)
    assert result["status"] == "finished"
    assert list(result["verification"]) == ["export-step-00000001", "export"]
    for verdict in result["verification"].values():
        assert verdict["verified"] and not verdict["unchecked"] and "tied head" in verdict["equal"]


def test_verify_false_verifies_nothing(model, tmp_path):
    done = lab.in_ranks(1, lab.perform, "checkpoint.hf.verify=false", tmp_path / "run", model)
    assert done["status"] == "finished" and "verification" not in done
    task = "checkpoint.hf.verify=false task=export"
    assert "verification" not in lab.in_ranks(1, lab.perform, task, tmp_path / "run" / "task-export", model)


def test_a_run_whose_export_differs_fails_says_so_and_keeps_it(tmp_path):
    (tmp_path / "planted.py").write_text(CODE)
    planted = f"{SMALL} trainer.train_iters=2 tracking=[] code=planted.py callback=[code:forgetful]"
    done = run(planted, tmp_path, code=1)
    sentence = "generation_config.eos_token_id is 2, without 3 '<|im_end|>', which ends answers"
    assert f"export is wrong: {sentence}" in done.stdout and "verified" not in done.stdout
    assert "error: an export differs from the trained model; the files stay" in done.stderr
    record = json.loads((only_run(tmp_path) / "record.json").read_text())
    assert record["status"] == "failed" and sentence in record["error"]
    assert sentence in record["result"]["verification"]["export"]["differs"]
    assert (only_run(tmp_path) / "export" / "model.safetensors").exists()
    (tmp_path / "planted.py").write_text(CODE.replace("export_config.special_tokens = lambda *_:", "_ ="))
    mended = run(planted, tmp_path)
    assert len(losses(only_run(tmp_path))) == 2 and "step 2/2" not in mended.stdout, "only the export is repeated"
    assert "export verified: logits " in mended.stdout
    record = json.loads((only_run(tmp_path) / "record.json").read_text())
    assert record["status"] == "finished" and record["result"]["verification"]["export"]["verified"]


def test_a_wrong_export_before_a_stop_fails_the_run_at_its_end(tmp_path):
    """The start that ends the run has verified its own exports only, which are right."""
    (tmp_path / "planted.py").write_text(CODE)
    planted = (
        f"{SMALL} trainer.train_iters=2 tracking=[] code=planted.py callback=[code:forgetful] checkpoint.hf.save_every_n_steps=1 "
        "trainer.eval_at_start=false"
    )
    run(f"{planted} trainer.exit_iteration_this_run=1", tmp_path, code=75)
    (tmp_path / "planted.py").write_text(CODE.replace("export_config.special_tokens = lambda *_:", "_ ="))
    done = run(planted, tmp_path, code=1)
    assert "export-step-00000001 is wrong: generation_config.eos_token_id is 2" in done.stdout
    assert "export verified: logits " in done.stdout
    record = json.loads((only_run(tmp_path) / "record.json").read_text())
    assert record["status"] == "failed" and "export-step-00000001: generation_config" in record["error"]
