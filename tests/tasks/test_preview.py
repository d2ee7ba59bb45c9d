"""task=preview: what is trained on stands out, on the terminal and on the page; the run is left as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arctic_hydra.data.base import Example
from arctic_hydra.report import html
from arctic_hydra.tasks import preview
from arctic_hydra.tasks.preview import heading, pieces, span
from arctic_hydra.tokenizer.bundled import BundledTokenizerFactory
from tests.command import run
from tests.data.samples import chat, write_lines


@pytest.mark.slow
def test_preview_marks_the_answers(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [chat("<b>q</b>", "\x1b[31man\x9bswer"), chat("word " * 300, "a")])
    done = run("task=preview data=json data.sources.json.path=a.jsonl data.max_length=64 data.num_proc=1", tmp_path)
    assert "[[␛[31man‹U+009B›swer<|im_end|>]]" in done.stdout and not {"\x1b", "\x9b"} & set(done.stdout)
    assert re.search(r"json +2 +1 .*\n +dropped or cut: 1 overlong, \d+ tokens lost", done.stdout)
    [folder] = (tmp_path / "outputs" / "default").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["preview.html"], "no record: the run has not begun"
    page = (folder / "preview.html").read_text()
    assert "&lt;b&gt;q&lt;/b&gt;" in page and "<mark>␛[31man‹U+009B›swer&lt;|im_end|&gt;</mark>" in page
    assert "preview.html" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_data_is_prepared_without_a_model(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [chat("q", "a é")])
    absent = "model=hf model.name_or_path=nobody/has-this-model tokenizer=bundled"
    command = f"task=preview {absent} data=json data.sources.json.path=a.jsonl data.num_proc=1"
    done = run(command, tmp_path, PYTHONIOENCODING="ascii")  # as on a terminal that lacks a character
    assert r"[[a \xe9<|im_end|>]]" in done.stdout


@pytest.mark.slow
def test_preview_shows_pairs_which_no_trainer_here_works_with(tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", [{"system": "s", "question": "q", "chosen": "yes", "rejected": "no"}])
    done = run("task=preview data=preference data.sources.preference.path=p.jsonl data.num_proc=1", tmp_path)
    prompt = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    for side, answer in (("chosen", "yes"), ("rejected", "no")):
        assert f"row 0 {side}: 24 tokens, 3 trained\n{prompt}[[{answer}<|im_end|>]]" in done.stdout
    [page] = (tmp_path / "outputs" / "default").glob("*/preview.html")
    assert "<mark>yes&lt;|im_end|&gt;</mark>" in page.read_text() and "row 0 rejected" in page.read_text()
    refused = run("data=preference data.sources.preference.path=p.jsonl", tmp_path, code=2)
    assert (
        "data: got preference (PreferenceDataFactory), but trainer=sft (SFTTrainer) works with data=sft"
        in refused.stderr
    )


def test_a_mismatched_pair_is_not_called_trained() -> None:
    assert heading(Example("s", 3, [1, 2], [0, 1], "desirable")) == "s, row 3 desirable: 2 tokens, 1 trained"
    assert (
        heading(Example("s", 3, [1, 2], [0, 1], "mismatched"))
        == "s, row 3 mismatched: 2 tokens, 1 scored for the KL only"
    )


def test_pieces_join_to_the_whole() -> None:
    tokenizer = BundledTokenizerFactory().create_tokenizer()
    ids = tokenizer("Wie? So, am Ende gut")["input_ids"]
    mask = [0, 0] + [1] * (len(ids) - 4) + [0, 1]
    found = pieces(Example("s", 0, ids, mask), tokenizer)
    assert "".join(text for text, _ in found) == tokenizer.decode(ids)
    assert [trained for _, trained in found] == [False, True, False, True]


def test_what_steers_a_terminal_is_shown_as_a_sign() -> None:
    assert html.escape_controls("\x1b[31m\x9b2J\x07\rover\x7f\x00") == "␛[31m‹U+009B›2J␇␍over␡␀"
    assert html.escape_controls("a\u202eb\u2066c\u2069") == "a‹U+202E›b‹U+2066›c‹U+2069›"
    steering = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
    assert all(
        not set(map(chr, steering)) & set(html.escape_controls(chr(code)))
        for code in set(steering) - {ord("\n"), ord("\t")}
    )
    plain = "Zeile\n\tö 漢字 שלום 👩\u200d💻"
    assert html.escape_controls(plain) == plain
    assert span(("<b>\u202e\0", True)) == "<mark>&lt;b&gt;‹U+202E›␀</mark>", "on the page too"


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=str)
def test_without_colors_a_terminal_shows_brackets(variables, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any standard output for a terminal
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    preview._print("title", [["source", "rows"], ["a", "1"]], [("row 1", [("q ", False), ("a", True)])])
    assert "in [[ ]]" in (shown := capsys.readouterr().out) and "q [[a]]" in re.sub("\x1b\\[[0-9;]*m", "", shown)
