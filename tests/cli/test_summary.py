"""What a run prints at its end."""

from __future__ import annotations

import json

import pytest

from arctic_hydra import run_directory
from arctic_hydra.cli import summary
from arctic_hydra.cli.summary import print_result

FINISHED = {
    "status": run_directory.FINISHED,
    "step": 2,
    "first_loss": 2.0,
    "last_loss": 1.0,
    "progress": {"epoch": 1},
}
"""Result of a run, apart from its evaluations."""


@pytest.mark.parametrize(
    ("export", "config", "kind", "loader"),
    [
        ("export", "config.json", "llama", "transformers:\n  AutoModelForCausalLM.from_pretrained"),
        ("mine", "adapter_config.json", "org/base", "peft:\n  AutoPeftModelForCausalLM.from_pretrained"),
        ("mine", "config.json", "arctic_hydra_spec", "arctic_hydra.model.spec:\n  load_export"),
        ("mine", "config.json", "", ""),
        ("mine", "adapter_config.json", "", ""),
    ],
)
def test_the_summary_names_the_export_and_the_function_that_loads_it(export, config, kind, loader, tmp_path, capsys):
    """transformers alone gives the model below an adapter no rows for added tokens."""
    run_dir = tmp_path / "run"
    for folder in (run_dir / export, run_dir / f"{export}-step-00000001"):
        folder.mkdir(parents=True)
        content = {"model_type": kind, "base_model_name_or_path": kind} if kind else {"peft_type": "LORA"}
        (folder / config).write_text(json.dumps(content))
        (folder / "tokenizer_config.json").touch()
    (run_dir / "record.json").write_text('{"overrides": []}')
    print_result(run_directory.RunDirectory(run_dir), {**FINISHED, "first_evaluation": {}, "last_evaluation": {}})
    out = capsys.readouterr().out
    assert f"export       run/{export}\n" in out
    assert f"next: load it with {loader}('run/{export}')" in out if loader else "load it" not in out
    assert ("task=chat from_checkpoint=run\n" in out) == bool(loader)
    content = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "task_type": "SEQ_CLS"}
    (run_dir / export / config).write_text(json.dumps({**content, "base_model_name_or_path": "org/base"}))
    print_result(run_directory.RunDirectory(run_dir), {**FINISHED, "first_evaluation": {}, "last_evaluation": {}})
    more = ", num_labels=1" if config == "adapter_config.json" else ""
    out = capsys.readouterr().out
    assert f"ModelForSequenceClassification.from_pretrained('run/{export}'{more})" in out and "task=chat" not in out


def test_the_longer_run_raises_the_limit_that_the_run_had_wherever_it_was_set(tmp_path, capsys):
    (tmp_path / "record.json").write_text('{"overrides": ["experiment=mine"]}')
    figures = {"status": run_directory.FINISHED, "step": 2, "first_loss": 2.0, "last_loss": 1.0, "horizon": 2}
    result = {**figures, "progress": {"epoch": 1}, "first_evaluation": {}, "last_evaluation": {}}
    for limit, longer in ((0, "trainer.epochs=3"), (2, "trainer.train_iters=6")):
        run_directory.RunDirectory(tmp_path).write_run({"trainer": {"train_iters": limit}, "checkpoint": {}})
        print_result(run_directory.RunDirectory(tmp_path), result)
        assert longer in capsys.readouterr().out


def test_no_longer_run_is_proposed_if_a_callback_would_end_it_as_well(tmp_path, capsys):
    (tmp_path / "record.json").write_text('{"overrides": ["callback=[early_stopping]"]}')
    figures = {"status": run_directory.FINISHED, "step": 2, "first_loss": 2.0, "last_loss": 1.0, "horizon": 5}
    result = {**figures, "progress": {"epoch": 1}, "first_evaluation": {}, "last_evaluation": {}}
    for reason in ("", "eval/loss has not improved"):
        print_result(run_directory.RunDirectory(tmp_path), {**result, "stop_reason": reason})
        out = capsys.readouterr().out
        assert ("ended before step 5: eval/loss" in out, "train longer" in out) == (bool(reason), not reason)


def test_what_the_same_command_does_after_a_wrong_export_depends_on_the_checkpoints(tmp_path, capsys):
    run_dir = tmp_path / "outputs" / "default" / "0123456789"
    directory = run_directory.RunDirectory(run_dir)
    run_dir.mkdir(parents=True)
    directory.write_run({"checkpoint": {"hf": {}, "deepspeed": {"output_dir": str(tmp_path / "large")}}})
    figures = {"status": run_directory.FAILED, "step": 2, "first_loss": 2.0, "last_loss": 1.0, "error": "it differs: x"}
    result = {**figures, "progress": {"epoch": 1}, "first_evaluation": {}, "last_evaluation": {}}
    print_result(directory, result)
    again = "the same command trains again, because there is no checkpoint"
    assert f"error: it differs; the files stay, and {again}\n" in capsys.readouterr().err
    (tmp_path / "large/default/0123456789/checkpoints/step-00000002").mkdir(parents=True)
    print_result(directory, result)
    assert "error: it differs; the files stay, and the same command exports again\n" in capsys.readouterr().err
    stopped = {"status": run_directory.STOPPED, "step": 2, "horizon": 3, "stop_reason": "received SIGTERM"}
    print_result(directory, stopped)
    assert "the same command resumes\n" in capsys.readouterr().out
    config = directory.config()
    directory.write_run({**config, "fresh": True})
    print_result(directory, stopped)
    assert "the same command without fresh=true resumes\n" in capsys.readouterr().out
    directory.write_run(config)
    longer = {**result, "status": run_directory.FINISHED, "error": ""}
    directory.update_record(overrides=["name=default"])
    print_result(directory, longer)
    out = capsys.readouterr().out
    assert "extend=" in out and "or on your own data" in out
    directory.update_record(overrides=["--config-dir", "my conf", "model=liger", "data.max_length=512", "fresh=true"])
    print_result(directory, longer)
    same = "--config-dir 'my conf' model=liger data.max_length=512"
    assert f"  python -m arctic_hydra {same} data=json data.sources.json.path=<your.jsonl>\n" in capsys.readouterr().out
    for chosen in (
        "data=text",
        "data=json",
        "++data=json",
        "data/sources=[a]",
        "data.sources.json.path=a",
        "--config-name",
    ):
        directory.update_record(overrides=["seed=1", chosen, "x"])
        print_result(directory, longer)
        assert "your own data" not in capsys.readouterr().out


def test_one_evaluation_is_no_change(tmp_path, capsys):
    (tmp_path / "record.json").write_text('{"overrides": []}')
    for step, losses in ((2, "2.5000"), (0, "2.5000 -> 2.5000")):
        ends = {"first_evaluation": {"step": step, "eval/loss": 2.5}, "last_evaluation": {"step": 2, "eval/loss": 2.5}}
        print_result(run_directory.RunDirectory(tmp_path), {**FINISHED, **ends})
        assert f"evaluation loss {losses}\n" in capsys.readouterr().out


def test_what_is_kept_of_a_run_that_stopped_while_scores_were_computed(tmp_path, capsys):
    result = {"status": run_directory.STOPPED, "step": 0, "horizon": 3, "stop_reason": "received SIGTERM", "scores": []}
    print_result(run_directory.RunDirectory(tmp_path), result)
    out = capsys.readouterr().out
    assert "received SIGTERM" in out and "the complete parts are stored, and the same command computes the" in out
    assert "nothing was saved" not in out


def test_answers_that_were_cut_are_counted(capsys):
    summary._print_exact_match({"correct": 0, "questions": 3, "cut": 2, "answers": "a.jsonl"})
    assert capsys.readouterr().out.splitlines()[1] == (
        "2 of 3 answers did not end, so their results may be missing: raise max_new_tokens"
    )
