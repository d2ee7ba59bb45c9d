"""Samples: generations from fixed prompts, in the file, the report and the trackers, at every ZeRO stage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from arctic_hydra.callback.samples import Samples
from arctic_hydra.errors import StateFileError
from arctic_hydra.metrics import read_samples
from tests.command import SMALL, only_run, run
from tests.converter import lab
from tests.ranks import run_ranks

CHATS = "data.eval_sources.chat.sample_count=60 trainer.eval_frequency=1"


def _lines(run_dir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def test_prompts_are_required() -> None:
    with pytest.raises(ValueError, match=r"prompts: got \[\], expected at least one text, such as"):
        Samples(prompts=[])


def test_samples_are_written_reported_and_tracked(tmp_path):
    from mlflow import MlflowClient

    prompts = """"callback.samples.prompts=['What is 2 + 2?','Say hello to <me>']" """
    arguments = (
        f"{SMALL} callback=[samples] {prompts} callback.samples.max_new_tokens=4 log.report=true trainer.train_iters=2"
    )
    run(arguments, tmp_path)
    run_dir = only_run(tmp_path)
    lines = _lines(run_dir)
    assert [(line["step"], line["prompt"]) for line in lines] == [
        (step, prompt) for step in (0, 2) for prompt in ("What is 2 + 2?", "Say hello to <me>")
    ]
    assert "<h2>Samples</h2>" in (page := (run_dir / "report.html").read_text()) and "Say hello to &lt;me&gt;" in page
    state = json.loads((run_dir / "tracking-mlflow.json").read_text())
    artifacts = MlflowClient(tracking_uri=state["uri"]).list_artifacts(state["run_id"])
    assert {"samples.jsonl", "config.yaml"} <= {item.path for item in artifacts}


def test_a_template_that_never_ends_a_prompt_is_ended(tmp_path):
    """One that renders the conversations of training well, and not the prompt of a sample."""
    body = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    attack = "{% if messages[0].content == 'BOMB' %}{{ 'x' * 10**10 }}{% endif %}<|im_start|>assistant\n{% endif %}"
    (tmp_path / "template.jinja").write_text(body + attack)
    arguments = "callback=[samples] callback.samples.prompts=[BOMB] tokenizer.chat_template=template.jinja tracking=[]"
    done = run(f"{SMALL} {arguments} trainer.train_iters=1", tmp_path, code=1)
    assert "error: tokenizer.chat_template: the template takes more than 4,096 MiB of memory" in done.stderr


@pytest.mark.parametrize("stage", [2, 3])
def test_they_are_those_of_transformers_at_every_stage(stage, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lab.warm()
    model = lab.save_model(tmp_path / "model", max_position_embeddings=512)
    arguments = (
        f"{CHATS} deepspeed=zero{stage} callback=[samples] callback.samples.prompts=[Hello] callback.samples.max_new_tokens=5 "
        "callback.samples.as_chat=false checkpoint=[hf] ranks=2 data.max_length=512"
    )
    run_ranks(2, lab.perform, arguments, tmp_path / "run", model)
    lines = _lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "export")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    inputs = tokenizer("Hello", return_tensors="pt")
    made = trained.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert lines[-1]["completion"] == tokenizer.decode(made, skip_special_tokens=True)


def test_a_resumed_run_has_each_sample_once(tmp_path):
    lab.warm()
    model = lab.save_model(tmp_path / "model", max_position_embeddings=512)
    arguments = (
        f"{CHATS} callback=[samples] callback.samples.prompts=[Hello] callback.samples.max_new_tokens=2 data.max_length=512 "
        "checkpoint=[deepspeed]"
    )
    run_ranks(1, lab.perform, f"{arguments} trainer.exit_iteration=1", tmp_path / "run", model)
    with (tmp_path / "run" / "samples.jsonl").open("a") as file:
        file.write('{"step": 2, "prompt": "Hello", "completion": "of a start that was killed later"}\n{"step": 3, "pro')
    run_ranks(1, lab.perform, arguments, tmp_path / "run", model)
    assert [line["step"] for line in _lines(tmp_path / "run")] == [0, 1, 2]


def test_secrets_in_prompts_and_completions_are_masked_and_links_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOY_TOKEN", "supersecretvalue99")
    path = tmp_path / "samples.jsonl"
    Samples()._write(path, 1, {"say supersecretvalue99": "supersecretvalue99!"})
    assert read_samples(path) == [{"step": 1, "prompt": "say ***", "completion": "***!"}]
    with path.open("a") as file:
        file.write('x\n[1]\n{"step": 2}\n{"step": 3, "prompt": "a", "completion": "b"}')
    assert len(read_samples(path)) == 1, "damaged lines and one that is not complete are left out"
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StateFileError, match="is a symbolic link"):
        Samples()._write(tmp_path / "link", 1, {"a": "b"})
