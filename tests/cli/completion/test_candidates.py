"""What completes a line, without a shell."""

from __future__ import annotations

import pytest

from arctic_hydra.cli.completion.candidates import complete, read_line


def completed(line: str) -> list[str]:
    return [candidate.text for candidate in complete(read_line(line))]


@pytest.mark.parametrize(
    ("line", "arguments", "word", "quote"),
    [
        ("arctic-hydra tr", [], "tr", ""),
        ("arctic-hydra seed=1 ", ["seed=1"], "", ""),
        ("python -u -m arctic_hydra -m 'a=[1", ["-m"], "a=[1", "'"),
        ('~/bin/python3 -m arctic_hydra a=x\\ y "b', ["a=x y"], "b", '"'),
        ("arctic-hydra a\\", [], "a", ""),
        ("", [], "", ""),
    ],
)
def test_a_line_is_split_as_a_shell_does(line, arguments, word, quote):
    found = read_line(line)
    assert (found.arguments, found.word, found.quote) == (arguments, word, quote)


CASES = [
    ("arctic-hydra tra", ["tracking=", "trainer=", "trainer.", "tracking."]),
    ("python -m arctic_hydra optimizer=", ["optimizer=adamw", "optimizer=cpu_adam", "optimizer=fused_adam", "optimizer=muon"]),
    ("arctic-hydra trainer=dpo trainer.re", ["trainer.reference=", "trainer.reference_path="]),
    ("arctic-hydra experiment=dpo trainer.reference=c", ["trainer.reference=copy", "trainer.reference=cached"]),
    ("arctic-hydra trainer=none_such trainer.max_m", ["trainer.max_minutes="]),
    ("arctic-hydra -m trainer=sft,dpo trainer.z", ["trainer.z_loss="]),
    ("arctic-hydra data=json data.sources.", ["data.sources.json."]),
    ("arctic-hydra hydra/launcher=slurm hydra.launcher.part", ["hydra.launcher.partition="]),
    ("arctic-hydra hydra/", ["hydra/launcher=", "hydra/sweeper="]),
    ("arctic-hydra ++checkpoint.", ["++checkpoint.deepspeed.", "++checkpoint.hf."]),
    ("arctic-hydra ~tracki", ["~tracking", "~tracking."]),
    ("arctic-hydra task=e", ["task=evaluate", "task=export"]),
    ("arctic-hydra data.packing=", ["data.packing=true", "data.packing=false"]),
    ("arctic-hydra -m model.dtype=bf16,", ["model.dtype=bf16,bf16", "model.dtype=bf16,fp16", "model.dtype=bf16,fp32"]),
    ("arctic-hydra tracking=[mlflow,w", ["tracking=[mlflow,wandb]", "tracking=[mlflow,wandb,"]),
    ("arctic-hydra converter=", ["converter=float8", "converter=freeze", "converter=tiled_mlp", "converter=["]),
    ("arctic-hydra +source@data.sources.more=par", ["+source@data.sources.more=parquet"]),
    ("arctic-hydra seed=", []),
    ("arctic-hydra no.such.key=", []),
    ("arctic-hydra --help trainer=dp", ["trainer=dpo"]),
    ("arctic-hydra --help sched", ["scheduler", "scheduler."]),
    ("arctic-hydra --config", ["--config-name", "--config-dir"]),
    ("arctic-hydra --cfg ", ["job", "hydra", "all"]),
    ("arctic-hydra -sc ", ["install=bash", "install=zsh", "install=fish"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), CASES, ids=[line for line, _ in CASES])
def test_a_line_is_completed(line, expected):
    assert completed(line) == expected


def test_an_empty_word_has_groups_and_the_keys_of_the_run():
    found = completed("arctic-hydra ")
    assert {"trainer=", "hydra/launcher=", "experiment=", "seed=", "name="} <= set(found)
    assert not [text for text in found if text.endswith(".")]


def test_paths_options_of_a_folder_and_texts(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\n# What I try.\ntrainer: {epochs: 2}\n"
    )
    (tmp_path / "mine.jsonl").write_text("")
    (tmp_path / ".hidden").write_text("")
    key = "data.sources.json.path"
    assert completed(f"arctic-hydra data=json {key}=mi") == [f"{key}=mine/", f"{key}=mine.jsonl"]
    assert completed(f"arctic-hydra data=json '{key}=[a.jsonl,mine.") == [f"{key}=[a.jsonl,mine.jsonl"]
    assert completed("arctic-hydra -m init_from=a,mi") == ["init_from=a,mine/", "init_from=a,mine.jsonl"]
    assert completed(f"arctic-hydra data=json {key}=.hi") == [f"{key}=.hidden"]
    assert completed(f"arctic-hydra init_from={tmp_path}/mine/e") == [f"init_from={tmp_path}/mine/experiment/"]
    assert completed("arctic-hydra init_from=no/such/") == []
    (tmp_path / "my.py").write_text("")
    assert completed("arctic-hydra code=m") == ["code=mine/", "code=my.py"] and completed("arctic-hydra cod") == [
        "code="
    ]
    assert completed("arctic-hydra task=chat prompts=mine.") == ["prompts=mine.jsonl"]
    assert completed("arctic-hydra --config-dir ") == ["mine/"]
    (tmp_path / "mine" / "whole.yaml").write_text("defaults: [config, _self_]\n")
    assert completed("arctic-hydra --config-dir mine -cn wh") == ["whole"] and completed("arctic-hydra -p tra") == []
    assert completed("arctic-hydra --config-dir mine experiment=o") == ["experiment=own"]
    [own] = complete(read_line("arctic-hydra --config-dir=mine experiment=o"))
    assert own.about == "What I try."


def test_nothing_on_the_line_is_imported(tmp_path):
    """Neither the file of `code=` nor a package of the search path; a line that cannot be composed is completed all the same."""
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')\n")
    assert completed("arctic-hydra code=mine.py hydra.searchpath=[pkg://antigravity] seed=${oc.env:X} trainer.z") == [
        "trainer.z_loss="
    ]
