# ruff: noqa: E501 (tables of arguments and messages)
"""Runs with adapters and frozen weights: refused requests, checkpoints, resume, evaluation and starting weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from arctic_hydra import assemble
from arctic_hydra.converter.peft.lora import LoraFactory
from arctic_hydra.errors import ArcticHydraError, ConfigError
from arctic_hydra.model.vocabulary import fit_vocabulary
from arctic_hydra.trainer.head import model_inputs
from arctic_hydra.trainer.loss import plain_losses
from tests.converter import lab
from tests.trainer.loop import batch_of, tiny_factory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lab.warm()
    return lab.save_model(tmp_path_factory.mktemp("model") / "llama")


REFUSED = [
    ("peft=lora converter=[freeze] converter.freeze.patterns=[embed]", "converter: got freeze with peft=lora, which freezes the whole model anyway; leave freeze out"),
    ("converter=[freeze,float8] converter.freeze.patterns=[embed]", r"converter: got \[freeze,float8\], but float8 replaces modules, .*pass converter=\[float8,freeze\]"),
    ("converter=[freeze]", "converter.freeze.patterns: got neither of patterns and trainable"),
    ("converter=[freeze] converter.freeze.patterns=[a] converter.freeze.trainable=[b]", "converter.freeze.patterns: got both"),
    ("peft=qlora deepspeed=zero3", "peft: got qlora, but ZeRO-3 cannot cut weights that are held in few bits; pass deepspeed=zero2"),
    ("peft=qlora model=tiny", "peft: got qlora, but this model has no stored weights to load in few bits; pass model=hf"),
    ("peft=lora deepspeed=zero3 tokenizer.add_tokens=[uno]", r"tokenizer: got 1 tokens to add, but at ZeRO-3 .* pass peft.modules_to_save=\[embed_tokens,lm_head\]"),
    ("peft=lora peft.target_modules=[lm_head] trainer.head_loss=chunked", "peft.target_modules: got lm_head, but trainer.head_loss=chunked reads the head's weight past its adapter"),
    ("peft=lora peft.target_modules=.*head trainer.head_loss=chunked", "peft.target_modules: got lm_head, but trainer.head_loss=chunked reads the head's weight past its adapter"),
    ("checkpoint.hf.merge=true", "checkpoint.hf.merge: got true, but peft=none leaves no adapter to export"),
    ("peft=lora peft.config={r:8}", "peft.config.r: is a field of its own; pass peft.r="),
    ("peft=lora peft.init_lora_weights=eva", "peft.init_lora_weights: got eva, which needs data"),
    ("peft=lora peft.target_modules=[]", r"peft.target_modules: got \[\], expected all-linear"),
    ("peft=any peft.peft_type=prefix_tuning", "peft.peft_type: got PREFIX_TUNING, which cannot be trained here: it puts virtual tokens before the text"),
    ("tokenizer.add_tokens=[a,a]", r"tokenizer.add_tokens: got \['a', 'a'\], expected distinct"),
    ("tokenizer.pad_vocab_to_multiple_of=0", "tokenizer.pad_vocab_to_multiple_of: got 0, expected 1 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_what_does_not_go_together_is_refused_at_once(arguments, text, model):
    with pytest.raises(ConfigError, match=text):
        lab.compose_run(arguments, None if "model=tiny" in arguments else model)


ENVIRONMENT = [
    ("peft=any peft.peft_type=IA4", "peft.peft_type: got IA4, expected one of .*; did you mean IA3"),
    ("peft=lora peft.config={exclude_module:[x]}", "peft.config.exclude_module: peft's LORA has no such key; did you mean exclude_modules"),
    ("peft=any peft.peft_type=IA3 peft.config={feedforward:[x]}", "peft.config.feedforward: peft's IA3 has no such key; did you mean feedforward_modules"),
    ("peft=qlora", "peft.quantization: peft=qlora needs bitsandbytes, which is not installed"),
    ("converter=[float8]", "converter.float8.recipe: converter=.float8. needs torchao, which is not installed"),
    ("converter=[float8]", "converter.float8.recipe: converter=.float8. needs a CUDA GPU, .* or pass converter.float8.emulate=true"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), ENVIRONMENT)
def test_what_this_machine_lacks_is_said_before_torch_is_loaded(arguments, text, model, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    absent = ("bitsandbytes", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=text):
        raise ConfigError(lab.compose_run(arguments, model)[0].environment_problems())


BUILT = [
    ("peft=lora peft.target_modules=[q_proj,k_prj]", r"peft.target_modules: 'k_prj' matches no module; did you mean 'k_proj' \(as in model.layers.0.self_attn.k_proj\)"),
    ("peft=lora peft.modules_to_save=[embed_token]", "peft.modules_to_save: 'embed_token' matches no module; did you mean 'embed_tokens'"),
    ("converter=[freeze] converter.freeze.patterns=[embed_tokes]", "converter.freeze.patterns: 'embed_tokes' matches no parameter; did you mean 'embed_tokens'"),
    ("converter=[freeze] converter.freeze.patterns=[model,lm_head]", "converter.freeze.patterns: .* freezes the whole model, so nothing would train"),
    ("peft=lora peft.target_modules=[input_layernorm]", "peft: LORA cannot be put on LlamaForCausalLM: Target module LlamaRMSNorm"),
    ("peft=any peft.peft_type=IA3 tokenizer.add_tokens=[uno]", "tokenizer.add_tokens: 1 tokens were added, but peft's IA3 cannot train their rows"),
    ("peft=lora tokenizer.add_tokens=[uno] peft.target_modules=[q_proj,lm_head]", r"peft.target_modules: got lm_head, but 1 tokens were added, .* leave it out .*peft.modules_to_save=\[embed_tokens,lm_head\]"),
    ("peft=lora tokenizer.add_tokens=[uno] peft.target_modules='.*(q_proj|embed_tokens)'", "peft.target_modules: got model.embed_tokens, but 1 tokens were added"),
    ("peft=lora deepspeed=zero3 tokenizer.add_tokens=[uno] peft.modules_to_save=[lm_head]", r"tokenizer: got 1 tokens to add, but at ZeRO-3 .* pass peft.modules_to_save=\[lm_head,embed_tokens\]"),
    ("tokenizer.add_tokens=[the]", "tokenizer.add_tokens: 'the' is in the vocabulary already"),
    ("peft=any peft.peft_type=IA3 peft.config={target_modules:[k_proj],feedforward_modules:[],modules_to_save:[embed_tokens]} model.hf_config_kwargs={tie_word_embeddings:true}", "peft: model.embed_tokens of this model shares its weight with another module, and IA3 would take them apart"),
    ("peft=lora peft.target_modules=[embed_tokens] model.hf_config_kwargs={tie_word_embeddings:true}", r"peft: model.embed_tokens of this model shares its weight with another module, and LORA would .* peft.modules_to_save=\[embed_tokens\], which"),
]  # fmt: skip


def errors_of(cases: list[str], folder, model) -> dict[str, str]:
    found = {}
    for number, arguments in enumerate(cases):
        try:
            lab.train(arguments, folder / str(number), model)
            found[arguments] = "trained"
        except ArcticHydraError as error:
            found[arguments] = str(error)
    return found


def test_what_the_model_does_not_have_is_named_with_what_it_has(model, tmp_path):
    import re

    found = lab.in_ranks(1, errors_of, [arguments for arguments, _ in BUILT], tmp_path, model)
    for arguments, text in BUILT:
        assert re.search(text, found[arguments]), (arguments, found[arguments])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("saved", [[], ["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids="+".join)
def test_every_table_trains_the_rows_of_added_tokens(tied, saved):
    """Whole, or those rows; and new tokens, which start alike, do not stay so."""
    network = tiny_factory(tie_word_embeddings=tied, disable_activation_checkpoint=True)
    torch.manual_seed(0)
    model = network.create_model(network.create_config())
    fit_vocabulary(model, 130, [128, 129], 1)
    model = LoraFactory(r=2, modules_to_save=saved).convert(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    batch = batch_of([([5, 128, 7, 129, 9, 129], [True] * 6)])
    for _ in range(2):
        logits = model(**model_inputs(batch)).logits[0, batch.rows_K]
        for parameter, gradient in zip(
            trained, torch.autograd.grad(plain_losses(logits, batch.targets_K).sum(), trained), strict=True
        ):
            parameter.data -= 0.1 * gradient
    merged = model.merge_and_unload()
    for table in (merged.get_input_embeddings(), merged.get_output_embeddings()):
        one, other = table.weight[[128, 129]]
        assert (one - other).abs().max() > 1e-3


def test_a_head_whose_bias_peft_would_drop_is_refused():
    head = torch.nn.Linear(32, 130, bias=True)
    network = tiny_factory(tie_word_embeddings=False)
    model = network.create_model(network.create_config())
    fit_vocabulary(model, 130, [128, 129], 1)
    model.set_output_embeddings(head)
    with pytest.raises(
        ConfigError, match=r"peft drops the bias of lm_head .* pass peft.modules_to_save=\[embed_tokens,lm_head\]"
    ):
        LoraFactory(r=2).convert(model)
    assert LoraFactory(r=2, modules_to_save=["lm_head"]).convert(model).get_output_embeddings()


@pytest.mark.parametrize(("name", "revision"), [("model", None), ("./model", "v2"), ("a/b", "v2"), ("a/b", None)])
def test_an_adapter_names_its_base_for_any_directory(name, revision, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "model")
    arguments = f"peft=lora model.name_or_path={name}" + (f" model.revision={revision}" if revision else "")
    run = lab.compose_run(arguments)[0]
    base = (str(tmp_path / "model"), None) if "model" in name else (name, revision)
    assert assemble.adapter_base(run) == base


def losses(run_dir) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3)])
@pytest.mark.parametrize(
    "kind", ["peft=lora peft.lora_dropout=0.1", "converter=[freeze] converter.freeze.patterns=[embed,layers.0]"]
)
def test_resume_is_bit_exact_from_a_checkpoint_of_what_trains(kind, ranks, stage, model, tmp_path):
    """The checkpoint lacks the frozen weights, which come from the model's files again."""
    arguments = f"{kind} trainer.train_iters=4 deepspeed=zero{stage} ranks={ranks} model.dtype=bf16"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    lab.in_ranks(ranks, lab.perform, arguments, whole, model)
    lab.in_ranks(ranks, lab.perform, f"{arguments} trainer.exit_iteration=2", parts, model)
    from arctic_hydra.checkpoint.full_weights import read_checkpoint_weights

    held = read_checkpoint_weights(parts / "checkpoints" / "step-00000002")
    assert held and not any("layers.0.mlp" in name and "lora" not in name for name in held)
    lab.in_ranks(ranks, lab.perform, arguments, parts, model)
    assert losses(parts) == losses(whole)
    name = "adapter_model.safetensors" if "lora" in kind else "model.safetensors"
    assert (parts / "export" / name).read_bytes() == (whole / "export" / name).read_bytes()


def test_an_adapter_goes_on_with_fewer_ranks_is_evaluated_and_started_from(model, tmp_path):
    base = "peft=dora trainer.train_iters=4 deepspeed=zero2 checkpoint.hf.merge=false"
    evaluated = "data.eval_sources.chat.sample_count=6 data.overlong=keep_start"
    run_dir = tmp_path / "run"
    lab.in_ranks(2, lab.perform, f"{base} ranks=2 trainer.exit_iteration=2 {evaluated}", run_dir, model)
    one = f"{base} ranks=1 trainer.gradient_accumulation_steps=2 {evaluated}"
    lab.in_ranks(1, lab.perform, one, run_dir, model)
    whole = tmp_path / "whole"
    lab.in_ranks(2, lab.perform, f"{base} ranks=2 {evaluated}", whole, model)
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-6)
    outcome = lab.in_ranks(1, lab.perform, f"{one} task=evaluate", run_dir / "task-evaluate", model)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert outcome["eval/loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-6)
    for number, start in enumerate((run_dir / "export", run_dir / "checkpoints" / "step-00000004")):
        again = tmp_path / f"again-{number}"
        lab.in_ranks(1, lab.perform, f"{one} init_from={start} trainer.train_iters=1", again, model)
        first = json.loads((again / "metrics.jsonl").read_text().splitlines()[0])
        assert first["eval/loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-6), start


def test_an_adapter_over_another_runs_weights_knows_them_as_its_base(model, tmp_path):
    """`init_from` a full fine-tuning goes below the adapter, whose export names it."""
    lab.in_ranks(1, lab.perform, "checkpoint=[hf]", tmp_path / "full", model)
    over = tmp_path / "full" / "export"
    lab.in_ranks(1, lab.perform, f"peft=lora init_from={over}", tmp_path / "adapter", model)
    adapter = json.loads((tmp_path / "adapter" / "export" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(over)
    assert adapter["revision"] is None


def test_another_base_than_the_trained_one_is_refused(model, tmp_path):
    base = shutil.copytree(model, tmp_path / "base")
    arguments = "peft=lora trainer.train_iters=4"
    lab.in_ranks(1, lab.perform, f"{arguments} trainer.exit_iteration=2", tmp_path / "run", base)
    lab.save_model(base, initializer_range=0.1)
    found = lab.in_ranks(1, errors_of, [arguments], tmp_path / "none", base)
    assert found[arguments] == "trained", "a run of its own"

    def tried(task: str, place) -> str:
        try:
            return str(lab.perform(f"{arguments} {task}", place, base))
        except ArcticHydraError as error:
            return str(error)

    export = lab.in_ranks(1, tried, "task=export", tmp_path / "run" / "task-export")
    assert "the frozen weights they were trained with differ from this model's" in export
    resumed = lab.in_ranks(1, tried, "", tmp_path / "run")
    assert "was saved by a different run: frozen_weights: checkpoint" in resumed


@pytest.mark.parametrize("tied", [False, True])
def test_pitfall_23_added_tokens_start_at_the_mean_and_are_saved(tied, tmp_path):
    """In rows that grow, and in spare ones; the tokenizer of the export knows them."""
    from transformers import AutoTokenizer

    spare = lab.save_model(tmp_path / "spare", tied=tied, vocabulary=4160)
    grown = lab.save_model(tmp_path / "grown", tied=tied)
    for folder, rows in ((spare, 4160), (grown, 4128)):
        run_dir = tmp_path / f"run-{rows}"
        chosen = (
            "tokenizer.add_tokens=[uno] tokenizer.add_special_tokens=['<|dos|>'] tokenizer.pad_vocab_to_multiple_of=32"
        )
        lab.in_ranks(1, lab.perform, f"{chosen} optimizer.lr=0 checkpoint=[hf]", run_dir, folder)
        tokenizer = AutoTokenizer.from_pretrained(run_dir / "export")
        ids = tokenizer.convert_tokens_to_ids(["uno", "<|dos|>"])
        assert ids == [4096, 4097] and tokenizer("uno<|dos|>")["input_ids"] == ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == "uno"
        weights, before = (load_file(place / "model.safetensors") for place in (run_dir / "export", folder))
        for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
            assert weights[name].shape[0] == rows
            torch.testing.assert_close(weights[name][ids], before[name][:4096].mean(0).expand(2, -1))
            assert weights[name][:4096].equal(before[name][:4096])
