"""`sweep.html`."""

from __future__ import annotations

import html
import json
import re

import pytest

from arctic_hydra.sweep import page, results
from arctic_hydra.sweep.page import scale
from tests.sweep.sweeps import sweep_of

NASTY = ["$_$", r"$\x$", "a^$b$", r"\$x$$", "<b>&", "/a/long/path/to/the/data/of/somebody/train.jsonl", "ü" * 40]


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_a_page_shows_any_value_as_the_text_that_it_is(kind, tmp_path):
    """matplotlib would render text between two dollar signs as a formula."""
    keys = ["data.sources.a$_$.pattern", "seed"]
    jobs = [[f"{keys[0]}={value}", f"seed={n}"] for n, value in enumerate(NASTY * 3)]
    sweep = sweep_of(tmp_path, *jobs, kind=kind)
    for n, job in enumerate(sweep.jobs):
        job.directory.create()
        job.directory.update_record(status="finished")
        (job.directory.path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": float(n % 5)}) + "\n")
    written = page.write(sweep, results.rows(sweep)).read_text()
    assert ("<h2>Importance</h2>" in written) == (kind == "search")
    shown = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", written)]
    assert {"$_$", r"$\x$", "a^$b$", r"\$x$$", "<b>&", "data.sources.a$_$.pattern"} <= set(shown)
    assert any(text.startswith("/a/long/") and text.endswith("dy/train.jsonl") and "…" in text for text in shown)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("marks", ["orange is the best, grey ones were pruned", "grey ones were pruned"])
def test_a_page_explains_its_colors(marks, tmp_path):
    """With the best job and without, of more jobs than a legend holds."""
    sweep = sweep_of(tmp_path, *[[f"seed={n}"] for n in range(12)])
    for job in sweep.jobs:
        job.directory.create()
        best = job.number == 0 and "orange" in marks
        job.mark = "" if best else "pruned"
        job.directory.update_record(status="finished" if best else "stopped")
        (job.directory.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    assert f"<p>One dot per job; {marks}.</p>" in page.write(sweep, results.rows(sweep)).read_text()


def test_axes_have_words_few_values_and_logarithms():
    assert scale(["b", "a", "b"]) == ([0.0, 1.0, 0.0], [(0.0, "b"), (1.0, "a")], False)
    assert scale(["4", "1"]) == ([1.0, 0.0], [(0.0, "1"), (1.0, "4")], False)
    assert scale([str(10.0**-n) for n in range(7)])[1:] == (None, True)
