"""Whole runs, from the command line to the files, and what survives an interruption."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from arctic_hydra.run_directory import is_own_name
from tests.command import ROOT, SMALL, SMALLEST, losses, metrics, only_run, run, start, wait_for_step

CHAT = ROOT.parent / "shared" / "data" / "chat"
SHORT = f"{SMALL} trainer.train_iters=12 trainer.eval_frequency=6 optimizer.lr=2e-3"


def weights_digest(run_dir):
    return hashlib.sha256((run_dir / "export" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One short run of the embedded default, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(SHORT, folder)
    return folder, done


def test_the_summary_names_the_files_and_the_next_commands(finished):
    folder, done = finished
    run_dir = only_run(folder)
    assert "Traceback" not in done.stderr + done.stdout
    for text in (
        "finished 12 steps; loss",
        "evaluation loss",
        "export",
        "checkpoints",
        "metrics.jsonl",
        "next:",
        "step 12/12",
    ):
        assert text in done.stdout
    assert f"outputs/default/{run_dir.name}/export" in done.stdout


def test_every_name_in_the_run_directory_is_reserved(finished):
    folder, _ = finished
    names = {path.name for path in only_run(folder).iterdir() if not path.name.startswith(".")} - {"export"}
    assert {"checkpoints", "metrics.jsonl"} < names
    assert [name for name in sorted(names) if not is_own_name(name)] == []


def test_loss_falls_and_metrics_are_complete(finished):
    run_dir = only_run(finished[0])
    rows = metrics(run_dir)
    fallen = losses(run_dir)
    assert fallen[-1] < fallen[0] - 0.3
    steps = [row for row in rows if "loss" in row]
    expected = (
        "step epoch loss lr grad_norm step_seconds tokens supervised_tokens padding_tokens tokens_per_second "
        "supervised_tokens_per_second tflops mfu memory_gib skipped_steps"
    )
    assert all(set(row) == set(expected.split()) for row in steps)
    warmup, end = 2, 12 + 1  # 10% of 12 steps, rounded up; the cosine would be 0 at step 13
    last = 2e-3 * 0.5 * (1 + math.cos(math.pi * (12 - warmup) / (end - warmup)))
    assert steps[-1]["lr"] == pytest.approx(last)
    assert all(a["tokens"] < b["tokens"] for a, b in itertools.pairwise(steps))
    evaluations = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in evaluations] == [0, 6, 12]
    assert evaluations[-1]["eval/loss"] < evaluations[0]["eval/loss"] - 0.3


def test_export_loads_in_transformers_and_answers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = only_run(finished[0]) / "export"
    model = AutoModelForCausalLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**chat, max_new_tokens=4).shape[1] > chat["input_ids"].shape[1]


def test_record_says_what_was_run(finished):
    run_dir = only_run(finished[0])
    record = json.loads((run_dir / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["config_hash"] == run_dir.name
    assert "trainer.train_iters=12" in record["overrides"]
    assert {"torch", "deepspeed", "transformers"} <= set(record["versions"])
    [manifest, *_] = (json.loads(path.read_text()) for path in run_dir.glob("checkpoints/step-*/manifest.json"))
    assert manifest["identity"]["versions"] == record["versions"]
    assert record["result"]["objective"] == pytest.approx(metrics(run_dir)[-1]["eval/loss"])
    assert record["result"]["data_fingerprint"]
    assert (run_dir / "config.yaml").read_text().count("train_iters: 12") == 1
    assert (run_dir / "logs" / "rank0.log").exists()


def test_mlflow_holds_parameters_metrics_and_config(finished):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished[0]}/outputs/mlflow.db")
    experiments = [item.experiment_id for item in client.search_experiments()]
    [tracked] = client.search_runs(experiments)
    assert tracked.data.params["trainer.train_iters"] == "12"
    assert tracked.info.status == "FINISHED"
    history = client.get_metric_history(tracked.info.run_id, "loss")
    assert [round(item.value, 6) for item in sorted(history, key=lambda item: item.step)] == [
        round(value, 6) for value in losses(only_run(finished[0]))
    ]
    assert "config.yaml" in [item.path for item in client.list_artifacts(tracked.info.run_id)]


def test_the_same_command_again_says_finished(finished):
    folder, _ = finished
    before = weights_digest(only_run(folder))
    done = run(SHORT, folder)
    assert "finished already" in done.stdout
    assert "and a larger trainer.train_iters to train longer, or fresh=true to start over" in done.stdout
    assert weights_digest(only_run(folder)) == before


def test_a_finished_run_is_replayed_to_a_store_that_has_not_seen_it(finished):
    import mlflow

    uri = f"sqlite:///{finished[0]}/late.db"
    done = run(f"{SHORT} tracking.mlflow.uri={uri}", finished[0])
    assert "finished already" in done.stdout and "warning" not in done.stderr.lower()
    client = mlflow.MlflowClient(uri)
    [tracked] = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert tracked.info.status == "FINISHED"
    history = client.get_metric_history(tracked.info.run_id, "loss")
    assert sorted(item.step for item in history) == list(range(1, 13))


def test_fresh_starts_over_and_is_bit_identical(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    before = weights_digest(only_run(tmp_path / "copy"))
    done = run(f"{SHORT} fresh=true", tmp_path / "copy", fresh=True)  # an interpreter with a hash seed of its own
    assert "step 1/12" in done.stdout
    assert weights_digest(only_run(tmp_path / "copy")) == before


def test_sigterm_mid_epoch_then_the_same_command_is_bit_identical(tmp_path):
    arguments = f"{SMALL} trainer.train_iters=30 checkpoint.deepspeed.save_every_n_steps=0 tracking=[]"
    run(arguments, tmp_path / mkdir(tmp_path, "straight"))
    stopped = tmp_path / mkdir(tmp_path, "stopped")
    process = start(arguments, stopped)
    wait_for_step(stopped, 4, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "received SIGTERM" in output
    assert "the same command resumes" in output
    assert json.loads((only_run(stopped) / "record.json").read_text())["status"] == "stopped"
    done = run(arguments, stopped)
    assert "resumed  from step-" in done.stdout
    assert losses(only_run(stopped)) == losses(only_run(tmp_path / "straight"))
    assert weights_digest(only_run(stopped)) == weights_digest(only_run(tmp_path / "straight"))


def mkdir(parent, name):
    (parent / name).mkdir()
    return name


def test_three_kills_resume_bit_identically_with_two_ranks_accumulation_and_dropout(tmp_path):
    """SIGKILL at random instants; the same command each time; the end is bit-identical to the uninterrupted run."""
    arguments = (
        f"{SMALL} ranks=2 trainer.gradient_accumulation_steps=3 trainer.epochs=2 data.sources.chat.sample_count=100 "
        "model.hf_config_kwargs={attention_dropout:0.1} deepspeed=zero2 checkpoint.deepspeed.save_every_n_steps=1 "
        "checkpoint.deepspeed.keep_last=2 trainer.eval_at_start=false tracking=[]"
    )
    run(arguments, tmp_path / mkdir(tmp_path, "straight"))
    straight = only_run(tmp_path / "straight")
    total = len(losses(straight))
    killed = tmp_path / mkdir(tmp_path, "killed")
    draw = random.Random(int(time.time()))
    for _ in range(3):
        process = start(arguments, killed)
        wait_for_step(killed, draw.randint(1, max(2, total - 2)), process)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        time.sleep(1.0)  # the ranks die with their parent; the lock is theirs until then
    run(arguments, killed)
    assert losses(only_run(killed)) == losses(straight)
    assert weights_digest(only_run(killed)) == weights_digest(straight)
    last = metrics(straight)[-1]
    assert metrics(only_run(killed))[-1].get("eval/loss") == last.get("eval/loss")


def test_sweep_over_zero_stages_agrees_to_1e_5(tmp_path):
    """Four jobs of one sweep on the real chats, in processes and directories of their own: the first losses agree."""
    data = f"data=ultrachat data.sources.ultrachat.path={CHAT}" if CHAT.is_dir() else "data=chat"
    quick = "trainer.train_iters=5 trainer.eval_at_start=false trainer.eval_at_end=false tracking=[] checkpoint=[]"
    done = run(f"-m {SMALLEST} {data} {quick} deepspeed=zero0,zero1,zero2,zero3", tmp_path)
    runs = sorted((tmp_path / "outputs" / "default").glob("*/metrics.jsonl"))
    table = [losses(path.parent) for path in runs]
    assert len(table) == 4
    for other in table[1:]:
        assert other == pytest.approx(table[0], abs=1e-5)
    assert done.stdout.count("  finished ") == 4


def test_a_liger_model_from_a_local_directory_on_data_in_ultrachat_layout(finished, tmp_path):
    """The real command, offline: a model directory, its tokenizer, and train_sft/test_sft files."""
    export = only_run(finished[0]) / "export"
    data = tmp_path / "ultrachat"
    data.mkdir()
    for name in ("train_sft.jsonl", "test_sft.jsonl"):
        rows = (ROOT / "arctic_hydra" / "assets" / "chat" / name).read_text().splitlines()[:60]
        (data / name).write_text("\n".join(rows) + "\n")
    arguments = (
        f"model=liger data=ultrachat model.name_or_path={export} data.sources.ultrachat.path={data} model.dtype=fp32 "
        "trainer.train_iters=2 tracking=[]"
    )
    refused = run(arguments, tmp_path, code=2)
    assert "the kernels of model=liger need a CUDA GPU" in refused.stderr
    assert not (tmp_path / "outputs").exists()
    done = run(f"{arguments} model.fallback=true", tmp_path)
    assert done.stderr.count("runs on torch's kernels instead of Liger's") == 1
    evaluations = [row["eval/loss"] for row in metrics(only_run(tmp_path)) if "eval/loss" in row]
    assert evaluations[0] == pytest.approx(evaluations[-1], rel=0.2)
    exported = load_file(only_run(tmp_path) / "export" / "model.safetensors")
    assert exported.keys() == load_file(export / "model.safetensors").keys()


def test_a_local_model_partitioned_over_two_ranks_in_bf16(finished, tmp_path):
    """ZeRO-3 reads the weights into shards; activations are recomputed; the export is whole and bf16."""
    export = only_run(finished[0]) / "export"
    run(
        f"model=hf model.name_or_path={export} model.dtype=bf16 deepspeed=zero3 ranks=2 trainer.micro_batch_size=2 "
        "data.max_length=256 data.eval_sources.chat.sample_count=20 trainer.train_iters=2 tracking=[]",
        tmp_path,
    )
    before = [row["eval/loss"] for row in metrics(only_run(finished[0])) if "eval/loss" in row][-1]
    evaluations = [row["eval/loss"] for row in metrics(only_run(tmp_path)) if "eval/loss" in row]
    assert evaluations[0] == pytest.approx(before, abs=0.02)
    theirs, ours = (load_file(path / "model.safetensors") for path in (export, only_run(tmp_path) / "export"))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert {str(value.dtype) for value in ours.values()} == {"torch.bfloat16"}


PAIRS = [{"prompt": f"What is {n} + 1?", "chosen": f"It is {n + 1}.", "rejected": f"It is {n}."} for n in range(8)]
FRESH = {
    "dpo": "trainer=dpo data.sources.preference.path=pairs.jsonl",
    "kto": "trainer=kto data.sources.unpaired.path=pairs.jsonl",
    "reward": "trainer=reward data.sources.preference.path=pairs.jsonl",
    "distill": "trainer=distill trainer.teacher=adapter_off trainer.ce_share=0.5 peft=lora",
    "causal": "data=text data.sources.text.path=pairs.jsonl data.column=prompt",
}


@pytest.mark.parametrize(
    "arguments", [pytest.param(text, marks=[] if name == "dpo" else pytest.mark.long) for name, text in FRESH.items()]
)
def test_every_kind_of_trainer_imports_what_it_needs(arguments, tmp_path):
    """Other tests fork a process that has imported every module, where a missing import goes unnoticed."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    done = run(f"{arguments} {SMALLEST} data/eval_sources=[] trainer.train_iters=2", tmp_path, fresh=True)
    assert "export verified" in done.stdout
