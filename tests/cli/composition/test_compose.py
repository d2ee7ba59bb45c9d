# ruff: noqa: E501 (tables of command lines and messages)
"""Composition and the checks of a whole config, through the real command line, in process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from arctic_hydra import config
from arctic_hydra.__main__ import main
from arctic_hydra.cli.composition import search_path
from arctic_hydra.cli.help.inventory import groups
from arctic_hydra.component import flatten, registered
from tests.command import run
from tests.composing import GOLDEN, built, composed

SEVERAL = ("checkpoint", "tracking", "callback", "converter")


def test_golden_keys():
    """Every key of the default composition; a new or lost key must be a visible change of this file."""
    keys = sorted(flatten(composed()))
    assert keys == GOLDEN.read_text().split(), f"if this change is meant, write the keys to {GOLDEN}"


OPTIONS = [
    (group, option)
    for group, options in groups().items()
    if group not in ("source", "experiment") and "/" not in group
    for option in options
    if (group, option) != ("model", "spec")  # the package registers none; see tests/model/test_spec.py
]


REQUIRING = (("data", "json"), ("data", "text"), ("data", "preference"), ("data", "unpaired"))
OWN_FILES = ("json", "text", "preference", "unpaired")
"""Named sets that are read from the user's files."""

PAIR_SETS = {name: ["trainer=dpo", f"data={name}"] for name in ("preference", "ultrafeedback")}
PAIR_SETS |= {name: ["trainer=kto", f"data={name}"] for name in ("unpaired", "kto_mix")}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_composes_and_builds(group, option):
    """Every file in conf/ gives a run that builds; what a file requires from the user is given here."""
    required = [f"data.sources.{option}.path=data.jsonl"] if (group, option) in REQUIRING else []
    required += ["data/sources=[chat]"] if (group, option) == ("data", "mix") else []
    required += ["data.sources.text.path=data.txt"] if (group, option) == ("trainer", "causal") else []
    if group == "trainer" and option in ("dpo", "orpo", "cpo", "simpo", "reward"):
        required += ["data.sources.preference.path=data.jsonl"]
    required += ["trainer.teacher_path=some/model"] if (group, option) == ("trainer", "distill") else []
    required += ["data.sources.unpaired.path=data.jsonl"] if (group, option) == ("trainer", "kto") else []
    required += ["model=hf"] if option.startswith("long") else []  # longer than the tiny model's positions
    required += ["model.architecture=qwen3"] if (group, option) == ("model", "random") else []
    required += {
        ("data", "preference"): ["trainer=dpo"],
        ("data", "ultrafeedback"): ["trainer=dpo"],
        ("converter", "freeze"): ["converter.freeze.patterns=[embed]"],
        ("peft", "any"): ["peft.peft_type=IA3"],
        ("peft", "qlora"): ["model=hf"],
        ("callback", "early_stopping"): ["trainer.eval_frequency=1"],
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
    required = [f"data.sources.{option}.path=x.jsonl"] if option in OWN_FILES else []
    data = PAIR_SETS.get(option, ["data=mix"])
    run = built(*data, f"data/sources=[{option}]", "data/eval_sources=[]", *required)
    assert list(run.data.sources) == [option] and not run.data.eval_sources


@pytest.mark.parametrize("option", groups()["data/sources"])
def test_every_named_set_is_evaluated_on(option):
    """On its own, and beside the training source of its name, whose place it shares where that has one on the hub."""
    more = {
        "chat": [], "ultrachat": [], "ultrafeedback": [], "kto_mix": [], **{name: [f"data.eval_sources.{name}.path=e"] for name in OWN_FILES},
    }.get(option, [f"data.eval_sources.{option}.split=train[:1%]"])  # fmt: skip
    trained_on = PAIR_SETS.get(option, [])
    own = (
        [f"data.sources.{'unpaired' if 'trainer=kto' in trained_on else 'preference'}.path=p.jsonl"]
        if trained_on
        else []
    )
    alone = built(*(trained_on[:1]), f"data/eval_sources=[{option}]", *more, *own).data.eval_sources
    assert list(alone) == [option]
    path = f"data.sources.{option}.path=/mine"
    both = built(
        *(trained_on or ["data=mix"]),
        f"data/sources=[{option}]",
        f"data/eval_sources=[{option}]",
        *more,
        *([path] * (option != "chat")),
    ).data
    trained, evaluated = vars(both.sources[option]), vars(both.eval_sources[option])
    if option in OWN_FILES:
        assert evaluated["path"] != "/mine"
    elif option != "chat":
        assert alone[option].path == built(*trained_on[:1], f"data={option}", "model=hf").data.sources[option].path
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
    built(f"experiment={recipe}", *(["data.sources.text.path=texts"] if recipe == "pretrain" else []))


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


def test_a_hub_model_brings_its_tokenizer():
    run = built("model=liger", "data=ultrachat")
    assert run.tokenizer.name_or_path == run.model.name_or_path == "Qwen/Qwen3-0.6B"
    assert run.data.sources["ultrachat"].path == "HuggingFaceH4/ultrachat_200k"
    assert run.data.sources["ultrachat"].split_mapping == {"train": "train_sft", "eval": "test_sft"}
    assert type(built("model=hf", "tokenizer=bundled").tokenizer).__name__ == "BundledTokenizerFactory"


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


BAD = [
    ("trainer.epochs=two", "trainer.epochs: got 'two', expected a number such as"),
    ("trainer.epochs=-1", "trainer.epochs: got -1, expected 0 or more"),
    ("trainer.epochs=0", "trainer.epochs: got 0, but train_iters is also 0"),
    ("trainer.micro_batch_size=0", "trainer.micro_batch_size: got 0, expected 1 or more"),
    ("trainer.gradient_accumulation_steps=1.5", "trainer.gradient_accumulation_steps: got 1.5, expected a whole number"),
    ("data.max_length=0", "data.max_length: got 0, expected"),
    ("optimizer.lr=-1e-4", "optimizer.lr: got -0.0001, expected 0 or more"),
    ("optimizer.betas=[0.9,1.5]", "optimizer.betas: got [0.9, 1.5], expected two numbers in [0, 1)"),
    ("scheduler.warmup_ratio=120%", "scheduler.warmup_ratio: got '120%', expected 1 or less"),
    ("seed=-1", "seed: got -1, expected 0 to 18,446,744,073,708,503,040"),
    ("ranks=0", "ranks: got '0', expected auto or 1 to 1,024, on each machine"),
    ("name=../x", "name: got '../x', expected letters"),
    ("model.dtype=int8", "model.dtype: got 'int8', expected one of bf16, fp16, fp32"),
    ("model.dtype=fp16", "model.dtype: got fp16, but at ZeRO-0 DeepSpeed divides the gradients by a scale with which"),
    ("model.dtype=fp16 deepspeed=zero1", "model.dtype: got fp16, which DeepSpeed supports only on CUDA"),
    ("model.attn_implementation=flash", "model.attn_implementation: got 'flash', expected one of arctic_varlen"),
    ("model.num_attention_heads=7", "model.hidden_size: got 256, expected a multiple of num_attention_heads=7"),
    ("data.max_length=8Ki", "data.max_length: got 8192, but model.max_position_embeddings=4096"),
    ("scheduler.warmup_steps=30 trainer.train_iters=20", "scheduler.warmup_steps: got 30, but the run has at most 20 optimizer steps"),
    ("deepspeed.config={gradient_cliping:1}", "deepspeed.config.gradient_cliping: DeepSpeed has no such key; did you mean 'gradient_clipping'?"),
    ("deepspeed.config={train_batch_size:7}", "deepspeed.config.train_batch_size: got 7, but micro_batch_size"),
    ("deepspeed.config={train_micro_batch_size_per_gpu:3}", "deepspeed.config.train_micro_batch_size_per_gpu: got 3, but trainer.micro_batch_size="),
    ("deepspeed.config={gradient_accumulation_steps:3}", "deepspeed.config.gradient_accumulation_steps: got 3, but trainer.gradient"),
    ("deepspeed.config={zero_optimization:{stage:3}}", "deepspeed.config.zero_optimization.stage: got 3, but the chosen option has stage 0; pass deepspeed=zero3"),
    ("deepspeed.config={bf16:{enabled:true}}", "deepspeed.config.bf16.enabled: got True, but model.dtype=fp32"),
    ("deepspeed.config={bf16:{check_grad_overflow:false}} model.dtype=bf16 deepspeed=zero1", "deepspeed.config.bf16.check_grad_overflow: got False, but steps"),
    ("deepspeed.config={data_types:{grad_accum_dtype:fp32}} model.dtype=bf16", "deepspeed.config.data_types.grad_accum_dtype: got fp32, but at ZeRO-0"),
    ("deepspeed.config={torch_autocast:{enabled:true,dtype:float16}}", "deepspeed.config.torch_autocast.dtype: got float16, but at ZeRO-0 the scale"),
    ("deepspeed.config={optimizer:{type:Adam}}", "deepspeed.config.optimizer: is set by the config group optimizer; remove it here"),
    ("checkpoint.hf.auto_resume=true", "checkpoint: deepspeed and hf have auto_resume=true, expected at most one; pass checkpoint.<name>.auto_resume=false for the others"),
    ("checkpoint.hf.save_every_n_steps=-1", "checkpoint.hf.save_every_n_steps: got -1, expected 0 or more"),
    ("log.level=LOUD", "log.level: got 'LOUD', expected DEBUG, INFO, WARNING or ERROR"),
    ("optimizer._target_=os.system", "optimizer._target_: got 'os.system', which is not allowed"),
    ("optimizer._target_=torch.load", "optimizer._target_: got 'torch.load', which is not allowed"),
    ("optimizer._target_=${name}", "optimizer._target_: got 'default', which is not allowed"),
    ("optimizer._target_=arctic_hydra.run_directory.os.system", "optimizer._target_: got 'arctic_hydra.run_directory.os.system', which is not allowed"),
    ("+hydra.callbacks.a._target_=os.system", "hydra.callbacks.a._target_: got 'os.system', which is not allowed"),
    ("hydra.launcher._target_=os.system", "hydra.launcher._target_: got 'os.system', which is not allowed"),
    ("data=mix", "data.sources: got none, expected at least one; choose datasets with data/sources=[<name>,...], or add your own with"),
    ("data/eval_sources=[metamath]", "data.eval_sources.metamath.split: got none, but this dataset has no evaluation split; expected a part of its training split; pass train[:1%], and data.sources.metamath.split=train[1%:]"),
    ("data=json", "data.sources.json.path: required, but not set; pass data.sources.json.path=<value>"),
    *(
        (f"data.sources.chat.split={split}", f"data.sources.chat.split: got {split!r}, expected a name and a slice such as train[:10%], train[100:200] or [-50:]")
        for split in ("train[50%]", "[5]", "train[:50%", "train[a:b]", "[1:2,5:6]", "[:1]+[2:]", "train[:]]")
    ),
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
]  # fmt: skip


@pytest.mark.parametrize(("argument", "text"), BAD, ids=[argument for argument, _ in BAD])
def test_bad_values_are_refused_in_one_sentence(argument, text, capsys, tmp_path):
    assert main(argument.split(" ")) == 2
    error = capsys.readouterr().err
    assert f"error: {text}" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


TOGETHER = [
    ("ranks=3 trainer.sequence_parallel_size=2", "trainer.sequence_parallel_size: got 2, but there are 3 ranks; expected a divisor of 3; change it or ranks"),
    ("ranks=2 trainer.sequence_parallel_size=2 model.attn_implementation=sdpa", "trainer.sequence_parallel_size: got 2, but model.attn_implementation=sdpa attends to one rank's tokens only; pass model.attn_implementation=arctic_varlen"),
    ("model.activation_checkpoint_every_n_layers=2", "model.activation_checkpoint_every_n_layers: got 2, which has no effect with disable_activation_checkpoint=true"),
    ("model.activation_checkpoint_every_n_layers=0", "model.activation_checkpoint_every_n_layers: got 0, expected 1 or more"),
    ("trainer.activation_checkpoint_cpu_offload=true", "trainer.activation_checkpoint_cpu_offload: got true, but model.disable_activation_checkpoint=true leaves no checkpointed activations"),
    ("trainer.tiled_mlp_compute=true converter=[tiled_mlp]", "trainer.tiled_mlp_compute: got true, but converter=[tiled_mlp] already enables it; remove one of them"),
    ("converter=[tiled_mlp] converter.tiled_mlp.tiles=1", "converter.tiled_mlp.tiles: got 1, expected 2 or more"),
    ("model.compile=true deepspeed=zero3", "model.compile: got true, but ZeRO-3 gathers weights within layers, which torch.compile does not support; pass deepspeed=zero2"),
    ("model.compile=true data.packing=false", "model.compile: got true, but unpacked examples give rows of varying shape; pass data.packing=true"),
    ("deepspeed.offload_optimizer=true", "deepspeed.offload_optimizer: got true, but ZeRO-0 cannot offload; expected stage 1, 2 or 3"),
    ("deepspeed=zero2_offload deepspeed.offload_parameters=true", "deepspeed.offload_parameters: got true at stage 2, but only ZeRO-3 can; expected stage 3"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), TOGETHER, ids=[arguments for arguments, _ in TOGETHER])
def test_conflicting_settings_are_refused_in_one_sentence(arguments, text, capsys):
    assert main(arguments.split()) == 2
    assert f"error: {text}" in capsys.readouterr().err


def test_refused_fields_of_several_components_are_reported_together(capsys):
    assert (
        main(["trainer.epochs=-1", "data.max_length=0", "checkpoint.hf.save_every_n_steps=-1", "optimizer.lr=-1"]) == 2
    )
    keys = {line.removeprefix("error: ").partition(":")[0] for line in capsys.readouterr().err.splitlines()}
    assert keys == {"trainer.epochs", "data.max_length", "checkpoint.hf.save_every_n_steps", "optimizer.lr"}


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
    for arguments in (
        ["optimizer._target_=evil.f"],
        ["+hydra.callbacks.a._target_=evil.f"],
        ["--config-dir", "mine", "optimizer=bad"],
        ["-m", "optimizer._target_=evil.f,evil.g"],
        ["deepspeed.config={x:{_target_:evil.f}}"],
    ):
        done = subprocess.run([sys.executable, "-m", "arctic_hydra", *arguments], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert "evil." in done.stderr, done.stderr
        assert not (tmp_path / "imported").exists()


def test_typed_slots_refuse_another_family(capsys):
    assert main(["optimizer._target_=arctic_hydra.scheduler.cosine.CosineScheduler"]) == 2
    assert "optimizer" in capsys.readouterr().err


def test_the_first_hint_is_the_default_and_a_choice_wins(my_lab: Path, tmp_path: Path) -> None:
    lab = {"PYTHONPATH": str(my_lab)}
    composed = run("trainer=choosy model.name_or_path=org/model --cfg job", tmp_path, **lab).stdout
    assert "arctic_hydra.model.hf.HFModelFactory" in composed
    assert "arctic_hydra.tokenizer.hf.HFTokenizerFactory" in composed, "the option of the model chooses it"
    assert "arctic_hydra.scheduler.linear.LinearScheduler" in composed
    assert "arctic_hydra.data.sft.SFTDataFactory" in composed, (
        "its class is no option, so the default of the config stays"
    )
    chosen = run("trainer=choosy model=tiny --cfg job", tmp_path, **lab).stdout
    assert "arctic_hydra.model.tiny.TinyModelFactory" in chosen
    told = run("trainer=choosy model=tiny task=check", tmp_path, **lab).stdout
    assert told.startswith("default  scheduler=linear, the first that trainer=choosy names\n")
