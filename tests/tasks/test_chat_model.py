"""What `task=chat` loads: exports, adapters on their base, models without a template; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from arctic_hydra.errors import ArcticHydraError
from arctic_hydra.run_directory import RunDirectory
from arctic_hydra.tasks import chat_model
from tests.composing import built, composed
from tests.converter import lab


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """A model in the layout of transformers with the bundled tokenizer, in bf16."""
    folder = lab.save_model(tmp_path_factory.mktemp("models") / "export")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = [1, 5]
    model.save_pretrained(folder)
    return folder


def _load(which: Any, folder: Path, *overrides: str) -> chat_model.ChatModel:
    run = built("task=chat", *([f"from_checkpoint={which}"] if which else []), *overrides)
    return chat_model.load(run, RunDirectory(folder / "outputs" / "default" / "0123456789"))


def _with_run(folder: Path, *overrides: str) -> Path:
    """Make `folder` a run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"config": composed(*overrides)}))
    return folder


def test_an_export_has_its_dtype_its_stop_tokens_and_a_cache(export, tmp_path):
    loaded = _load(export, tmp_path)
    assert loaded.model.dtype == torch.bfloat16 and not loaded.model.training and not loaded.continues_text
    assert {1, 5, loaded.tokenizer.eos_token_id} == set(loaded.stop_tokens)
    assert loaded.model.config._attn_implementation == "sdpa"


def test_an_adapter_is_loaded_onto_its_base_with_its_own_stop_tokens(export, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(export), LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    AutoTokenizer.from_pretrained(export).save_pretrained(folder)
    GenerationConfig(eos_token_id=[7]).save_pretrained(folder)
    loaded = _load(folder, tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        difference = (loaded.model(ids).logits - adapted.eval()(ids).logits).abs().max()
    assert difference < 1e-2 and 7 in loaded.stop_tokens and 5 not in loaded.stop_tokens
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ArcticHydraError, match="is an adapter whose base model is in no file; export the merged model"):
        _load(folder, tmp_path)
    folder.rename(_with_run(tmp_path / "run") / "export")
    with pytest.raises(ArcticHydraError, match="run/checkpoints contains no checkpoint"):  # which has the base too
        _load(tmp_path / "run", tmp_path)


def test_code_of_a_repository_runs_only_if_the_command_asks_for_it(export, tmp_path):
    overrides = ("model=hf", "model.name_or_path=org/base", "model.trust_remote_code=true")
    run_dir = _with_run(tmp_path / "run", *overrides)
    shutil.copytree(export, run_dir / "export")
    for where in (run_dir, run_dir / "export"):
        with pytest.raises(
            ArcticHydraError, match=r"^model.trust_remote_code: got true from .*/run/run.json, but it lets"
        ):
            _load(where, tmp_path)
    assert _load(run_dir / "export", tmp_path, *overrides).where.endswith("run/export")


def test_a_model_of_texts_continues_them(tmp_path):
    plain = lab.save_model(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    assert _load(plain, tmp_path).continues_text
    lab.save_model(
        _with_run(tmp_path / "run", "trainer=causal", "data=text", "data.sources.text.path=a.txt") / "export"
    )
    for where in (tmp_path / "run", tmp_path / "run" / "export"):
        loaded = _load(where, tmp_path)
        assert loaded.continues_text and loaded.tokenizer.chat_template, "trained on texts, whatever its tokenizer has"


def test_a_model_of_plain_prompts_continues_them_as_it_was_trained(export, tmp_path):
    """Rows of `prompt` and `completion` as texts are not rendered with the template, so the prompt of a chat is not either."""
    run_dir = _with_run(tmp_path / "run")
    shutil.copytree(export, run_dir / "export")
    for plain, continues in ((3, True), (2, False), (0, False)):
        prepared = {"rows": 4, "dropped": {"malformed": 1}, "without_template": plain}
        statistics = {"train": {"sources": {"json": {"prepared": prepared}}}, "model": {}}
        RunDirectory(run_dir).update_record(statistics=statistics)
        assert _load(run_dir, tmp_path).continues_text == continues


def test_what_is_no_language_model_is_refused_in_one_sentence(export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = tmp_path / "scores"
    for path in (scores, tmp_path / "less"):
        path.mkdir()
        for file in export.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((export / "config.json").read_text())
    (scores / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForSequenceClassification"]}))
    (tmp_path / "less" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    for name, file, value in (
        ("text", "generation_config.json", {"eos_token_id": "x"}),
        ("nested", "generation_config.json", {"eos_token_id": [[1]]}),
        ("kernel", "config.json", {"_attn_implementation": "evil/kernel"}),
        ("huge", "generation_config.json", {"pad_token_id": 1 << 70}),
        ("long", "tokenizer_config.json", {"model_max_length": "x"}),
    ):
        shutil.copytree(export, tmp_path / name)
        held = json.loads((export / file).read_text())
        (tmp_path / name / file).write_text(json.dumps({**held, **value}))
    (tmp_path / "a.txt").write_text("")
    _with_run(tmp_path / "reward", "trainer=reward", "data.sources.preference.path=p.jsonl")
    _with_run(tmp_path / "new")
    for which, message in (
        (None, "task: got chat, but outputs/default/0123456789 does not exist: this config has never been trained"),
        ("3", "task: got chat, but outputs/default/0123456789 does not exist"),
        (
            "./absent",
            "from_checkpoint: got ./absent, which is not a directory; expected the path of a run, a checkpoint or an",
        ),
        ("a.txt", "from_checkpoint: got a.txt, which is not a directory"),
        (
            "nobody/absent",
            "from_checkpoint: 'nobody/absent' is not a local path and cannot be loaded|from_checkpoint: got",
        ),
        (
            scores,
            "from_checkpoint: .*/scores holds a model that gives scores instead of text; expected a language model",
        ),
        (tmp_path / "less", "from_checkpoint: .*/less lacks 9 weights of LlamaForCausalLM, such as"),
        (
            tmp_path / "text",
            "from_checkpoint: the generation config of .*/text has eos_token_id='x', expected the number of a",
        ),
        (
            tmp_path / "nested",
            r"from_checkpoint: the generation config of .*/nested has eos_token_id=\[\[1\]\], expected",
        ),
        (
            tmp_path / "kernel",
            "from_checkpoint: .*/kernel: config.json: _attn_implementation: got 'evil/kernel', expected",
        ),
        (
            tmp_path / "huge",
            "from_checkpoint: the generation config of .*/huge has pad_token_id=1180591620717411303424, exp",
        ),
        (
            tmp_path / "long",
            "from_checkpoint: the tokenizer in '.*/long' has model_max_length='x', expected a number; corr",
        ),
        (tmp_path / "reward", "task: got chat, but trainer=reward trains a model that gives scores instead of text"),
        (tmp_path / "new", "new/checkpoints contains no checkpoint; train first, or pass from_checkpoint="),
    ):
        with pytest.raises(ArcticHydraError, match=message) as found:
            _load(which, tmp_path)
        assert "\n" not in str(found.value), which
