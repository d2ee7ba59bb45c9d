"""The `hf` export, loaded with transformers in a new process."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arctic_hydra.errors import CheckpointError

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
CASES = [
    pytest.param(1, dict(zero=0), id="zero0"),
    pytest.param(1, dict(zero=0, tied=True), id="zero0-tied"),
    pytest.param(1, dict(zero=2, bf16=True), id="zero2-bf16"),
    pytest.param(1, dict(zero=3, tied=True), id="zero3-tied"),
    pytest.param(2, dict(zero=0, tied=True), id="zero0-tied-two-ranks"),
    pytest.param(2, dict(zero=3), id="zero3-two-ranks"),
    pytest.param(2, dict(zero=3, tied=True), id="zero3-tied-two-ranks"),
    pytest.param(2, dict(zero=3, bf16=True), id="zero3-bf16-two-ranks"),
]


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def export(state: Any, **fields: Any) -> Any:
    from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint

    engine = HuggingFaceCheckpoint(**fields)
    engine.bind(state)
    return engine


def logits_of(model: Any) -> list[float]:
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits.float().flatten().tolist()


def load_back(rank: int, path: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "two one"}], tokenize=False)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return logits_of(model), str(model.dtype), tied, text, tokenizer("two one")["input_ids"]


def stored_names(path: Path) -> set[str]:
    """Return the names in a safetensors file, whose header is JSON behind its length."""
    with path.open("rb") as file:
        return set(json.loads(file.read(int.from_bytes(file.read(8), "little"))))


@pytest.mark.parametrize(("world_size", "options"), CASES)
def test_an_export_loads_with_equal_logits(world_size, options, in_ranks, lab, tmp_path) -> None:
    """Full weights of every ZeRO stage, in the training dtype, tied or not, with tokenizer and chat template."""

    def run(rank: int) -> Any:
        state = lab.start(tmp_path, rank, world_size=world_size, tokenizer=make_tokenizer(), **options)
        lab.train(state, 2)
        state.training_finished = True
        path = export(state).save()
        state.engine.eval()
        return path, logits_of(state.engine)

    results = in_ranks(world_size, run)
    path, expected = results[0]
    assert path == tmp_path / "export"
    assert [other.name for other in tmp_path.iterdir()] == ["export"]
    assert set(FILES) <= set(os.listdir(path))
    [(logits, dtype, tied, text, ids)] = in_ranks(1, load_back, path)
    assert logits == expected
    assert dtype == ("torch.bfloat16" if options.get("bf16") else "torch.float32")
    assert tied == options.get("tied", False)
    assert ("lm_head.weight" in stored_names(path / "model.safetensors")) is not tied
    assert (text, ids) == ("two one ", [2, 1])


def test_a_zero_3_export_holds_buffers_and_counts_its_bytes(in_ranks, lab, tmp_path) -> None:
    """The index counts the bytes of each dtype, not two per element."""

    def run(rank: int) -> None:
        import torch

        state = lab.start(tmp_path, rank, zero=3, bf16=True, world_size=2, tokenizer=make_tokenizer())
        state.engine.module.register_buffer("seen", torch.arange(5, dtype=torch.float64))
        state.training_finished = True
        export(state, max_shard_size="20KB").save()

    def read(rank: int) -> Any:
        from safetensors.torch import load_file

        files = sorted((tmp_path / "export").glob("*.safetensors"))
        tensors = {name: value for file in files for name, value in load_file(file).items()}
        return len(files), tensors["seen"].tolist(), sum(value.nbytes for value in tensors.values())

    in_ranks(2, run)
    [(files, seen, size)] = in_ranks(1, read)
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    assert files > 1 and seen == [0, 1, 2, 3, 4] and index["metadata"]["total_size"] == size


def test_a_zero_3_export_to_a_full_disk_fails_all_ranks_with_the_same_error(in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        state = lab.start(tmp_path, rank, zero=3, world_size=2, tokenizer=make_tokenizer())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(CheckpointError) as caught:
            export(state).save()
        return str(caught.value)

    first, second = in_ranks(2, run)
    assert first == second and "OSError: [Errno 27] File too large" in first
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("world_size", "zero"), [(1, 0), (2, 3)])
def test_a_peft_model_is_exported_as_its_adapter(world_size, zero, in_ranks, lab, tmp_path) -> None:
    def run(rank: int) -> Any:
        state = lab.start(tmp_path, rank, world_size=world_size, zero=zero, lora=True, tokenizer=make_tokenizer())
        lab.train(state, 2)
        state.training_finished = True
        export(state).save()
        state.engine.eval()
        return logits_of(state.engine)

    def load(rank: int) -> list[float]:
        import peft
        import torch

        torch.manual_seed(1)
        config = lab.libraries.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=128,
            max_position_embeddings=64,
        )  # fmt: skip
        model = peft.PeftModel.from_pretrained(lab.libraries.Llama(config), tmp_path / "export")
        trained = [value for name, value in model.named_parameters() if "lora_B" in name]
        assert trained and all(bool(value.any()) for value in trained)
        return logits_of(model)

    expected = in_ranks(world_size, run)[0]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(tmp_path / "export"))
    assert not (tmp_path / "export" / "model.safetensors").exists()
    assert in_ranks(1, load)[0] == expected


def test_intermediate_exports_are_kept_and_the_final_one_is_replaced_atomically(in_ranks, lab, tmp_path) -> None:
    """The final export exists at all times during its replacement, sharded by `max_shard_size`."""

    def run(rank: int) -> Any:
        from arctic_hydra.checkpoint import files

        state = lab.start(tmp_path, rank, zero=0, tokenizer=make_tokenizer())
        checkpoint = export(state, save_every_n_steps=1, max_shard_size="20KB")
        asked = [checkpoint.latest_checkpoint_exists]
        lab.train(state, 1)
        asked.append(checkpoint.do_checkpoint)
        intermediate = checkpoint.save().name
        asked += [checkpoint.do_checkpoint, checkpoint.latest_checkpoint_exists]
        lab.train(state, 1)
        state.training_finished = True
        final = tmp_path / "export"
        final.mkdir()
        (final / "old.safetensors").touch()
        seen, exchange = [], files._exchange
        files._exchange = lambda *names: (seen.append(sorted(os.listdir(final))), exchange(*names))[1]
        checkpoint.save()
        return asked, intermediate, seen

    [(asked, intermediate, seen)] = in_ranks(1, run)
    assert asked == [False, True, False, True]
    assert intermediate == "export-step-00000001"
    assert seen == [["old.safetensors"]]
    assert sorted(os.listdir(tmp_path)) == ["export", "export-step-00000001"]
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert not (tmp_path / "export" / "old.safetensors").exists()


def test_a_run_that_ends_at_an_exported_step_still_writes_the_final_export(in_ranks, lab, tmp_path) -> None:
    """Early stopping decides after the triggers of that step are evaluated."""

    def run(rank: int) -> list[bool]:
        state = lab.start(tmp_path, rank, zero=0, tokenizer=make_tokenizer())
        checkpoint = export(state, save_every_n_steps=1)
        lab.train(state, 1)
        checkpoint.save()
        asked = [checkpoint.do_checkpoint]
        state.training_finished = True
        asked.append(checkpoint.do_checkpoint)
        checkpoint.save()
        return [*asked, checkpoint.do_checkpoint]

    assert in_ranks(1, run) == [[False, True, False]]
    assert sorted(os.listdir(tmp_path)) == ["export", "export-step-00000001"]


def test_a_failed_export_fails_all_ranks_and_keeps_the_old_one(in_ranks, lab, tmp_path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").touch()

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    def run(rank: int) -> str:
        broken = make_tokenizer()
        broken.save_pretrained = fail
        state = lab.start(tmp_path, rank, zero=3, world_size=2, tokenizer=broken)
        lab.train(state, 1)
        state.training_finished = True
        with pytest.raises(CheckpointError) as caught:
            export(state).save()
        return str(caught.value)

    first, second = in_ranks(2, run)
    assert first == second
    assert "No space left on device" in first and "nothing was published" in first
    assert os.listdir(tmp_path) == ["export"] and os.listdir(tmp_path / "export") == ["config.json"]


@pytest.mark.parametrize("persistence_threshold", [0, 100_000])
def test_saving_and_exporting_do_not_change_training(persistence_threshold, in_ranks, lab, tmp_path) -> None:
    """ZeRO-3 keeps small parameters gathered; gathering them for an export must not affect training."""

    def run(rank: int, save: bool) -> Any:
        options = dict(zero=3, world_size=2, persistence_threshold=persistence_threshold)
        state = lab.start(tmp_path, rank, tokenizer=make_tokenizer(), **options)
        lab.train(state, 1)
        if save:
            lab.checkpoint(state).save()
            export(state).save()
        lab.train(state, 2)
        return lab.digest(state)

    assert in_ranks(2, run, True) == in_ranks(2, run, False)


def test_an_export_does_not_resume() -> None:
    from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint

    with pytest.raises(CheckpointError, match=r"weights only.*checkpoint=\[deepspeed,hf\].*init_from="):
        HuggingFaceCheckpoint().load()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("elsewhere"), "export is a symbolic link to elsewhere; use a directory itself"),
        (
            lambda path: path.mkdir() or (path / "thesis.tex").touch(),
            "export contains files that are not an export; move them",
        ),
        (lambda path: path.touch(), "export is not a directory"),
    ],
)
def test_an_export_replaces_nothing_but_an_export(make, message, tmp_path) -> None:
    from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, export_target_problem, write_export

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").touch()
    target = tmp_path / "export"
    make(target)
    assert message in str(export_target_problem(target))

    class Model:
        save_pretrained = None

    with pytest.raises(CheckpointError, match=message):
        write_export(Model(), {}, None, target, HuggingFaceCheckpoint())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "export"]


@pytest.mark.parametrize("name", [None, "config.json", "adapter_config.json", "model-00001-of-00002.safetensors"])
def test_an_export_may_replace_an_empty_directory_and_an_export(name, tmp_path) -> None:
    from arctic_hydra.checkpoint.hf import export_target_problem

    if name:
        (tmp_path / name).touch()
    assert export_target_problem(tmp_path) is None and export_target_problem(tmp_path / "absent") is None


def test_a_model_that_is_not_of_transformers_is_exported_by_its_own_names(tmp_path) -> None:

    import torch
    from safetensors.torch import load_file

    from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint, write_export

    model: Any = torch.nn.Linear(3, 2)
    model.config = SimpleNamespace(vocab_size=2, dtype=torch.float32)
    model.config.get_text_config = lambda: model.config
    write_export(model, model.state_dict(), make_tokenizer(), tmp_path / "export", HuggingFaceCheckpoint())
    assert torch.equal(load_file(tmp_path / "export" / "model.safetensors")["weight"], model.weight)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["vocab_size"] == 2 and config["dtype"] == "torch.float32" and "get_text_config" not in config


@pytest.mark.parametrize(("stage", "copies"), [(0, 1), (3, 2)])
def test_the_space_for_a_partly_frozen_model_is_that_of_all_its_weights(stage: int, copies: int) -> None:
    from arctic_hydra.checkpoint.hf import HuggingFaceCheckpoint

    export = HuggingFaceCheckpoint()
    engine = SimpleNamespace(module=SimpleNamespace(), zero_optimization_stage=lambda: stage)
    export.state = SimpleNamespace(engine=engine, base=None, create_initial_model=None)  # type: ignore[assignment]
    assert export.needed_bytes(1000, 10, 2) == 2000 * copies
    engine.module.peft_config = {}
    export.merge = False
    assert export.needed_bytes(1000, 10, 2) == 20 * copies
