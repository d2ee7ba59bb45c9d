"""Exports load with transformers and peft and have the logits of the trained model, for every kind of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from arctic_hydra.assets import ASSETS
from arctic_hydra.checkpoint import store
from tests.converter import lab

KINDS = {
    "tiny": ("model=tiny model.hidden_size=32 model.intermediate_size=64 model.num_hidden_layers=2", [""]),
    "hf": ("", [""]),
    "liger": ("model=liger model.fallback=true", [""]),
    "lora": ("peft=lora", ["false", "true"]),
    "dora": ("peft=dora", ["false", "true"]),
    "pissa": ("peft=lora peft.init_lora_weights=pissa", ["false", "true"]),
    "tokens": (
        "tokenizer.add_tokens=[uno] tokenizer.add_special_tokens=[dos] tokenizer.pad_vocab_to_multiple_of=64",
        [""],
    ),
    "tokens-lora": ("peft=lora tokenizer.add_tokens=[uno,dos]", ["false", "true"]),
    "tokens-lora-head": ("peft=lora tokenizer.add_tokens=[uno,dos] peft.modules_to_save=[lm_head]", ["false", "true"]),
    "lora-full": ("peft=lora peft.modules_to_save=[embed_tokens]", ["false", "true"]),
    "tiny-lora": ("model=tiny peft=lora", [""]),
}
CASES = [
    *((kind, tied, 0) for kind in ("hf", "lora", "dora") for tied in (False, True)),
    *(
        (kind, False, 0)
        for kind in ("tiny", "liger", "pissa", "tokens", "tokens-lora", "tokens-lora-head", "tiny-lora")
    ),
    *((kind, True, 3) for kind in ("hf", "lora", "dora", "lora-full", "tokens")),
    ("lora", False, 3),
    ("lora-full", False, 0),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    lab.warm()
    folder = tmp_path_factory.mktemp("models")
    return {tied: lab.save_model(folder / str(tied), tied=tied) for tied in (False, True)}


def train_and_export(arguments: str, run_dir: Path, model: Path | None) -> torch.Tensor:
    """Train, exporting at the end, which finds no difference; return the logits of the trained model."""
    trained = lab.train(arguments, run_dir, model, ids=IDS)
    for verdict in trained["verdicts"].values():
        assert verdict["verified"], verdict
        assert not (model and verdict["unchecked"]), verdict
    return trained["logits"]


IDS = list(range(40, 60))


def assert_tied_once(folder: Path) -> None:
    """Check that embedding and head are one matrix, in the file and when loaded."""
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert "lm_head.weight" not in tensors.keys()  # noqa: SIM118  # safe_open is not a mapping
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def assert_says(folder: Path, tokens: dict[str, int | list[int]], whole: bool = True) -> None:
    """Check the special tokens in the configs of an export; an adapter has no config of a model."""
    for name in ("config.json", "generation_config.json")[0 if whole else 1 :]:
        said = json.loads((folder / name).read_text())
        assert {key: said.get(key) for key in tokens} == tokens, f"{folder.name}/{name}"


def loaded_logits(folder: Path) -> torch.Tensor:
    """Return the logits of an export, loaded as its users do."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family = AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    model = family.from_pretrained(folder, dtype=torch.float32).eval()
    assert len(AutoTokenizer.from_pretrained(folder)) <= model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize(("kind", "tied", "stage"), CASES)
def test_exports_load_with_equal_logits(kind, tied, stage, models, tmp_path):
    chosen, merges = KINDS[kind]
    ranks = 2 if stage == 3 else 1
    model = None if chosen.startswith("model=tiny") else models[tied]
    for merge in merges:
        run_dir = tmp_path / f"merge-{merge}"
        option = f"checkpoint.hf.merge={merge} " if merge else ""
        arguments = (
            f"{chosen} {option}deepspeed=zero{stage} ranks={ranks} trainer.gradient_accumulation_steps={3 - ranks}"
        )
        expected = lab.in_ranks(ranks, train_and_export, arguments, run_dir, model)
        whole = merge != "false"
        assert (run_dir / "export" / "model.safetensors").exists() is whole
        torch.testing.assert_close(loaded_logits(run_dir / "export"), expected, atol=1e-5, rtol=0)
        if tied and kind == "hf":
            assert_tied_once(run_dir / "export")
        done = lab.in_ranks(1, lab.perform, f"{arguments} task=export", run_dir / "task-export", model)
        assert done["verification"]["export-step-00000002"]["verified"], done
        again = run_dir / "export-step-00000002"
        torch.testing.assert_close(loaded_logits(again), expected, atol=1e-5, rtol=0)
        if whole:  # training switches the cache off; generation with an export needs it
            assert json.loads((again / "config.json").read_text())["use_cache"] is True
        for folder in (run_dir / "export", again):  # the model said 2, the default of Llama: `<|im_start|>` here
            assert_says(folder, {"eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 1}, whole)
        for name in ("tokenizer.json", "chat_template.jinja"):
            assert (again / name).read_bytes() == (run_dir / "export" / name).read_bytes()


def test_generation_ends_at_every_stop_token_that_was_trained(models, tmp_path):
    """In exports by the run and from its checkpoints, including a checkpoint that does not record the tokens."""
    template = (ASSETS / "tokenizer" / "chat_template.jinja").read_text()
    stop = "{{ '<|im_end|>' }}{% endgeneration %}"
    assert stop in template
    either = "{{ '<|im_end|>' if message.content | length > 300 else '<|eom|>' }}{% endgeneration %}"
    (tmp_path / "template.jinja").write_text(template.replace(stop, either))
    arguments = (
        f"tokenizer.chat_template={tmp_path}/template.jinja tokenizer.add_special_tokens=['<|eom|>'] data.max_length=512 "
        "model.hf_config_kwargs={max_position_embeddings:512} "
        "checkpoint.hf.save_every_n_steps=1 checkpoint.deepspeed.save_every_n_steps=1"
    )
    run_dir, most_frequent_first = tmp_path / "run", {"eos_token_id": [4096, 3], "pad_token_id": 0}
    lab.in_ranks(1, lab.perform, arguments, run_dir, models[False])
    for name in ("export", "export-step-00000001"):
        assert_says(run_dir / name, most_frequent_first)
    assert [written_tokens(run_dir / "export", token) for token in (3, 4096, 2)] == [3, 3, 7]
    forget_stop_tokens(run_dir / "checkpoints" / "step-00000001" / "manifest.json")
    shutil.rmtree(run_dir / "export-step-00000001")
    for step in (1, 2):
        export = f"{arguments} task=export from_checkpoint={step}"
        lab.in_ranks(1, lab.perform, export, run_dir / "task-export", models[False])
        assert_says(run_dir / f"export-step-{step:08d}", most_frequent_first)


def written_tokens(folder: Path, token: int) -> int:
    """Return how many tokens, at most 7, an export generates if `token` is forced from the third one on."""
    from transformers import AutoModelForCausalLM, LogitsProcessorList

    def write(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.tensor([token if ids.shape[1] >= 7 else 40])
        return torch.full_like(scores, -100.0).index_fill(1, forced, 0.0)

    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt, processors = torch.tensor([IDS[:5]]), LogitsProcessorList([write])
    return model.generate(prompt, max_new_tokens=7, logits_processor=processors).shape[1] - 5


def forget_stop_tokens(manifest: Path) -> None:
    """Remove the stop tokens from a checkpoint's manifest, as in an older version."""
    body = json.loads(manifest.read_text())
    del body["self_sha256"], body["stop_tokens"]
    manifest.write_text(json.dumps({**body, "self_sha256": store._digest(body)}))
