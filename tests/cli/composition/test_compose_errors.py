# ruff: noqa: E501 (tables of command lines and messages)
"""Errors of composition: unknown keys, groups and options, and values of the wrong type."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf

from arctic_hydra.__main__ import main
from arctic_hydra.cli.composition.compose_errors import translate_error

BAD = [
    (
        "source@data.sources.mine=json data.sources.mine.path=x",
        "source@data.sources.mine: there is no such entry to replace; add it with +source@data.sources.mine=<option>",
    ),
    ("optimizer.lrr=1", "optimizer.lrr: there is no such key; did you mean optimizer.lr?"),
    ("trainer=orpo trainer.label_smoothing=0.1", "trainer.label_smoothing: there is no such key; it belongs to trainer=sft, causal or dpo"),
    ("data=unpaired trainer.desirable_weigt=2", "trainer.desirable_weigt: there is no such key; did you mean trainer.desirable_weight?"),
    ("data=chat trainer.desirable_weight=2", "trainer.desirable_weight: there is no such key; it belongs to trainer=kto"),
    ("modle=hf", "modle: there is no such key; did you mean model?"),
    ("model=ligr", "model: got 'ligr', expected one of hf, liger, random, spec, tiny; did you mean liger?"),
    ("seed=abc", "seed: got 'abc', expected a whole number"),
    ("data.packing=maybe", "data.packing: got 'maybe', expected true or false"),
    ("model=Qwen/Qwen3-0.6B", "model: got 'Qwen/Qwen3-0.6B', expected an option; for a hub id or a directory, pass model=hf model.name_or_path=Qwen/Qwen3-0.6B"),
    ("deepspeed=ds_config.json", "deepspeed: got 'ds_config.json', expected one of zero0, zero1, zero2, zero2_offload, zero3, zero3_offload; choose the ZeRO stage, and put other keys of the file into deepspeed.config={...}"),
    ("trainer=grpo", "trainer: got 'grpo', expected one of causal, cpo, distill, dpo, kto, orpo, reward, sft, simpo; no trainer here samples answers, see docs/limits.md"),
    ("data=parquet", "data: got 'parquet', expected one of acemath, chat, json, kto_mix, lmsys_chat, longalign, longalpaca, magicoder, metamath, mix, openorca, preference, slimorca, text, ultrachat, ultrafeedback, unpaired; parquet is an option of the group source; pass data=mix +source@data.sources.<name>=parquet data.sources.<name>.path=<path>"),
    ("data.path=a.jsonl", "data.path: there is no such key; for files of your own, pass data=json data.sources.json.path=<file or directory>"),
    ("data=sft", "data: got 'sft', expected one of acemath, chat, json, kto_mix, lmsys_chat, longalign, longalpaca, magicoder, metamath, mix, openorca, preference, slimorca, text, ultrachat, ultrafeedback, unpaired; sft is registered in the group trainer"),
    ("data=alpaca", "data: got 'alpaca', expected one of acemath, chat, json, kto_mix, lmsys_chat, longalign, longalpaca, magicoder, metamath, mix, openorca, preference, slimorca, text, ultrachat, ultrafeedback, unpaired; alpaca is data=json here"),
    ("checkpoint=[huggingface]", "checkpoint: got 'huggingface', expected one of deepspeed, hf; huggingface is checkpoint=hf here"),
    ("checkpoint.output_dir=x", "checkpoint.output_dir: there is no such key; output_dir of ArcticTraining is checkpoint.deepspeed.output_dir here"),
    ("task=trian", "task: Invalid value 'trian', expected one of [train, check, score, evaluate, export, chat, preview, report]"),
    ("checkpoint.hff.x=2", "checkpoint.hff.x: checkpoint.hff is not among the chosen options (deepspeed, hf)"),
    ("data/sources=[metamth]", "data/sources: got 'metamth', expected one of"),
    ("data/sources=[parquet]", "data/sources: got 'parquet'; parquet is an option of the group source; add it with +source@data.sources.<name>=parquet"),
    ("data.sources=[ultrachat,openorca]", "data.sources: got a list, expected named entries; choose sets with data/sources=[ultrachat,openorca]"),
    ("+foo=1", "foo: there is no such key"),
    ("experiment=sft", "experiment: got 'sft', expected one of "),
    ("experiment=sft_ultrachat checkpoint=[]", "checkpoint.deepspeed.save_every_n_steps: a config file (such as an experiment) sets it, but the chosen options have no checkpoint.deepspeed"),
    ("model=3", "model: got 3, expected one of hf, liger, random, spec, tiny"),
    ("tracking=null", "tracking: got None, expected one of mlflow, none, tensorboard, wandb, or [] where it is a list"),
    ("checkpoint=[deepspeed,hff]", "checkpoint: got 'hff', expected one of deepspeed, hf; did you mean hf?"),
    ("callback=[early_stoping]", "callback: got 'early_stoping', expected one of early_stopping, ema, memory_profiler, profiler, samples; did you mean early_stopping?"),
    ("optimizer.lr=1,2", "optimizer.lr: got '1,2'; pass -m for a sweep over these values (arctic_hydra.sweep in Python), or optimizer.lr=[1,2] for a list"),
    ("tracking.aim.x=1", "tracking.aim.x: tracking.aim is not among the chosen options (mlflow), and there is no such option"),
    ("optimizer=linear", "optimizer: got 'linear', expected one of adamw, cpu_adam, fused_adam, muon; linear is registered in the group scheduler"),
    ("optimizer", "optimizer: not a valid override; expected key=value, with quotes around special characters"),
    ("chat", "chat: not a valid override; did you mean task=chat?"),
    ("sft", "sft: not a valid override; did you mean trainer=sft?"),
    ("tracking.code:mine.at=1", "tracking.code:mine.at=1: not a valid override; the keys of an option code:<name> are written without code:, here tracking.mine.at"),
    ("help", "help: not a valid override; did you mean --help?"),
    ("data=mine.jsonl", "data: got 'mine.jsonl', expected an option; for a file, pass data=json data.sources.json.path=mine.jsonl"),
    ("data=../my/rows.csv", "data: got '../my/rows.csv', expected an option; for a file, pass data=json data.sources.json.path=../my/rows.csv"),
    ("data/eval_sources=my.jsonl", "data.eval_sources: got 'my.jsonl', expected an option; for a file, pass +source@data.eval_sources.json=json data.eval_sources.json.path=my.jsonl"),
    ("trainer=dpo data=preference data.sources.json.path=a", "data.sources.json.path: there is no such key; data.sources has no entry json, only preference; did you mean data.sources.preference.path?"),
    ("data.sources.json.path=a.jsonl", "data.sources.json.path: there is no such key; data.sources has no entry json, only chat; pass data=json too, for files of your own"),
    ("--config a", "--config: there is no such option; see python -m arctic_hydra --help"),
    ("_target_=arctic_hydra.optimizer.adamw.AdamWFactory", "_target_: got 'arctic_hydra.optimizer.adamw.AdamWFactory', expected a subclass of Run"),
    ("--config-name ", "--config-name: got '', expected the name of a whole config, without .yaml"),
    ("--config-name a\0b", "--config-name: got 'a\\x00b', expected the name of a whole config"),
    ("--config-dir ", "--config-dir: got '', not a directory"),
    ("--config-name experiment/sft_ultrachat", "experiment/sft_ultrachat: its defaults list overrides model, but no list before it chooses"),
    ("--config-name model/tiny", "--config-name: got 'model/tiny', which is not a complete config; expected a file that begins with `defaults: [config, _self_]`"),
]  # fmt: skip

ADAMW = "_target_: arctic_hydra.optimizer.adamw.AdamWFactory\n"
RUN = "_target_: arctic_hydra.config.Run\n"
NO_CONFIG = "--config-name: got 'own', which is not a complete config; expected a file that begins with `defaults: [config, _self_]`"
FILES = [
    ("defaults: [config, _self_]\noptimizer: {lrr: 1}", "optimizer.lrr: there is no such key; did you mean optimizer.lr?"),
    ("defaults: [config, _self_]\ntracking: {mlflow: {tracking_uri: x}}", "tracking.mlflow.tracking_uri: there is no such key; did you mean tracking.mlflow.uri?"),
    ("defaults: [config, _self_]\ntrainer: {max_steps: 3}", "trainer.max_steps: there is no such key; max_steps of transformers and Axolotl is trainer.train_iters here"),
    ("- a", "--config-name: got 'own', which is not a complete config"),
    ("defaults: [config, _self_]\nhydra: {launcher: {x: 1}}", "hydra.launcher.x: there is no such key"),
    ("defaults: [config, _self_]\nlearning: 1", "learning: there is no such key"),
    ("defaults: [config, override modle: hf, _self_]", "own: its defaults list overrides modle, but no list before it chooses an option of such a group"),
    ("defaults: [own]", "config: nested too deeply; expected config files that do not include each other in a circle"),
    (ADAMW + "lr: 1", NO_CONFIG),
    (RUN + "task: check", NO_CONFIG),
    (RUN + "hostfile: 5\ntask: [a]\nnnodes: 1\nnode_rank: 0\nranks: auto\noutput_root: 5", NO_CONFIG),
    (RUN + "model: [1]\ntokenizer: 7\ncheckpoint: 5", NO_CONFIG),
    ("defaults: [/schema/optimizer/adamw@_here_, _self_]\n" + ADAMW, NO_CONFIG),
    ("defaults: [config, _self_]\n" + ADAMW, "_target_: got 'arctic_hydra.optimizer.adamw.AdamWFactory', expected a subclass of Run"),
    ("defaults: [config, _self_]\nhostfile: [a]", "hostfile: Cannot convert 'ListConfig' to string"),
    ('defaults: [config, _self_]\noutput_root: "a\\ud800b"', "output_root: got 'a\\ud800b', which holds half of a surrogate pair; expected text that UTF-8"),
    ('defaults: [config, _self_]\nmodel: {hf_config_kwargs: {x: ["\\udfff"]}}', "model.hf_config_kwargs.x: got ['\\udfff'], which holds half of"),
    ('defaults: [config, _self_]\nmodel: {hf_config_kwargs: {"\\ud800": 1}}', "model.hf_config_kwargs.\\ud800: got 1, which holds half of"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "text"), BAD, ids=[argument for argument, _ in BAD])
def test_bad_overrides_are_refused_in_one_sentence(argument, text, capsys, tmp_path):
    assert main(argument.split(" ")) == 2
    error = capsys.readouterr().err
    assert f"error: {text}" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "text"), FILES, ids=[content[:60] for content, _ in FILES])
def test_bad_config_files_are_refused_in_one_sentence(content, text, capsys, tmp_path):
    (tmp_path / "own.yaml").write_text(f"{content}\n")
    for arguments in (["--cfg", "job"], ["-m"])[: 2 if text == NO_CONFIG else 1]:
        assert main([*arguments, "--config-dir", str(tmp_path), "--config-name", "own"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {text}")
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


def test_an_unknown_key_of_an_experiment_is_one_sentence(capsys, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer: {lrr: 1}\n")
    assert main(["--config-dir", str(tmp_path), "experiment=mine", "seed=1"]) == 2
    assert capsys.readouterr().err == "error: optimizer.lrr: there is no such key; did you mean optimizer.lr?\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /tracking: [wandb]}, _self_]\ntracking: {wandb: {project: a}}\n"
    )
    assert main(["--config-dir", str(tmp_path), "experiment=mine", "tracking=[]"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: tracking.wandb.project: a config file (such as an experiment) sets it, but the chosen options have no tracking.wandb;"
    )
    text = "# @package _global_\ndefaults: [{override /callback: [early_stopping]}]\ncallback: {early_stopping: {patiance: 3}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert main(["--config-dir", str(tmp_path), "experiment=mine", "callback=[early_stopping]"]) == 2
    assert "did you mean callback.early_stopping.patience?" in capsys.readouterr().err


def test_a_circular_chain_of_errors_ends():
    first, second = ValueError("bad value"), KeyError("x")
    first.__cause__, second.__context__ = second, first
    assert "bad value" in str(translate_error(first, ["seed=1"], None))


def test_an_endless_number_in_a_file_is_refused(capsys, tmp_path):
    """It has more digits than Python converts to text."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.yaml").write_text(
        f"defaults: [config, _self_]\nmodel: {{hf_config_kwargs: {{a: 0x{'f' * 4000}}}}}\n"
    )
    assert main(["--config-dir", "mine", "--config-name", "own", "task=check"]) == 2
    assert "error: model.hf_config_kwargs.a: got a whole number of more than 1,024 bits" in capsys.readouterr().err


@dataclass
class Critic:
    lr: float = 1.0


@dataclass
class Options:
    critic: Critic | None = None


@pytest.mark.parametrize(("key", "value"), [("critic.lr", 2), ("critic", {"lr": 2})])
def test_a_key_of_a_group_that_is_null_is_explained(key, value):
    with pytest.raises((AssertionError, AttributeError)) as caught:
        OmegaConf.update(OmegaConf.structured(Options), key, value, merge=True)
    problem = str(translate_error(caught.value, [f"trainer.{key}={value}"], None))
    assert problem.endswith("sets a key of a group that is null; remove the null, here or in a config file")
