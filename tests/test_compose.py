# ruff: noqa: E501 (tables of command lines and messages)
"""Composition, its checks and its errors, through the real command line, in process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Union

import pytest
from omegaconf import OmegaConf

from arctic_hydra import config, cross_checks
from arctic_hydra.__main__ import main
from arctic_hydra.cli import compose, search_path
from arctic_hydra.cli.help import groups
from arctic_hydra.cli.overrides import normalize, sweep_jobs
from arctic_hydra.component import flatten, registered, to_plain
from arctic_hydra.errors import ConfigError
from arctic_hydra.model.hf import HFModelFactory
from arctic_hydra.model.liger import LigerModelFactory
from arctic_hydra.model.random import RandomModelFactory
from arctic_hydra.model.tiny import TinyModelFactory
from arctic_hydra.trainer.sft import SFTTrainer
from tests.command import run

GOLDEN = Path(__file__).parent / "golden" / "config_keys.txt"
SEVERAL = ("checkpoint", "tracking", "callback", "converter")


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def composed(*overrides):
    prepared = [normalize(item) for item in overrides]
    return to_plain(compose.without_hydra(compose.compose_config(prepared, "config")))


def built(*overrides):
    return config.build(composed(*overrides))


def test_golden_keys():
    """Every key of the default composition; a new or lost key must be a visible change of this file."""
    keys = sorted(flatten(composed()))
    assert keys == GOLDEN.read_text().split(), f"if this change is meant, write the keys to {GOLDEN}"


OPTIONS = [
    (group, option)
    for group, options in groups().items()
    if group not in ("source", "experiment") and "/" not in group
    for option in options
]


REQUIRING = (("data", "json"), ("data", "text"), ("data", "preference"))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_composes_and_builds(group, option):
    """Every file in conf/ gives a run that builds; what a file requires from the user is given here."""
    required = [f"data.sources.{option}.path=data.jsonl"] if (group, option) in REQUIRING else []
    required += ["data/sources=[chat]"] if (group, option) == ("data", "mix") else []
    required += ["data.sources.text.path=data.txt"] if (group, option) == ("trainer", "causal") else []
    required += ["model=hf"] if option.startswith("long") else []  # longer than the tiny model's positions
    required += ["model.architecture=qwen3"] if (group, option) == ("model", "random") else []
    required += ["trainer=causal"] if (group, option) == ("data", "text") else []
    required += {
        ("data", "preference"): ["task=preview"],  # no trainer of this package works with it
        ("converter", "freeze"): ["converter.freeze.patterns=[embed]"],
        ("peft", "any"): ["peft.peft_type=IA3"],
        ("peft", "qlora"): ["model=hf"],
    }.get((group, option), [])
    chosen = f"{group}=[{option}]" if group in SEVERAL else f"{group}={option}"
    run = built(chosen, *required)
    assert config.run_id(run) == config.run_id(built(chosen, *required))


@pytest.mark.parametrize("option", [*groups()["source"]])
def test_every_source_composes(option):
    required = ["data.sources.mine.path=x.jsonl"] if option != "bundled" else []
    run = built(f"+source@data.sources.mine={option}", *required)
    assert set(run.data.sources) == {"chat", "mine"}


@pytest.mark.parametrize("option", groups()["data/sources"])
def test_every_named_set_is_a_source(option):
    required = [f"data.sources.{option}.path=x.jsonl"] if option in ("json", "text") else []
    run = built("data=mix", f"data/sources=[{option}]", *required)
    assert list(run.data.sources) == [option] and not run.data.eval_sources


@pytest.mark.parametrize("option", groups()["data/sources"])
def test_every_named_set_is_evaluated_on(option):
    """On its own, and beside the training source of its name, whose place it shares where that has one on the hub."""
    more = {
        "chat": [], "ultrachat": [], "json": ["data.eval_sources.json.path=e.jsonl"], "text": ["data.eval_sources.text.path=e.txt"],
    }.get(option, [f"data.eval_sources.{option}.split=train[:1%]"])  # fmt: skip
    alone = built(f"data/eval_sources=[{option}]", *more).data.eval_sources
    assert list(alone) == [option]
    path = f"data.sources.{option}.path=/mine"
    both = built(
        "data=mix", f"data/sources=[{option}]", f"data/eval_sources=[{option}]", *more, *([path] * (option != "chat"))
    ).data
    trained, evaluated = vars(both.sources[option]), vars(both.eval_sources[option])
    if option in ("json", "text"):
        assert evaluated["path"] != "/mine"
    elif option != "chat":
        assert alone[option].path == built(f"data={option}", "model=hf").data.sources[option].path
        same = ("path", "role_mapping", "format", "kwargs", "content_key")
        assert {name: evaluated[name] for name in same} == {name: trained[name] for name in same}


def test_sources_and_eval_sources_offer_the_same():
    assert groups()["data/sources"] == groups()["data/eval_sources"]


def test_several_sets_at_once():
    run = built(
        "data/sources=[ultrachat,metamath]", "data/eval_sources=[ultrachat]", "data.sources.ultrachat.path=/mine",
        "data.sources.ultrachat.weight=2", "data.sources.metamath.weight=50%",
    )  # fmt: skip
    assert {name: source.weight for name, source in run.data.sources.items()} == {"ultrachat": 2.0, "metamath": 0.5}
    assert run.data.eval_sources["ultrachat"].path == "/mine"


@pytest.mark.parametrize("recipe", groups().get("experiment", []))
def test_every_experiment_composes(recipe):
    built(f"experiment={recipe}")


def test_every_registered_component_has_an_option():
    """A class that no file in conf/ reaches is dead."""
    reached = {schema for path in Path(search_path.conf_dir()).rglob("*.yaml") for schema in _schemas(path)}
    assert {f"/schema/{group}/{name}" for group, name in registered()} <= reached


def _schemas(path):
    defaults = OmegaConf.load(path).get("defaults", [])
    return [entry.split("@")[0] for entry in defaults if isinstance(entry, str) and entry.startswith("/schema/")]


def test_order_of_checkpoint_engines_is_kept():
    assert list(built("checkpoint=[hf,deepspeed]").checkpoint) == ["hf", "deepspeed"]
    assert built("checkpoint=[]").checkpoint == {}


def test_a_model_names_its_exports(capsys):
    assert built("model.save_name=mine").checkpoint["hf"].save_name == "mine"
    assert config.run_id(built("model.save_name=mine")) == config.run_id(built())
    assert main(["model.save_name=a/b"]) == 2
    assert "model.save_name: got 'a/b', expected a plain directory name" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["model.save_name", "checkpoint.hf.save_name"])
@pytest.mark.parametrize("name", ["checkpoints", "logs", "metrics.jsonl", "Checkpoints", "task-evaluate"])
def test_an_export_cannot_replace_what_the_run_keeps_in_its_directory(key, name, capsys) -> None:
    assert main([f"{key}={name}", "--cfg", "job"]) == 2
    assert f"{key}: got {name!r}, which the run directory itself uses; expected another name" in capsys.readouterr().err


def test_cpu_adam_on_a_gpu_wants_offloading(monkeypatch):
    monkeypatch.setattr(cross_checks, "count_gpus", lambda: 1)
    problems = built("optimizer=cpu_adam").environment_problems()
    assert any(
        line.startswith("optimizer: got cpu_adam, which steps on the CPU, but the parameters") for line in problems
    )
    offloaded = built("optimizer=cpu_adam", "deepspeed=zero2_offload").environment_problems()
    assert not any("cpu_adam, which steps" in line for line in offloaded)


def test_a_hub_model_brings_its_tokenizer():
    run = built("model=liger", "data=ultrachat")
    assert run.tokenizer.name_or_path == run.model.name_or_path == "Qwen/Qwen3-0.6B"
    assert run.data.sources["ultrachat"].path == "HuggingFaceH4/ultrachat_200k"
    assert run.data.sources["ultrachat"].split_mapping == {"train": "train_sft", "eval": "test_sft"}
    assert type(built("model=hf", "tokenizer=bundled").tokenizer).__name__ == "BundledTokenizerFactory"


SPLITS = (
    "train[:10%]",
    "train[100:200]",
    "[100:200]",
    "[:50%]",
    "[-50:]",
    "train[33%:67%]",
    "train",
    "'[:50%]'",
    '"[:5]"',
)


@pytest.mark.parametrize(
    ("tokenizer", "name", "revision"),
    [
        ("", "a/b", "v2"),
        ("tokenizer.revision=v3", "a/b", "v3"),
        ("tokenizer.name_or_path=c/d", "c/d", None),
    ],
)
def test_the_models_revision_is_its_tokenizers(tokenizer, name, revision):
    run = config.build(composed("model=hf", "model.name_or_path=a/b", "model.revision=v2", *tokenizer.split()))
    assert (run.tokenizer.name_or_path, run.tokenizer.revision) == (name, revision)


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("optimizer.lr=2^-10", "optimizer.lr", 2**-10),
        ("data.max_length=0.5Ki", "data.max_length", 512),
        ("optimizer.weight_decay=1%", "optimizer.weight_decay", 0.01),
        ("trainer.train_iters=1_000", "trainer.train_iters", 1000),
        ("optimizer.betas=[0.9,0.95]", "optimizer.betas", [0.9, 0.95]),
        ("deepspeed.config={zero_optimization:{reduce_bucket_size:2^20}}", "deepspeed.config.zero_optimization", {"reduce_bucket_size": 2**20}),
        ("deepspeed.config.gradient_clipping=50%", "deepspeed.config", {"gradient_clipping": 0.5}),
        ("trainer.eval_interval=7", "trainer.eval_frequency", 7),
        ("data.cache=off", "data.cache", False),
        *((f"data.sources.chat.split={split}", "data.sources.chat.split", split.strip("'\"")) for split in SPLITS),
        ("++data.eval_sources.chat.split=test_sft[:50%]", "data.eval_sources.chat.split", "test_sft[:50%]"),
    ],
)  # fmt: skip
def test_human_values_on_the_command_line(argument, key, value):
    node = built(argument)
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    assert node == value


@pytest.mark.parametrize(
    "values",
    [["train[:10%]", "train[-10%:]"], ["[:100]", "[100:]"]],
)
def test_slices_can_be_swept_over(values):
    key = "data.sources.chat.split"
    for text in (",".join(values), f"choice({','.join(values)})", ",".join(f"'{value}'" for value in values)):
        jobs = sweep_jobs([normalize(f"{key}={text}"), "seed=1,2"])
        assert len(jobs) == 4
        found = [composed(*job)["data"]["sources"]["chat"]["split"] for job in jobs]
        assert found == [value for value in values for _ in range(2)]


BAD = [
    ("optimizer.lrr=1", "optimizer.lrr: there is no such key; did you mean optimizer.lr?"),
    ("modle=hf", "modle: there is no such key; did you mean model?"),
    ("model=ligr", "model: got 'ligr', expected one of hf, liger, random, tiny; did you mean liger?"),
    ("trainer.epochs=two", "trainer.epochs: got 'two', expected a number such as"),
    ("trainer.epochs=-1", "trainer.epochs: got -1, expected 0 or more"),
    ("trainer.epochs=0", "trainer.epochs: got 0 while train_iters is 0"),
    ("trainer.micro_batch_size=0", "trainer.micro_batch_size: got 0, expected 1 or more"),
    ("trainer.gradient_accumulation_steps=1.5", "trainer.gradient_accumulation_steps: got 1.5, expected a whole number"),
    ("data.max_length=0", "data.max_length: got 0, expected"),
    ("optimizer.lr=-1e-4", "optimizer.lr: got -0.0001, expected 0 or more"),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas: got [0.9, 1.5], expected two numbers in [0, 1)"),
    ("scheduler.warmup_ratio=120%", "scheduler.warmup_ratio: got '120%', expected 1 or less"),
    ("seed=abc", "seed: Value 'abc' of type 'str' could not be converted to Integer"),
    ("seed=-1", "seed: got -1, expected 0 or more"),
    ("task=trian", "task: Invalid value 'trian', expected one of [train, check, evaluate, export, preview, report]"),
    ("ranks=0", "ranks: got '0', expected auto or a positive number"),
    ("name=../x", "name: got '../x', expected letters"),
    ("model.dtype=int8", "model.dtype: got 'int8', expected one of bf16, fp16, fp32"),
    ("model.dtype=fp16", "model.dtype: got fp16, which DeepSpeed runs on CUDA only"),
    ("model.attn_implementation=flash", "model.attn_implementation: got 'flash', expected one of arctic_varlen"),
    ("model.num_attention_heads=7", "model.hidden_size: got 256, expected a multiple of num_attention_heads=7"),
    ("data.max_length=8Ki", "data.max_length: got 8192, but model.max_position_embeddings=4096"),
    ("scheduler.warmup_steps=30 trainer.train_iters=20", "scheduler.warmup_steps: got 30, but the run has 20 optimizer steps at most"),
    ("deepspeed.config={gradient_cliping:1}", "deepspeed.config.gradient_cliping: DeepSpeed has no such key; did you mean 'gradient_clipping'?"),
    ("deepspeed.config={train_batch_size:7}", "deepspeed.config.train_batch_size: got 7, but micro_batch_size"),
    ("deepspeed.config={train_micro_batch_size_per_gpu:3}", "deepspeed.config.train_micro_batch_size_per_gpu: got 3, but trainer.micro_batch_size="),
    ("deepspeed.config={gradient_accumulation_steps:3}", "deepspeed.config.gradient_accumulation_steps: got 3, but trainer.gradient"),
    ("deepspeed.config={zero_optimization:{stage:3}}", "deepspeed.config.zero_optimization.stage: got 3, but the chosen option has stage 0; pass deepspeed=zero3"),
    ("deepspeed.config={bf16:{enabled:true}}", "deepspeed.config.bf16.enabled: got True, but model.dtype=fp32"),
    ("deepspeed.config={optimizer:{type:Adam}}", "deepspeed.config.optimizer: is set by the config group optimizer; remove it here"),
    ("checkpoint.hff.x=2", "checkpoint.hff.x: checkpoint.hff is not among the chosen options (deepspeed, hf)"),
    ("checkpoint.hf.auto_resume=true", "checkpoint: deepspeed and hf both have auto_resume; only one engine may"),
    ("checkpoint.hf.save_every_n_steps=-1", "checkpoint.hf.save_every_n_steps: got -1, expected 0 or more"),
    ("log.level=LOUD", "log.level: got 'LOUD', expected DEBUG, INFO, WARNING or ERROR"),
    ("optimizer._target_=os.system", "optimizer._target_: got 'os.system', which is not allowed"),
    ("optimizer._target_=torch.load", "optimizer._target_: got 'torch.load', which is not allowed"),
    ("optimizer._target_=${name}", "optimizer._target_: got '${name}', which is not allowed"),
    ("optimizer._target_=arctic_hydra.run_directory.os.system", "optimizer._target_: got 'arctic_hydra.run_directory.os.system', which is not allowed"),
    ("+hydra.callbacks.a._target_=os.system", "hydra.callbacks.a._target_: got 'os.system', which is not allowed"),
    ("hydra.run.dir=x", "hydra.run.dir: has no effect on a single run; pass -m for a sweep"),
    ("--config-path=/tmp", "--config-path: has no effect here"),
    ("hydra.launcher._target_=os.system", "hydra.launcher._target_: got 'os.system', which is not allowed"),
    ("data=mix", "data.sources: got none, expected at least one; choose sets with data/sources=[<name>,...]"),
    ("data/sources=[metamth]", "data/sources: got 'metamth', expected one of"),
    ("data.sources=[ultrachat,openorca]", "data.sources: got a list, expected named entries; choose sets with data/sources=[ultrachat,openorca]"),
    ("data/eval_sources=[metamath]", "data.eval_sources.metamath.split: got none, but this set has no split to evaluate on; expected a part of its training split; pass train[:1%], and data.sources.metamath.split=train[1%:]"),
    ("data=json", "data.sources.json.path: required, but not set; pass data.sources.json.path=<value>"),
    *(
        (f"data.sources.chat.split={split}", f"data.sources.chat.split: got {split!r}, expected a name and a slice such as train[:10%], train[100:200] or [-50:]")
        for split in ("train[50%]", "[5]", "train[:50%", "train[a:b]", "[1:2,5:6]", "[:1]+[2:]", "train[:]]")
    ),
    ("+foo=1", "foo: there is no such key"),
    ("experiment=sft", "experiment: got 'sft', expected one of sft_ultrachat"),
    ("model=3", "model: got 3, expected one of hf, liger, random, tiny"),
    ("tracking=null", "tracking: got None, expected one of mlflow, none, or [] where it is a list"),
    ("checkpoint=[deepspeed,hff]", "checkpoint: got 'hff', expected one of deepspeed, hf; did you mean hf?"),
    ("callback=[early_stopping]", "callback: got 'early_stopping', but this group has no options of its own yet"),
    ("optimizer.lr=1,2", "optimizer.lr: got '1,2'; pass -m for a sweep over these values, or optimizer.lr=[1,2] for a list"),
    ("tracking.wandb.x=1", "tracking.wandb.x: tracking.wandb is not among the chosen options (mlflow), and there is no such option"),
    ("optimizer=linear", "optimizer: got 'linear', expected one of adamw, cpu_adam, fused_adam, muon"),
    ("optimizer=muon model.dtype=bf16", "optimizer: got muon, but with model.dtype=bf16 DeepSpeed flattens the matrices at ZeRO-0"),
    ("optimizer=muon deepspeed=zero1", "optimizer: got muon, but deepspeed.gradient_clipping=1 clips the orthogonalized updates"),
    ("optimizer=muon deepspeed=zero1 deepspeed.gradient_clipping=0 optimizer.nesterov=false", "optimizer.nesterov: got false, but DeepSpeed's Muon"),
    ("optimizer=muon deepspeed=zero2 deepspeed.gradient_clipping=0 optimizer.ns_steps=4", "optimizer.ns_steps: got 4, but DeepSpeed's Muon"),
    ("trainer.label_smoothing=2", "trainer.label_smoothing: got 2, expected 1 or less"),
    ("trainer.head_loss=fused", "trainer.head_loss: Invalid value 'fused', expected one of [auto, liger, chunked, full]"),
    ("trainer.head_loss=liger", "trainer.head_loss: got liger, but its kernel needs a CUDA GPU and this machine has none"),
    ("model.attn_implementation=flash_attention_2", "model.attn_implementation: got flash_attention_2, which trains on CUDA only"),
    ("model=random", "model.architecture: got neither of name_or_path and architecture; pass model.name_or_path="),
    ("optimizer.lr=", "optimizer.lr: got '', expected a number"),
    ("optimizer", "Error parsing override 'optimizer': not a valid override; expected key=value"),
    ("--modle=hf", "--modle=hf: there is no such option"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "text"), BAD, ids=[argument for argument, _ in BAD])
def test_bad_config_is_refused_in_words(argument, text, capsys, tmp_path):
    assert main(argument.split(" ")) == 2
    error = capsys.readouterr().err
    assert f"error: {text}" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


TOGETHER = [
    ("ranks=3 trainer.sequence_parallel_size=2", "trainer.sequence_parallel_size: got 2, but there are 3 ranks; expected a divisor of 3, or set ranks"),
    ("ranks=2 trainer.sequence_parallel_size=2 model.attn_implementation=sdpa", "trainer.sequence_parallel_size: got 2, but model.attn_implementation=sdpa attends to one rank's tokens only; pass model.attn_implementation=arctic_varlen"),
    ("model.activation_checkpoint_every_n_layers=2", "model.activation_checkpoint_every_n_layers: got 2, which has no effect beside disable_activation_checkpoint=true"),
    ("model.activation_checkpoint_every_n_layers=0", "model.activation_checkpoint_every_n_layers: got 0, expected 1 or more"),
    ("trainer.activation_checkpoint_cpu_offload=true", "trainer.activation_checkpoint_cpu_offload: got true, but model.disable_activation_checkpoint=true leaves no checkpointed activations"),
    ("trainer.tiled_mlp_compute=true converter=[tiled_mlp]", "trainer.tiled_mlp_compute: got true beside converter=[tiled_mlp], which is the same; drop one of them"),
    ("converter=[tiled_mlp] converter.tiled_mlp.tiles=1", "converter.tiled_mlp.tiles: got 1, expected 2 or more"),
    ("model.compile=true deepspeed=zero3", "model.compile: got true, but ZeRO-3 gathers weights within layers, which cannot be compiled; pass deepspeed=zero2"),
    ("model.compile=true data.packing=false", "model.compile: got true, but rows of unpacked examples change their shape; pass data.packing=true"),
    ("deepspeed.offload_optimizer=true", "deepspeed.offload_optimizer: got true, but ZeRO-0 cannot offload; expected stage 1, 2 or 3"),
    ("deepspeed=zero2_offload deepspeed.offload_parameters=true", "deepspeed.offload_parameters: got true at stage 2, but only ZeRO-3 can; expected stage 3"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), TOGETHER, ids=[arguments for arguments, _ in TOGETHER])
def test_what_does_not_go_together_is_refused_in_words(arguments, text, capsys):
    assert main(arguments.split()) == 2
    assert f"error: {text}" in capsys.readouterr().err


def test_an_optimizer_that_cannot_step_on_the_cpu_is_not_offloaded(monkeypatch):
    run = built("deepspeed=zero2_offload")
    monkeypatch.setattr(type(run.optimizer), "runs_on_cpu", False)
    with pytest.raises(ConfigError, match="optimizer=adamw cannot step there; pass optimizer=adamw, or an option"):
        run.check()
    free = built("deepspeed=zero2")
    free.deepspeed.config = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(ConfigError, match="got an option that offloads to the CPU, but optimizer=adamw"):
        free.check()


def test_refused_fields_of_several_components_are_reported_together(capsys):
    assert (
        main(["trainer.epochs=-1", "data.max_length=0", "checkpoint.hf.save_every_n_steps=-1", "optimizer.lr=-1"]) == 2
    )
    keys = {line.removeprefix("error: ").partition(":")[0] for line in capsys.readouterr().err.splitlines()}
    assert keys == {"trainer.epochs", "data.max_length", "checkpoint.hf.save_every_n_steps", "optimizer.lr"}


def test_secrets_do_not_reach_files(tmp_path):
    from arctic_hydra.redaction import redact, redact_override

    assert redact_override("a.hf_token=hf_x") == "a.hf_token=***"
    assert redact_override("data.x={token: hf_SECRET, b: 1}") == "data.x={token: ***, b: 1}"
    assert redact_override("tracking.mlflow.uri=http://a:b@host/") == "tracking.mlflow.uri=http://***@host/"
    shown = ["optimizer.lr=1e-3", "tokenizer.add_tokens=[a,b]", "tokenizer={add_special_tokens: [c], revision: v}"]
    assert [redact_override(item) for item in shown] == shown
    assert redact({"hub_tokens": "x", "add_tokens": "y", "key": "z"}) == {
        "hub_tokens": "***",
        "add_tokens": "y",
        "key": "***",
    }
    assert redact({"x": {"api_key": "k", "n": 1}, "u": ["s3://u:p@b"]}) == {
        "x": {"api_key": "***", "n": 1},
        "u": ["s3://***@b"],
    }


def test_all_problems_of_a_check_are_reported_together(capsys):
    assert (
        main(
            [
                "data.max_length=8Ki",
                "deepspeed.config={gradient_cliping:1,train_batch_size:7}",
                "checkpoint.hf.auto_resume=true",
            ]
        )
        == 2
    )
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_nothing_is_imported_for_a_refused_target(tmp_path):
    """The module would leave a file when it is imported; also from an option file, in Hydra's own node, and in lists."""
    (tmp_path / "evil.py").write_text("open('imported', 'w').close()\n")
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "bad.yaml").write_text("defaults: [adamw, _self_]\n_target_: evil.Optimizer\n")
    (tmp_path / "mine" / "logged.yaml").write_text(
        "defaults: [config, _self_]\nhydra: {job_logging: {formatters: {x: {(): evil.f}}, handlers: {h: {class: evil.H}}}}\n"
    )
    for arguments in (
        ["optimizer._target_=evil.f"],
        ["--config-dir", "mine", "--config-name", "logged"],
        ["+hydra.callbacks.a._target_=evil.f"],
        ["--config-dir", "mine", "optimizer=bad"],
        ["-m", "optimizer._target_=evil.f,evil.g"],
        ["deepspeed.config={x:{_target_:evil.f}}"],
    ):
        done = subprocess.run([sys.executable, "-m", "arctic_hydra", *arguments], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert "evil." in done.stderr, done.stderr
        assert not (tmp_path / "imported").exists()


def test_a_whole_config_and_a_launcher_of_an_experiment_are_heeded(tmp_path, capsys):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "whole.yaml").write_text("defaults: [config, _self_]\nseed: 5\n")
    (tmp_path / "mine" / "experiment" / "onslurm.yaml").write_text(
        "# @package _global_\ndefaults: [override /hydra/launcher: slurm]\nhydra: {launcher: {dry_run: true}}\n"
    )
    assert main(["--config-dir", "mine", "--config-name", "whole", "--cfg", "job"]) == 0
    assert "\nseed: 5\n" in capsys.readouterr().out
    assert main(["--config-name", "whole"]) == 2
    assert "--config-name: got 'whole', but neither arctic_hydra nor --config-dir has" in capsys.readouterr().err
    assert main(["--config-dir", "mine", "experiment=onslurm"]) == 0
    assert "#SBATCH --nodes=1" in capsys.readouterr().out and not (tmp_path / "outputs").exists()
    assert main(["--config-dir", "mine", "experiment=onslurm", "task=check"]) == 0
    assert "the configuration is valid" in capsys.readouterr().out
    assert main(["--config-dir", "mine", "experiment=onslurm", "task=check", "hydra.launcher.dry_run=false"]) == 2
    assert "task: got check, which runs on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--help", "trainer"], ["--cfg", "job"], ["optimizer.lrr=1"], ["model=ligr"], ["task=check"]],
)
def test_b13_w24_w27_composing_imports_neither_torch_nor_deepspeed(arguments):
    code = (
        "import sys; from arctic_hydra.__main__ import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'deepspeed', 'transformers', 'numpy', 'mlflow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_flags_and_overrides_come_in_any_order(capfd):
    assert main(["seed=3", "--cfg", "job", "trainer.epochs=2", "--package", "trainer"]) == 0
    assert "epochs: 2" in capfd.readouterr().out
    assert main(["optimizer.lr=1", "-m", "hydra/launcher=local", "seed=1,2", "task=check"]) == 0
    assert capfd.readouterr().out.count("the configuration is valid") == 2
    assert main(["seed=3", "--help", "trainer"]) == 0
    assert "trainer.epochs" in capfd.readouterr().out
    assert main(["--bogus", "seed=3"]) == 2
    assert "error: --bogus: there is no such option" in capfd.readouterr().err


def test_identity_ignores_how_numbers_and_paths_are_written(tmp_path):
    (tmp_path / "data.jsonl").write_text("")
    base = ["data=json", "data.sources.json.path=data.jsonl"]
    absolute = ["data=json", f"data.sources.json.path={tmp_path / 'data.jsonl'}"]

    def identified(arguments):
        tree = config.absolute_paths(composed(*arguments), Path.cwd())
        return config.run_id(config.build(tree))

    same = identified(base)
    assert identified(absolute) == same
    assert identified([*base, "optimizer.lr=5e-4", "data.max_length=0.5Ki"]) == identified(
        [*base, "data.max_length=512"]
    )
    for outside in (
        "log.interval=5", "tracking=[]", "checkpoint=[]", "trainer.exit_iteration=3", "name=other",
        "checkpoint.deepspeed.save_every_n_steps=3", "data.num_proc=1", "data.cache=off", "output_root=elsewhere",
    ):  # fmt: skip
        assert identified([*base, outside]) == same, outside
    for inside in ("optimizer.lr=1e-3", "seed=1", "trainer.epochs=2", "data.max_length=256", "deepspeed=zero1"):
        assert identified([*base, inside]) != same, inside
    spread = identified([*base, "ranks=2"])
    assert spread != same, "twice the global batch"
    assert identified([*base, "trainer.gradient_accumulation_steps=2"]) == spread


def test_w28_typed_slots_refuse_another_family(capsys):
    assert main(["optimizer._target_=arctic_hydra.scheduler.cosine.CosineScheduler"]) == 2
    assert "optimizer" in capsys.readouterr().err


@pytest.mark.parametrize("hint", [HFModelFactory | RandomModelFactory, Union[HFModelFactory, RandomModelFactory]])  # noqa: UP007
def test_w28_hints_of_either_form_take_their_members_and_subclasses(hint):
    mine = type("Mine", (SFTTrainer,), {"__annotations__": {"model": ClassVar[hint]}, "option_name": "mine"})
    run = built("ranks=1")
    run.trainer = mine()
    for model in (HFModelFactory(name_or_path="x"), LigerModelFactory(name_or_path="x")):
        run.model = model
        assert list(cross_checks.compatibility(run)) == []
    run.model = TinyModelFactory()
    [problem] = cross_checks.compatibility(run)
    assert problem == "model: got tiny (TinyModelFactory), but trainer=mine (Mine) works with model=hf, model=random"


def test_w28_a_train_py_in_the_working_directory_does_not_run(tmp_path):
    (tmp_path / "train.py").write_text("raise SystemExit('it ran')\n")
    done = run("--cfg job", tmp_path)
    assert "it ran" not in done.stdout + done.stderr


def test_cfg_job_is_valid_yaml_and_complete(capsys):
    assert main(["--cfg", "job"]) == 0
    tree = OmegaConf.create(capsys.readouterr().out)
    assert sorted(flatten(OmegaConf.to_container(tree))) == GOLDEN.read_text().split()
    assert json.dumps(to_plain(tree)) == json.dumps(composed())


def test_help_names_every_group_and_documents_every_field(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {group} " in page for group in groups())
    for group in groups():
        if group == "experiment":
            continue
        assert main(["--help", group]) == 0
        page = capsys.readouterr().out
        undocumented = [
            line for line in page.splitlines() if line.startswith("  ") and "=" in line and line.rstrip().endswith("=")
        ]
        assert not undocumented


def test_help_of_an_unknown_group(capsys):
    assert main(["--help", "trainr"]) == 2
    assert "there is no such group; did you mean trainer" in capsys.readouterr().err
