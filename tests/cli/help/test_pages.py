"""What the pages say: everything, once, in 80 columns."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from arctic_hydra.cli.help import pages
from arctic_hydra.cli.help.layout import Page
from arctic_hydra.config import Task


def lines_of(write, *arguments) -> list[str]:
    page = Page()
    write(page, *arguments)
    return page.text().splitlines()


def keys_in(lines: list[str]) -> list[str]:
    return [match[1] for line in lines if (match := re.match(r"  ([a-z][\w./<>]*)=", line))]


def test_the_overview_names_groups_options_tasks_and_keys(known):
    lines = lines_of(pages.overview, known, "python -m arctic_hydra")
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 80
    for group, names in known.groups.items():
        listed = "those of data/sources" if group == "data/eval_sources" else ", ".join(names)
        assert f" {group} {listed} " in text, group
    assert all(f" {task.name} " in text for task in Task)
    assert sorted(keys_in(lines[: lines.index("Flags")])) == sorted(
        key.name for key in known.run_keys if key.name != "task"
    )


def test_every_task_is_described():
    assert [name for name, text in pages.task_docs().items() if not text] == []


def test_the_page_of_a_group_has_each_key_once_within_80_columns(known):
    for group, names in known.groups.items():
        lines = lines_of(pages.group_page, known, group)
        assert max(map(len, lines)) <= 80, group
        assert not {line: count for line, count in Counter(lines).items() if count > 1 and re.match(r"  \w\S*=", line)}
        if group.startswith("data/") or group == "experiment":
            continue
        shown = Counter(key.rpartition(".")[2] for key in keys_in(lines))
        expected = {key.field.rpartition(".")[2] for name in names for key in known.option(group, name).keys}
        assert shown == Counter(expected), group


def test_options_that_differ_are_noted_at_the_common_key(known):
    text = " ".join(" ".join(lines_of(pages.group_page, known, "trainer")).split())
    assert (
        "trainer.beta=0.1 number >= 0 Scale of the differences of log-probabilities; above 0. Default 0.0 with distill; "
        in text
    )
    assert "With distill: number 0 to 1; 0: KL(teacher||student)" in text
    assert "KEYS OF EVERY OPTION Length trainer.epochs=1 integer 0 to 1e6, in epochs Passes over the data;" in text
    text = " ".join(lines_of(pages.group_page, known, "checkpoint"))
    assert "checkpoint.<option>.enabled=true" in text and "checkpoint.hf.merge=null" in text


def test_a_page_in_full_has_the_whole_text_of_a_key_and_of_an_option(known):
    class InFull(Page):
        in_full = True

    for page, extent in ((Page(), "first sentences"), (InFull(), "everything")):
        pages.group_page(page, known, "experiment")
        pages.group_page(page, known, "checkpoint")
        text = " ".join(page.text().split())
        whole = extent == "everything"
        assert "Additionally keep this many of the best checkpoints by `best_metric`; only evaluated" in text
        assert ("A difference ends the run with exit code 1; the export stays." in text) is whole
        assert ("Needs: " in text and "Expect: " in text) is whole


def test_what_most_options_require_comes_first(known):
    assert keys_in(lines_of(pages.group_page, known, "source"))[0] == "data.sources.<name>.path"
    assert keys_in(lines_of(pages.option_page, known, known.option("model", "spec")))[0] == "model.spec"


@pytest.mark.parametrize(
    ("option", "texts"),
    [
        (
            ("trainer", "dpo"),
            ["relative to a reference model.", "Also chooses data=preference.", "trainer.loss_type=sigmoid"],
        ),
        (("data", "ultrachat"), ["UltraChat 200k by hub id", "  data.max_length=2048 "]),
        (
            ("experiment", "dpo"),
            [
                "model=liger, trainer=dpo, data=ultrafeedback",
                "Example: python -m arctic_hydra experiment=dpo model.name_or_path=<",
                "\n\nNeeds: ",
                "\n\nExpect: a first loss of 0.6931",
                "  checkpoint.deepspeed.save_every_n_steps=100",
            ],
        ),
        (("data/sources", "ultrachat"), ["  data.sources.ultrachat.path=HuggingFaceH4/ultrachat_200k"]),
        (("tracking", "none"), ["It has no keys."]),
    ],
)
def test_the_page_of_an_option(known, option, texts):
    lines = lines_of(pages.option_page, known, known.option(*option))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(part in text or part in " ".join(text.split()) for part in texts), text
    assert len(keys_in(lines)) == len(set(keys_in(lines)))
