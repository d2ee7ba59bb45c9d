"""The recipes in conf/experiment: each says what it is for, needs and does first, and trains a tiny model for two steps."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from arctic_hydra.__main__ import main
from arctic_hydra.assets import ASSETS
from tests.command import ROOT, losses, only_run, run
from tests.converter.lab import save_model
from tests.sweep.sweeps import table, trials

FOLDER = ROOT / "conf" / "experiment"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
ELSEWHERE = {
    "distill": "trainer/distillation/test_distill.py",
    "dpo": "trainer/preference/test_recipes.py",
    "dpo_lora": "trainer/preference/test_recipes.py",
    "kto": "trainer/preference/test_kto.py",
    "reward": "trainer/preference/test_reward.py",
}
"""Recipes that the tests of their trainers run."""

CHATS = "data.sources.ultrachat.sample_count=12 data.eval_sources.ultrachat.sample_count=4"
SMALLER = {
    "sft_ultrachat": CHATS,
    "lora": CHATS,
    "qlora": CHATS,
    "pretrain": "data.sources.text.path=texts.jsonl data.train_eval_split=[0.5,0.5]",
    "long_context": "data.sources.longalign.sample_count=12 ranks=2 trainer.sequence_parallel_size=2",
    "zero3_offload": f"{CHATS} optimizer=adamw",  # the optimizer of the recipe needs a compiler
}
"""Overrides by recipe."""
ONE_STEP = "trainer.train_iters=1 trainer.eval_frequency=0"
TWO_STEPS = (
    "model.fallback=true model.dtype=fp32 data.max_length=512 data.num_proc=1 tracking=[] log.report=false "
    "trainer.micro_batch_size=1 trainer.gradient_accumulation_steps=1 trainer.eval_at_start=false "
    "checkpoint.deepspeed.save_every_n_steps=0"
)


def paragraphs(recipe: str) -> list[str]:
    """Return the paragraphs of the comment at the head of a recipe, the first of which begins with its command."""
    head = re.match(r"(?:#.*\n)+", (FOLDER / f"{recipe}.yaml").read_text())
    assert head, recipe
    lines = [line.removeprefix("#").strip() for line in head[0].splitlines()]
    assert lines.pop(0) == "@package _global_", recipe
    return [" ".join(part.split("\n")) for part in "\n".join(lines).split("\n\n")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_and_its_row_in_the_documentation_say_the_same(recipe):
    what, needs, expect = paragraphs(recipe)
    command = re.match(r"(python -m arctic_hydra (?:-m )?experiment=\w+(?: \S+=<[^>]+>)*) ", what)
    assert command and needs.startswith("Needs: ") and expect.startswith("Expect: ")
    page = (ROOT / "docs" / "recipes.md").read_text()
    [row] = re.findall(rf"^\| `{recipe}` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert list(row) == [
        what.removeprefix(command[0]),
        needs.removeprefix("Needs: "),
        expect.removeprefix("Expect: "),
    ]
    words = shlex.split(re.sub(r"=<[^>]+>", "=", command[1]))
    assert re.search(rf"^\$ {re.escape(' '.join(words))}\S*$", page, re.MULTILINE), words


def test_each_recipe_is_run():
    trained = {*SMALLER, *ELSEWHERE, "lr_sweep", "search", "slurm"}
    assert trained == set(RECIPES)
    named = [recipe for recipe, path in ELSEWHERE.items() if f'"{recipe}"' not in (ROOT / "tests" / path).read_text()]
    assert [
        recipe for recipe in named if f"experiment={recipe} " not in (ROOT / "tests" / ELSEWHERE[recipe]).read_text()
    ] == []


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """Return overrides that shrink any recipe: a model of 32 channels, and the bundled chats in the layout of UltraChat."""
    model = save_model(tmp_path_factory.mktemp("model") / "llama", max_position_embeddings=512)
    return f"{TWO_STEPS} model.name_or_path={model}"


def sources(recipe: str) -> str:
    name = {"pretrain": "", "long_context": "longalign"}.get(recipe, "ultrachat")
    place = ASSETS / "chat" / ("train_sft.jsonl" if name == "longalign" else "")
    return f"data.sources.{name}.path={place}" if name else ""


@pytest.mark.parametrize("recipe", SMALLER)
def test_a_recipe_trains_a_tiny_model(recipe, small, tmp_path):
    texts = [{"text": row} for row in (ROOT / "LICENSE").read_text().split("\n\n")[:16]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    run(f"experiment={recipe} {small} {sources(recipe)} {SMALLER[recipe]} trainer.train_iters=2", tmp_path)
    folder = only_run(tmp_path, recipe)
    assert len(losses(folder)) == 2 and list((folder / "export").glob("*.safetensors"))


def test_the_sweep_compares_its_rates(small, tmp_path):
    """Values on the command line replace those of the recipe."""
    run(f"-m experiment=lr_sweep {small} {sources('lora')} {CHATS} {ONE_STEP} optimizer.lr=1e-3,2e-3", tmp_path)
    rows = table(tmp_path, "lr_sweep")
    assert [row["optimizer.lr"] for row in rows] == ["0.001", "0.002"]
    assert [row["status"] for row in rows] == ["finished"] * 2


def test_the_search_tries_rates_and_ranks(small, tmp_path):
    more = "trainer.eval_frequency=1 hydra.sweeper.n_trials=1"
    run(f"-m experiment=search {small} {sources('lora')} {CHATS} {ONE_STEP} {more}", tmp_path)
    [trial] = trials(tmp_path, "search")
    assert trial.state.name == "COMPLETE" and {*trial.params} == {"optimizer.lr", "peft.r"}


def test_the_recipe_for_slurm_prints_its_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    partition = "hydra.launcher.partition=gpu"
    assert main(["experiment=slurm", partition, "hydra.launcher.dry_run=true", "model.fallback=true"]) == 0
    script = capsys.readouterr().out
    assert all(
        f"#SBATCH --{option}\n" in script for option in ("nodes=2", "gpus-per-node=8", "partition=gpu", "time=720")
    )
