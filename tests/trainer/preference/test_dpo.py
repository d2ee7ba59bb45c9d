"""The options of DPO: its losses, and what its reference is."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch

from arctic_hydra.errors import CheckpointError, ConfigError, FieldError
from arctic_hydra.metrics import read_metrics
from arctic_hydra.trainer.preference.choices import PAIR_LOSS_NAMES
from arctic_hydra.trainer.preference.dpo import DPOTrainer
from tests.command import SMALLEST, run
from tests.ranks import run_ranks
from tests.trainer.loop import APART, TEN_STEPS, distance, make_trainer, pairs, trained
from tests.trainer.preference.test_losses import AT_REFERENCE

DATA = pairs([(3, 9), (12, 1), (5, 5), (20, 2)])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"loss_type": "ipoo"}, "loss_type: got ipoo, expected one or a list of .*; did you mean ipo"),
        ({"loss_type": ["sft"]}, "loss_type: got .*; for sft alone pass trainer=sft"),
        ({"loss_type": ["ipo", "ipo"]}, "loss_type: got .* each once"),
        ({"loss_type": 3}, "loss_type: got 3, expected one or a list"),
        ({"loss_type": ["ipo", "sft"], "loss_weights": [1.0]}, "loss_weights: got 1 weights for 2 losses"),
        ({"loss_weights": [-1.0]}, "loss_weights: got .*, expected finite numbers above 0"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing: got 0.1, but hinge has none"),
        ({"loss_type": "exo_pair", "label_smoothing": 0}, "label_smoothing: got 0, expected above 0 and below 0.5"),
        ({"loss_type": "exo_pair", "label_smoothing": 0.5}, "label_smoothing: got 0.5, expected above 0 and below"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing: got 0.5, expected below 0.5"),
        ({"loss_type": "robust", "label_smoothing": 0.7}, "label_smoothing: got 0.7, expected below 0.5"),
        ({"loss_type": "ipo", "ld_alpha": 0.5}, "ld_alpha: got 0.5, but ipo takes the mean over tokens"),
        ({"reference_path": "x", "reference": "copy"}, "reference: got copy, but reference_path names the reference"),
    ],
)
def test_impossible_settings_are_refused(values, problem):
    with pytest.raises(FieldError, match=problem):
        DPOTrainer(**values)


def test_a_missing_reference_is_found_before_the_run_starts(tmp_path):
    [problem] = DPOTrainer(reference_path=str(tmp_path / "nothing")).check_environment()
    assert problem.startswith("reference_path: got ") and "not a directory" in problem


def _starts(folder):
    """Return the first loss of each loss type, and the gradient norm of its step."""
    found = {}
    for name in PAIR_LOSS_NAMES:
        smoothing = {"label_smoothing": 0.1} if name in ("robust", "exo_pair") else {}
        trainer = make_trainer(
            DATA, folder, trainer_class=DPOTrainer, loss_type=name, beta=0.2, micro_batch_size=4, **smoothing
        )
        rows = []
        trainer._record = rows.append
        trainer.train()
        found[name] = rows[0]["loss"], rows[0]["grad_norm"], rows[0]["rewards/margins"]
    return found


def test_every_loss_starts_from_its_value_at_the_reference(tmp_path):
    found = run_ranks(1, _starts, tmp_path)[0]
    for name, expected in AT_REFERENCE.items():
        loss, norm, margin = found[name]
        assert loss == pytest.approx(expected, rel=1e-6), name
        assert norm > 0 and margin == pytest.approx(0, abs=1e-6), name


def _adapters(folder, *cuts):
    """Train ten steps with an adapter, for each of `cuts`; return losses, state, final weights and how far they moved."""
    from arctic_hydra.converter.peft.lora import LoraFactory

    found = []
    for cut in cuts:
        settings = {**TEN_STEPS, "converters": [LoraFactory(r=4)], **cut}
        trainer = make_trainer(DATA, folder, trainer_class=DPOTrainer, **settings)
        rows, weights, moved = trained(trainer)
        found.append(([row["loss"] for row in rows], trainer.state_dict(), weights, moved))
    return found


def test_a_model_without_its_adapter_is_the_reference_that_a_copy_is(tmp_path):
    """However a step is cut."""
    split = {"micro_batch_size": 1, "gradient_accumulation_steps": 4}
    padded = {"micro_batch_size": 4, "packed": False, "reference": "adapter_off"}
    whole = {"micro_batch_size": 4, "reference": "copy"}
    [[(losses, state, weights, moved), *others]] = run_ranks(1, _adapters, tmp_path, whole, split, padded)
    assert state["reference"] and losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0]
    sharded = {"micro_batch_size": 2, "stage": 3}
    for found in run_ranks(2, _adapters, tmp_path, sharded):
        others += found
    assert len(others) == 4 and len(losses) == 10
    for ours, none, ends, _ in others:
        assert none == {"reference": ""}
        assert ours == pytest.approx(losses, rel=1e-6)
        assert distance(ends, weights) < APART * moved


def _wrong(folder):
    with pytest.raises(ConfigError, match=r"trainer.reference: got adapter_off, but the model has no adapter"):
        make_trainer(DATA, folder, trainer_class=DPOTrainer, reference="adapter_off")

    class Started(DPOTrainer):
        """Its adapter does not begin at zero."""

        def setup(self, tools):
            for name, parameter in tools.engine.module.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter)
            super().setup(tools)

    from arctic_hydra.converter.peft.lora import LoraFactory

    with pytest.raises(ConfigError, match="without its adapter the model differs from the model at its start"):
        make_trainer(DATA, folder, trainer_class=Started, converters=[LoraFactory(r=4)])

    class Unreadable(DPOTrainer):
        """Its reference cannot be read."""

        def setup(self, tools):
            def create(path):
                raise CheckpointError("init_from: x holds a.bin, but pickled weights are not loaded")

            tools.create_model = create
            super().setup(tools)

    with pytest.raises(CheckpointError, match=r"^trainer.reference_path: x holds a.bin, but"):
        make_trainer(DATA, folder, trainer_class=Unreadable, reference_path=str(folder))
    with pytest.raises(CheckpointError, match=r"^init_from: x holds a.bin, but"):
        make_trainer(DATA, folder, trainer_class=Unreadable)
    trainer = make_trainer(DATA, folder, trainer_class=DPOTrainer)
    trainer.load_state_dict(trainer.state_dict())
    with pytest.raises(
        CheckpointError, match=r"trainer.reference: its weights are not those with which this run began"
    ):
        trainer.load_state_dict({"reference": "0" * 16})


def test_a_reference_other_than_the_start_is_refused(tmp_path):
    run_ranks(1, _wrong, tmp_path)


PAIRS = [
    {
        "prompt": f"What is {n} plus {n}?",
        "chosen": f"{n} plus {n} is {2 * n}." + " Sure." * (n % 4),
        "rejected": "I do not know." * (1 + n % 3),
    }
    for n in range(40)
]
WHOLE = (
    f"trainer=dpo peft=lora {SMALLEST} data.sources.preference.path=pairs.jsonl data.train_eval_split=[0.8,0.2] tracking=[] "
    "trainer.epochs=2 trainer.micro_batch_size=1 trainer.gradient_accumulation_steps=2 log.interval=1 name=r"
)


def lines(folder, *more):
    """Return the directory of the run `r`, and the figures in its lines, with `more` of them."""
    [path] = folder.glob("outputs/r/*/metrics.jsonl")
    kept = ("step", "loss", "grad_norm", *more)
    return path.parent, [
        {name: value for name, value in row.items() if name in kept or name.startswith(("rewards/", "logps/", "eval/"))}
        for row in read_metrics(path)
    ]


def folders(tmp_path, names, files):
    """Make folders with these names, and these files, by name, in each."""
    for name in names:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def assert_equal_exports(*run_dirs):
    one, other = [path / "export" / "model.safetensors" for path in run_dirs]
    assert one.read_bytes() == other.read_bytes()


def whole_and_in_parts(tmp_path, command, data, *stops, figures=()):
    """Run `command`, of a run `r`, as a whole, and in parts that end after `stops` steps; return the lines of both, which are equal."""
    folders(tmp_path, ("whole", "parts"), data)
    run(command, tmp_path / "whole")
    for steps in stops:
        run(f"{command} trainer.exit_iteration_this_run={steps}", tmp_path / "parts", code=75)
    run(command, tmp_path / "parts")
    (done, whole), (again, parts) = (lines(tmp_path / name, *figures) for name in ("whole", "parts"))
    assert parts == whole and len(whole) >= 8
    assert_equal_exports(done, again)
    return whole


def test_a_run_stops_resumes_bit_for_bit_and_is_evaluated_again(tmp_path):
    whole = whole_and_in_parts(tmp_path, WHOLE, {"pairs.jsonl": json_lines(PAIRS)}, 2, 2)
    evaluated = run(f"{WHOLE} task=evaluate", tmp_path / "whole").stdout
    last = whole[-1]
    assert f"loss {last['eval/loss']:.4f}, {last['eval/rewards/accuracies']:.1%} of pairs" in evaluated, evaluated


KILLER = """
import os
import signal
from pathlib import Path

from arctic_hydra.callback.base import Callback
from arctic_hydra.component import component


@component(group="callback", name="killer")
class Killer(Callback):
    \"\"\"Kills the command, two processes above its ranks, between the micro-batches of step 6.\"\"\"

    def on_backward_end(self, trainer, facts):
        if trainer.global_step == 5 and Path("kill").exists():
            agent = Path(f"/proc/{os.getppid()}/stat").read_text()
            os.kill(int(agent.rpartition(")")[2].split()[1]), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED = (
    f"code=killer.py callback=[code:killer] trainer=dpo ranks=2 deepspeed=zero2 {SMALLEST} tracking=[] log.interval=1 name=r "
    "data.sources.preference.path=pairs.jsonl data.train_eval_split=[0.8,0.2] data.max_length=64 data.packing=false "
    "trainer.epochs=1 trainer.gradient_accumulation_steps=2 trainer.eval_at_start=false checkpoint.deepspeed.save_every_n_steps=2"
)


def test_a_run_with_a_copy_resumes_bit_for_bit_after_a_kill_between_two_micro_batches(tmp_path):
    """And a later evaluation compares with the start of the run, not with the model as it is then."""
    folders(tmp_path, ("whole", "killed"), {"killer.py": KILLER, "pairs.jsonl": json_lines(PAIRS)})
    run(KILLED, tmp_path / "whole")
    (tmp_path / "killed" / "kill").touch()
    run(KILLED, tmp_path / "killed", code=-signal.SIGKILL)
    assert [row["step"] for row in lines(tmp_path / "killed")[1]] == [1, 2, 3, 4, 5]
    (tmp_path / "killed" / "kill").unlink()
    assert "resumed  from step-00000004" in run(KILLED, tmp_path / "killed").stdout
    evaluated = run(f"{KILLED} task=evaluate", tmp_path / "whole").stdout
    (done, whole), (again, killed) = (lines(tmp_path / name) for name in ("whole", "killed"))
    assert killed == whole and [row["step"] for row in whole] == [*range(1, 9), 8]
    assert_equal_exports(done, again)
    assert f"loss {whole[-1]['eval/loss']:.4f}, " in evaluated and whole[-1]["eval/loss"] < 0.69, evaluated
