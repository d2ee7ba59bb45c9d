"""Reward models in a real engine: one step is one batch of pairs, however it is cut, and equals a plain loop over single documents."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from arctic_hydra.converter.peft.any import AnyPeft
from arctic_hydra.errors import ConfigError, FieldError
from arctic_hydra.metrics import read_metrics
from arctic_hydra.trainer.preference.reward import RewardTrainer
from tests.command import SMALLEST, run
from tests.ranks import run_ranks
from tests.trainer.loop import APART, TEN_STEPS, batch_of, distance, make_trainer, tiny_factory, trained
from tests.trainer.preference.test_base import DATA, HELD

CENTERED = {"center_rewards_coefficient": 0.1, "margin": 0.5}
FIGURES = ("accuracy", "margin", "min_reward", "mean_reward", "max_reward")


def history(folder, settings):
    """Train and return the log lines, the final weights and how far they moved."""
    settings = {**CENTERED, **TEN_STEPS, **settings}
    trainer = make_trainer(DATA, folder, trainer_class=RewardTrainer, eval_data=HELD, **settings)
    trainer.tools.log_interval = 2
    return trained(trainer)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_ranks(1, history, tmp_path_factory.mktemp("whole"), {"micro_batch_size": 4})[0]


CUTS = [
    (1, {"micro_batch_size": 1, "gradient_accumulation_steps": 4}),
    (1, {"micro_batch_size": 4, "packed": False}),
    (2, {"micro_batch_size": 2, "stage": 1}),
    (2, {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "stage": 3, "packed": False}),
]


@pytest.mark.parametrize(("ranks", "cut"), CUTS, ids=[f"{ranks}-{cut}" for ranks, cut in CUTS])
def test_losses_figures_and_weights_do_not_depend_on_the_cut(whole, tmp_path, ranks, cut):
    expected, weights, moved = whole
    assert len(expected) == 2 + 5 and {"score.weight", "model.embed_tokens.weight"} < weights.keys()
    for rows, ours, _ in run_ranks(ranks, history, tmp_path, cut):
        assert distance(ours, weights) < APART * moved
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys()
            for name in [name for name in row if name.split("/")[-1] in ("loss", *FIGURES)]:
                tolerance = 1e-6 if name.endswith("loss") else 2e-5
                assert row[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name
        for name, value in weights.items():
            torch.testing.assert_close(ours[name], value, atol=5e-5, rtol=0, msg=name)


def _plain(folder):
    """Return the figures of a plain loop over single documents, with transformers' own scores, and the lines of the trainer."""
    settings = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "eval_data": HELD, "clipping": 0.0}
    trainer = make_trainer(DATA[:8], folder, trainer_class=RewardTrainer, **settings, **CENTERED)
    trainer.tools.log_interval = 2
    untouched = make_trainer(DATA, folder, trainer_class=RewardTrainer).tools.engine.module
    del untouched.forward  # that of transformers
    model = copy.deepcopy(untouched)
    rows = []
    trainer._record = rows.append
    trainer.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    def scores(pair):
        return torch.stack([model(input_ids=torch.tensor(ids)[None]).logits[0, 0] for ids, _ in pair])

    seen, losses = [], []
    for step in range(2):
        found = torch.stack([scores(pair) for pair in DATA[4 * step :][:4]])
        difference = found[:, 0] - found[:, 1] - 0.5
        value = (-torch.log(torch.sigmoid(difference)) + 0.1 * found.sum(1) ** 2).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(found.detach())
        losses.append(float(value))
    with torch.no_grad():
        return losses, torch.cat(seen), torch.stack([scores(pair) for pair in HELD]), rows


def check_figures(row, scores_P2, prefix=""):
    chosen, rejected = scores_P2.T
    expected = [(chosen > rejected).float().mean(), (chosen - rejected).mean()]
    expected += [scores_P2.min(), scores_P2.mean(), scores_P2.max()]
    for name, value in zip(FIGURES, expected, strict=True):
        assert row[f"{prefix}{name}"] == pytest.approx(float(value), abs=2e-5), name


def test_training_equals_a_plain_loop_over_single_documents(tmp_path):
    losses, trained, held, rows = run_ranks(1, _plain, tmp_path)[0]
    _, steps, last = rows
    assert steps["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5) and losses[0] != losses[1]
    check_figures(steps, trained)
    check_figures(last, held, "eval/")


def _by_source(folder):
    trainer = make_trainer(DATA[:4], folder, trainer_class=RewardTrainer, margin=0.5)
    both = batch_of([side for pair in HELD for side in pair])
    both.source_K[both.document_K >= 4] = 1
    trainer.tools.engine.eval()
    with torch.no_grad():
        scores = trainer._scores.of_documents(both).double()
        empty = trainer.loss(batch_of([]))
        both.margin_P = torch.tensor([2.0, torch.nan, -0.25])  # of HELD
        return scores, trainer.evaluation_sums(both, 3), trainer.evaluation_sums(batch_of([]), 1), empty


def test_pairs_are_evaluated_under_the_source_that_they_come_from(tmp_path):
    scores, sums, nothing, empty = run_ranks(1, _by_source, tmp_path)[0]
    assert sums[:, 2].tolist() == [2.0, 1.0, 0.0] and float(empty) == 0.0
    for source, mine in ((0, scores[:4]), (1, scores[4:])):
        assert float(sums[source, 5]) == pytest.approx(float(mine.sum()) / 2)
        assert sums[source, 6:].tolist() == [-float(mine.min()), float(mine.max())]
    margins = torch.tensor([2.0, 0.5, -0.25])  # the second has none of its own
    losses = -torch.log(torch.sigmoid(scores[0::2] - scores[1::2] - margins))
    assert sums[:2, 0].tolist() == pytest.approx([float(losses[:2].sum()), float(losses[2])], rel=1e-6)
    infinite = [-torch.inf, -torch.inf]
    assert sums[2, 6:].tolist() == nothing[0, 6:].tolist() == infinite


def _frozen_head(folder):
    adapter = AnyPeft(peft_type="TRAINABLE_TOKENS", config={"token_indices": [1]})
    with pytest.raises(ConfigError, match="peft: TRAINABLE_TOKENS cannot train the score head of LlamaForSequence"):
        make_trainer(DATA, folder, trainer_class=RewardTrainer, converters=[adapter])


def test_an_adapter_that_cannot_train_the_new_head_is_refused(tmp_path):
    run_ranks(1, _frozen_head, tmp_path)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"margin": -1}, "margin: got -1"),
        ({"center_rewards_coefficient": -1}, "center_rewards_coefficient: got -1"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size: got 2, but ranks that share sequences"),
    ],
)
def test_impossible_settings_are_refused(values, problem):
    with pytest.raises((ValueError, FieldError), match=problem):
        RewardTrainer(**values)


def _dropout(folder):
    factory = tiny_factory(hf_config_kwargs={"attention_dropout": 0.5})
    lines = [history(folder, {"micro_batch_size": 4, "model": model})[0][1] for model in (factory, None)]
    return [line["loss"] for line in lines]


def test_dropout_is_off(tmp_path):
    noisy, exact = run_ranks(1, _dropout, tmp_path)[0]
    assert noisy == exact


ANSWERS = [
    {
        "prompt": f"What is {n} plus {n}?",
        "chosen": f"{n} plus {n} is {2 * n}." + " Sure." * (n % 4),
        "rejected": "I do not know." * (1 + n % 3),
    }
    for n in range(48)
]
RUN = (
    f"trainer=reward {SMALLEST} data.sources.preference.path=pairs.jsonl +source@data.eval_sources.held=json "
    "data.eval_sources.held.path=held.jsonl tracking=[] trainer.epochs=2 trainer.micro_batch_size=2 name=r log.interval=3"
)

HF = (
    "model=hf tokenizer=bundled model.dtype=fp32 data.max_length=256 data.num_proc=1 optimizer.lr=1e-3 log.report=false"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return two folders with pairs: one where a run ended at once, one where it was stopped between two log lines."""
    made = [tmp_path_factory.mktemp(name) for name in ("whole", "parts")]
    for folder in made:
        for name, rows in (("pairs", ANSWERS[:40]), ("held", ANSWERS[40:])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(RUN, made[0])
    run(f"{RUN} trainer.exit_iteration_this_run=4", made[1], code=75)
    run(RUN, made[1])
    return made


def lines(folder, name="r"):
    """Return the directory of the only run of that name, and the figures in its lines."""
    [path] = folder.glob(f"outputs/{name}/*/metrics.jsonl")
    kept = ("step", "loss", "grad_norm", *FIGURES)
    return path.parent, [{k: v for k, v in row.items() if k.split("/")[-1] in kept} for row in read_metrics(path)]


def test_a_run_resumes_bit_for_bit_between_two_log_lines_and_is_evaluated_again(folders):
    (done, whole), (again, parts) = map(lines, folders)
    assert parts == whole and [row["step"] for row in whole] == [0, 3, 6, 6]
    assert {"min_reward", "max_reward", "accuracy"} < whole[1].keys()
    exports = [path / "export" / "model.safetensors" for path in (done, again)]
    assert exports[0].read_bytes() == exports[1].read_bytes()
    evaluated = run(f"{RUN} task=evaluate", folders[0]).stdout
    last = whole[-1]
    assert last["eval/accuracy"] == 1.0 and last["eval/margin"] > 0.1
    assert f"100.0% of pairs ranked right, margin {last['eval/margin']:.4g}" in evaluated


def scores_of(model, export, path):
    """Return the scores of whole conversations, one at a time, as a user of the export computes them."""
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(export), []
    for row in map(json.loads, path.read_text().splitlines()):
        for side in ("chosen", "rejected"):
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            inputs = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                found.append(float(model.eval()(**inputs).logits))
    return torch.tensor(found).reshape(-1, 2)


def check_scores(scores_P2, row):
    chosen, rejected = scores_P2.double().T
    figures = ((chosen > rejected).double(), chosen - rejected, scores_P2.min(), scores_P2.double(), scores_P2.max())
    for name, value in zip(FIGURES, figures, strict=True):
        assert row[f"eval/{name}"] == pytest.approx(float(value.mean()), abs=1e-5), name


def test_the_export_gives_the_scores_of_the_evaluation_and_is_a_start(folders):
    from transformers import AutoModelForSequenceClassification

    (folder, rows), held = lines(folders[0]), folders[0] / "held.jsonl"
    export = folder / "export"
    config = json.loads((export / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and len(config["id2label"]) == 1
    assert config["pad_token_id"] == 0
    check_scores(scores_of(AutoModelForSequenceClassification.from_pretrained(export), export, held), rows[-1])
    run(f"{RUN} task=export", folders[0])
    again = AutoModelForSequenceClassification.from_pretrained(folder / "export-step-00000006")
    check_scores(scores_of(again, export, held), rows[-1])
    run(f"{RUN} name=next init_from={export} trainer.train_iters=1 checkpoint=[]", folders[0])
    assert lines(folders[0], "next")[1][0]["eval/margin"] == pytest.approx(rows[-1]["eval/margin"], rel=1e-6)


def test_an_adapter_over_a_causal_model_is_exported_with_its_head_and_is_a_start_on_two_ranks(folders):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

    causal, held = folders[1] / "causal", folders[1] / "held.jsonl"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, tie_word_embeddings=False, **sizes)).save_pretrained(causal)
    given = f"{RUN} peft=lora trainer.epochs=1 trainer.micro_batch_size=4 checkpoint=[hf]"
    stored = given.replace(SMALLEST, f"{HF} model.name_or_path={causal}")
    run(f"{given} name=lora init_from={causal}", folders[1])
    stored += f" init_from={lines(folders[1], 'lora')[0]}/export deepspeed=zero3 ranks=2 data.packing=false"
    run(f"{stored} name=more trainer.micro_batch_size=1", folders[1])  # several steps, after which ZeRO-3 fetches ahead
    (first, before), (second, after) = (lines(folders[1], name) for name in ("lora", "more"))
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(first / "export", num_labels=1)
    merged = AutoModelForSequenceClassification.from_pretrained(second / "export")
    for model, folder, rows in ((adapter, first, before), (merged, second, after)):
        check_scores(scores_of(model, folder / "export", held), rows[-1])
    assert after[0]["eval/margin"] == pytest.approx(before[-1]["eval/margin"], rel=1e-5)


def test_callbacks_that_generate_and_keys_of_token_losses_are_refused(tmp_path):
    given = "trainer=reward data.sources.preference.path=pairs.jsonl"
    wrong = run(f"{given} data.train_eval_split=[0.5,0.5] callback=[samples]", tmp_path, code=2).stderr
    assert "callback.samples: generates text, but trainer=reward trains a model that gives scores instead" in wrong
    assert "trainer.head_loss: there is no such key" in run(f"{given} trainer.head_loss=full", tmp_path, code=2).stderr


def test_the_recipe_runs_on_the_tiny_model(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ANSWERS))
    run(
        f"experiment=reward model=tiny tokenizer=bundled data=preference {SMALLEST} "
        "data.sources.preference.path=pairs.jsonl data.train_eval_split=[0.8,0.2] tracking=[] log.interval=1 "
        "trainer.micro_batch_size=1 trainer.gradient_accumulation_steps=1 checkpoint.deepspeed.save_every_n_steps=0",
        tmp_path,
    )
    rows = lines(tmp_path, "reward")[1]
    assert rows[-1]["eval/margin"] > rows[0]["eval/margin"] and len(rows) >= 4
