"""Distillation in a real engine: one step is one batch of tokens, however it is cut, and equals a plain PyTorch loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers

from arctic_hydra.errors import CheckpointError, ConfigError, FieldError, ModelError
from arctic_hydra.metrics import read_metrics
from arctic_hydra.trainer.distillation.distill import DistillTrainer
from tests.command import SMALL, only_run, run
from tests.ranks import run_ranks
from tests.trainer.distillation.test_divergence import formula
from tests.trainer.loop import (
    APART,
    TEN_STEPS,
    batch_of,
    distance,
    documents,
    full_weights,
    make_trainer,
    tiny_factory,
    trained,
)
from tests.trainer.preference.test_base import gradients

# Uneven on purpose: other numbers of supervised tokens, one document with none, a last step with fewer documents than ranks.
DATA = documents([20, 60, 10, 25, 12, 9, 31, 8, 17], [1, 50, 7, 0, 7, 8, 20, 2, 9])
HELD = documents([12, 30, 7], [5, 20, 6], seed=1)
MASKED = documents([5, 9], [0, 0])
MIX = {"beta": 0.5, "temperature": 2.0, "ce_share": 0.25}


def teacher_model(kind="qwen3", **values):
    """Return a wider model of another architecture than the student's, with weights that predict something."""
    sizes = {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    config = transformers.AutoConfig.for_model(
        kind, **{"vocab_size": 128, "hidden_size": 48, "intermediate_size": 96, **sizes, **values}
    )
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    teacher_model().save_pretrained(folder)
    return str(folder)


def distiller(folder, path, data=DATA, **settings):
    trainer = make_trainer(data, folder, trainer_class=DistillTrainer, teacher_path=path, **settings)
    rows = []
    trainer._record = rows.append
    return trainer, rows


def _case(folder, teacher, settings):
    return trained(distiller(folder, teacher, eval_data=HELD, **MIX, **TEN_STEPS, **settings)[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher):
    return run_ranks(1, _case, tmp_path_factory.mktemp("whole"), teacher, {"micro_batch_size": 4})[0]


CUTS = [
    (1, {"micro_batch_size": 1, "gradient_accumulation_steps": 4, "head_chunk_rows": 3}),
    (1, {"micro_batch_size": 4, "packed": False, "head_loss": "full"}),
    (2, {"micro_batch_size": 2, "stage": 1}),
    (2, {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "stage": 3, "packed": False}),
    (1, {"micro_batch_size": 4, "stage": 3, "offload": {"offload_optimizer": True, "offload_parameters": True}}),
    (2, {"micro_batch_size": 4, "sequence_parallel_size": 2}),
]


@pytest.mark.parametrize(("ranks", "cut"), CUTS, ids=[f"{ranks}-{cut}" for ranks, cut in CUTS])
def test_losses_and_weights_do_not_depend_on_the_cut(whole, teacher, tmp_path, ranks, cut):
    expected, weights, moved = whole
    assert len(expected) == 2 + 10
    for rows, ours, _ in run_ranks(ranks, _case, tmp_path, teacher, cut):
        assert distance(ours, weights) < APART * moved
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys()
            for name in [name for name in row if name.split("/")[-1] in ("loss", "kd_loss", "nll_loss", "accuracy")]:
                assert row[name] == pytest.approx(other[name], rel=1e-6, abs=1e-6), name
        for name, value in weights.items():
            torch.testing.assert_close(ours[name], value, atol=5e-5, rtol=0, msg=name)


def _plain(folder, path):
    """Return the lines of the trainer, and the losses and weights of a plain loop over single documents."""
    trainer, rows = distiller(folder, path, DATA[:8], micro_batch_size=4, eval_data=HELD, clipping=0.0, **MIX)
    student = copy.deepcopy(trainer.tools.engine.module)
    teacher = transformers.AutoModelForCausalLM.from_pretrained(path)
    trainer.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0)

    def parts(document):
        tokens, mask = torch.tensor(document[0]), torch.tensor(document[1][1:])
        ours, theirs = (model(input_ids=tokens[None]).logits[0, :-1][mask] for model in (student, teacher))
        pair = [(logits / 2.0).softmax(-1) for logits in (ours, theirs.detach())]
        nll = torch.nn.functional.cross_entropy(ours, tokens[1:][mask], reduction="none")
        return 4.0 * formula(*pair, 0.5), nll

    def mean(found):
        kd, nll = (torch.cat(part) for part in zip(*found, strict=True))
        return (0.75 * kd + 0.25 * nll).mean(), kd.mean(), nll.mean()

    lines = []
    for step in range(2):
        loss, kd, nll = mean([parts(document) for document in DATA[4 * step :][:4]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lines.append([float(value.detach()) for value in (loss, kd, nll)])
    with torch.no_grad():
        lines.append([float(value) for value in mean([parts(document) for document in HELD])])
    return rows, lines, full_weights(trainer), dict(student.state_dict())


def test_training_equals_a_plain_loop_over_single_documents(teacher, tmp_path):
    rows, lines, weights, expected = run_ranks(1, _plain, tmp_path, teacher)[0]
    for row, line, prefix in zip(rows[1:], lines, ("", "", "eval/"), strict=True):
        assert [row[prefix + name] for name in ("loss", "kd_loss", "nll_loss")] == pytest.approx(line, rel=2e-6)
    assert rows[-1]["eval/perplexity"] == pytest.approx(math.exp(lines[-1][2]), rel=1e-5)
    assert rows[-1]["eval/kd_loss"] < rows[0]["eval/kd_loss"]
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], atol=5e-5, rtol=0, msg=name)


def _itself(folder):
    """Distill a model from itself, whose dropout is off, and a model with an adapter from what it was without it."""
    from arctic_hydra.converter.peft.lora import LoraFactory

    factory = tiny_factory(hf_config_kwargs={"attention_dropout": 0.5})
    torch.manual_seed(0)
    factory.create_model(factory.create_config()).save_pretrained(folder / "itself")
    path, found = str(folder / "itself"), {}
    adapter = {"converters": [LoraFactory(r=4)], "ce_share": 0.5}
    for name, teacher, stage, more in (
        ("itself", path, 0, {}),
        ("copy", path, 0, adapter),
        ("adapter_off", None, 0, {**adapter, "teacher": "adapter_off"}),
        ("adapter_off, sharded", None, 3, {**adapter, "teacher": "adapter_off"}),
    ):
        trainer, rows = distiller(folder, teacher, model=factory, micro_batch_size=4, stage=stage, **more)
        trainer.train()
        found[name] = [(row["loss"], row["kd_loss"]) for row in rows], trainer.state_dict()["teacher"]
    return found


def test_the_loss_is_zero_where_the_student_is_the_teacher_and_an_adapter_can_be_switched_off(tmp_path):
    found = run_ranks(1, _itself, tmp_path)[0]
    lines, checksum = found["itself"]
    assert lines[0] == pytest.approx((0, 0), abs=1e-9) and checksum
    expected, same = found["copy"]
    assert same == checksum and expected[0][1] < 1e-9 < expected[-1][1]
    for name in ("adapter_off", "adapter_off, sharded"):
        ours, none = found[name]
        assert none == ""
        for line, other in zip(ours, expected, strict=True):
            assert line == pytest.approx(other, rel=2e-6, abs=1e-7)


def _by_source(folder, teacher):
    trainer, _ = distiller(folder, teacher, **MIX)
    both = batch_of(HELD)
    both.source_K[both.document_K >= 2] = 1
    trainer.tools.engine.eval()
    with torch.no_grad():
        alone = [trainer.evaluation_sums(batch_of(part), 1)[0] for part in (HELD[:2], HELD[2:])]
        return alone, trainer.evaluation_sums(both, 2), trainer.evaluation_sums(batch_of(MASKED), 2)


def test_tokens_are_evaluated_under_the_source_that_they_come_from(teacher, tmp_path):
    alone, both, nothing = run_ranks(1, _by_source, tmp_path, teacher)[0]
    torch.testing.assert_close(both, torch.stack(alone), rtol=1e-5, atol=1e-5)
    assert both[:, 2].tolist() == [25.0, 6.0] and not nothing.any()


def _masked(folder, teacher):
    """Return the loss of a fully masked micro-batch, and the gradients that its graph gives to each weight."""
    found = []
    for head_loss in ("chunked", "full"):
        trainer, _ = distiller(folder, teacher, head_loss=head_loss, **MIX)
        loss = trainer.loss(batch_of(MASKED))
        found.append((float(loss), gradients(trainer, loss)))
    return found


def test_a_fully_masked_micro_batch_has_the_loss_0_with_a_graph(teacher, tmp_path):
    for loss, found in run_ranks(1, _masked, tmp_path, teacher)[0]:
        assert loss == 0.0 and len(found) > 10 and not any(found)


def _refused(folder, path):
    with pytest.raises(ConfigError, match=r"trainer.teacher: got adapter_off, but the model has no adapter"):
        distiller(folder, None, teacher="adapter_off", ce_share=0.5)
    trainer, _ = distiller(folder, path)
    trainer.load_state_dict(trainer.state_dict())
    with pytest.raises(CheckpointError, match=r"trainer.teacher_path: the weights in .* are not those with which"):
        trainer.load_state_dict({"teacher": "0123456789abcdef"})
    with pytest.raises(ConfigError, match=r"trainer.teacher_path: .* vocabulary has 128 rows, and the student's 96"):
        distiller(folder, path, model=tiny_factory(vocab_size=96))
    (folder / "empty").mkdir()
    with pytest.raises(ModelError, match=r"^trainer.teacher_path: '.*empty' cannot be loaded"):
        distiller(folder, str(folder / "empty"))
    teacher_model("gemma2", attn_logit_softcapping=50.0, query_pre_attn_scalar=16).save_pretrained(folder / "gemma2")
    text = r"^trainer.teacher_path: the teacher has the attention of the student \(model.attn_implementation\), and arctic_varl"
    with pytest.raises(ModelError, match=text):
        distiller(folder, str(folder / "gemma2"))
    distiller(folder, str(folder / "gemma2"), packed=False, model=tiny_factory(attn_implementation="eager"))
    mamba = teacher_model("mamba", state_size=4, num_attention_heads=0)
    mamba.save_pretrained(folder / "mamba")
    with pytest.raises(ConfigError, match=r"data.packing: .* MambaForCausalLM \(under trainer.teacher_path\) mixes"):
        distiller(folder, str(folder / "mamba"))
    distiller(folder, str(folder / "mamba"), packed=False)
    teacher_model("bert", is_decoder=False).save_pretrained(folder / "bert")
    with pytest.raises(ConfigError, match=r"BertLMHeadModel \(under trainer.teacher_path\) .* tokens depend on later"):
        distiller(folder, str(folder / "bert"), packed=False, model=tiny_factory(attn_implementation="eager"))


def test_teachers_that_do_not_fit_are_refused(teacher, tmp_path):
    run_ranks(1, _refused, tmp_path, teacher)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "teacher_path: not set; expected the hub id or the directory of a model"),
        (
            {"teacher_path": "x", "teacher": "adapter_off", "ce_share": 0.5},
            "teacher: got adapter_off, but teacher_path",
        ),
        ({"teacher": "adapter_off"}, "ce_share: got 0, but with teacher=adapter_off"),
        ({"teacher_path": "x", "temperature": 0}, "temperature: got 0, by which the logits are divided"),
        ({"teacher_path": "x", "beta": 1.5}, "beta: got 1.5, expected"),
        ({"teacher_path": "x", "ce_share": -0.1}, "ce_share: got -0.1, expected"),
        ({"teacher_path": "x", "ce_share": 1}, "ce_share: got 1, with which the teacher has no effect"),
        ({"teacher_path": "x", "head_loss": "liger"}, "head_loss: got liger, whose kernel computes the cross-entropy"),
    ],
)
def test_impossible_settings_are_refused(values, problem):
    with pytest.raises((ValueError, FieldError), match=problem):
        DistillTrainer(**values)


RECIPE = (
    f"experiment=distill model=tiny deepspeed=zero1 data=chat tracking=[] {SMALL} log.interval=1 trainer.train_iters=5 "
    "trainer.eval_frequency=0"
)


def _lines(run_dir):
    kept = ("step", "loss", "kd_loss", "nll_loss", "grad_norm")
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name in kept or "eval/" in name} for row in rows]


def test_the_recipe_stops_resumes_bit_for_bit_and_is_evaluated_again(tmp_path):
    wider = SMALL.replace("model.hidden_size=64", "model.hidden_size=96")
    run(f"name=teacher {wider} tracking=[] trainer.train_iters=4", tmp_path)
    teacher = only_run(tmp_path, "teacher")
    whole, parts = (f"{RECIPE} trainer.teacher_path={teacher} name={name}" for name in ("whole", "parts"))
    run(whole, tmp_path)
    run(f"{parts} trainer.exit_iteration_this_run=2", tmp_path, code=75)
    run(parts, tmp_path)
    done, again = (only_run(tmp_path, name) for name in ("whole", "parts"))
    assert _lines(done) == _lines(again) and len(_lines(done)) == 7
    exports = [path / "export" / "model.safetensors" for path in (done, again)]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    evaluated = run(f"{whole} task=evaluate", tmp_path).stdout
    last = _lines(done)[-1]
    assert f"loss {last['eval/loss']:.4f}, perplexity {last['eval/perplexity']:.4g}" in evaluated, evaluated
