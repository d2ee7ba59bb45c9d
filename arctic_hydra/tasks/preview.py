"""`task=preview`: shows examples with the trained tokens highlighted, on the terminal and as an HTML page."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from arctic_hydra import display, log
from arctic_hydra.assembly import run_data
from arctic_hydra.config import Run
from arctic_hydra.data.base import Example, Loader
from arctic_hydra.distributed import World
from arctic_hydra.files.state_file import replace_text
from arctic_hydra.report import html
from arctic_hydra.report.header import aligned, data_table, summary_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE = "preview.html"
Pieces = list[tuple[str, bool]]


def execute(run: Run, run_dir: Path) -> Path:
    """Print examples of the run's data, write them to an HTML page and return its path; does not load a model."""
    log.quiet_libraries()
    log.quiet_warnings()
    log.quiet_progress_bars()
    with display.waiting("read"):
        tokenizer = run.trainer.create_tokenizer(run.tokenizer)
        loaders = [
            loader
            for loader in run.trainer.create_data(run.data, tokenizer, run_data.geometry(run, World()))
            if loader is not None
        ]
        parts = [
            _part(name, loader, run.preview_examples, tokenizer)
            for name, loader in zip(("training", "evaluation"), loaders, strict=False)
        ]
    path = run_dir / PAGE
    replace_text(path, _page(f"{run.name}: data", parts))
    for part in parts:  # whose reader may exit early, as `head` does
        _print(*part)
    return path


Part = tuple[str, list[list[str]], list[tuple[str, Pieces]]]


def _part(name: str, loader: Loader, count: int, tokenizer: PreTrainedTokenizerBase) -> Part:
    figures = loader.summary()
    title = f"{name}: {summary_line(figures)}"
    shown = [(heading(example), pieces(example, tokenizer)) for example in loader.preview(count)]
    return title, data_table(figures), shown


def heading(example: Example) -> str:
    """Return what is shown above an example: where it comes from, and how many of its tokens the loss uses."""
    side = f" {example.side}" if example.side else ""
    use = "scored for the KL only" if example.side == "mismatched" else "trained"
    return f"{example.source}, row {example.row}{side}: {len(example.ids):,} tokens, {sum(example.mask):,} {use}"


def pieces(example: Example, tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """Return the decoded text of an example in runs of trained and untrained tokens."""
    runs = groupby(zip(example.ids, example.mask, strict=True), key=lambda pair: pair[1])
    return [(str(tokenizer.decode([token for token, _ in run])), bool(trained)) for trained, run in runs]


def _print(title: str, table: list[list[str]], shown: list[tuple[str, Pieces]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    colored = console.color_system is not None and not console.no_color
    marks = "in color" if colored else "in [[ ]]"
    console.print(Text("\n".join([title, *aligned(table), f"trained tokens are {marks}"])))
    for heading, parts in shown:
        console.print(Text(f"\n--- {heading}", style="bold"))
        text = Text(end="\n" if not parts or not parts[-1][0].endswith("\n") else "")
        for part, trained in parts:
            plain = html.escape_controls(part)  # without colors, brackets mark trained tokens
            shown_text = plain if colored or not trained else f"[[{plain}]]"
            text.append(shown_text, style="black on green" if trained else "dim")
        console.print(text)


def _page(title: str, parts: list[Part]) -> str:
    body = [f"<h1>{html.escape(title)}</h1><p><mark>Marked</mark> tokens are trained on; the others are context.</p>"]
    for name, table, shown in parts:
        body.append(f"<h2>{html.escape(name)}</h2>{html.table(table[0], table[1:])}")
        for heading, runs in shown:
            body.append(f"<h3>{html.escape(heading)}</h3><div class=chat>{''.join(map(span, runs))}</div>")
    return html.page(title, body)


def span(run: tuple[str, bool]) -> str:
    """Return a run of tokens as HTML, with control characters visible, as browsers would hide or interpret them."""
    text = html.escape(html.escape_controls(run[0]))
    return f"<mark>{text}</mark>" if run[1] else text
