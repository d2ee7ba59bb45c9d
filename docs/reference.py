"""Writes a page of the documentation for each config group, from what the help pages show.

To that it adds a command, the errors about the group's keys, which it reads from the source, and the metrics in which the group shows.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.cli.help import pages
from arctic_hydra.cli.help.inventory import Inventory, Key
from arctic_hydra.cli.help.layout import Page

ROOT = Path(__file__).parents[1]


class Guide(NamedTuple):
    """What the page of a group shows besides its options and keys."""

    command: str
    """Arguments of one command."""
    metrics: tuple[str, ...] = ()
    """Metrics in which the group shows, by their names in metrics.md."""
    pages: tuple[str, ...] = ()
    """Pages about the group."""
    rooms: tuple[str, ...] = ()
    """Modules and folders of the package with errors about the group that begin with a field, or with a key from a variable."""


GUIDES = {
    "run": Guide("seed=1 task=check", ("step", "epoch"), ("runs", "python")),
    "callback": Guide(
        "'callback=[early_stopping]' trainer.eval_frequency=10 trainer.train_iters=50",
        ("eval/loss",),
        ("extending/callbacks",),
        ("callback",),
    ),
    "checkpoint": Guide(
        "checkpoint.deepspeed.save_every_n_steps=10 checkpoint.deepspeed.keep_last=2 trainer.train_iters=50",
        ("eval/loss",),
        ("runs", "exports"),
        ("checkpoint",),
    ),
    "converter": Guide(
        "'converter=[freeze]' 'converter.freeze.patterns=[embed_tokens]'",
        ("memory_gib",),
        ("extending/models",),
        ("converter",),
    ),
    "data": Guide(
        "data=json data.sources.json.path=mine.jsonl data.max_length=1Ki task=preview",
        ("tokens", "supervised_tokens", "padding_tokens", "source_share/<name>"),
        ("data", "preference"),
    ),
    "data/sources": Guide(
        "data=mix 'data/sources=[chat,json]' data.sources.json.path=mine.jsonl", ("source_share/<name>",), ("data",)
    ),
    "data/eval_sources": Guide(
        "data=json data.sources.json.path=mine.jsonl 'data/eval_sources=[json]' data.eval_sources.json.path=held_out.jsonl",
        ("eval/loss", "eval/<source>/..."),
        ("data",),
    ),
    "deepspeed": Guide(
        "deepspeed=zero1 ranks=2 trainer.train_iters=20", ("grad_norm", "memory_gib"), ("memory", "clusters")
    ),
    "experiment": Guide(
        "experiment=lora model=tiny data=chat trainer.train_iters=20 trainer.eval_frequency=10", (), ("recipes",)
    ),
    "hydra/launcher": Guide(
        "-m hydra/launcher=local hydra.launcher.slots=2 optimizer.lr=1e-4,1e-3", (), ("sweeps", "clusters")
    ),
    "hydra/sweeper": Guide(
        "-m hydra/sweeper=optuna hydra.sweeper.n_trials=10 'optimizer.lr=tag(log,interval(1e-5,1e-2))'",
        ("eval/loss",),
        ("sweeps",),
    ),
    "log": Guide("log.interval=1 trainer.train_iters=20", ("step", "loss"), ("metrics",), ("config",)),
    "model": Guide(
        "model.hidden_size=128 model.num_hidden_layers=2 trainer.train_iters=20",
        ("tflops", "mfu", "memory_gib"),
        ("models", "extending/models"),
        ("model",),
    ),
    "optimizer": Guide(
        "optimizer=muon optimizer.lr=5e-3 trainer.train_iters=20",
        ("lr", "grad_norm", "skipped_steps"),
        (),
        ("optimizer",),
    ),
    "peft": Guide(
        "peft=lora peft.r=8 optimizer.lr=1e-2 trainer.train_iters=20", ("memory_gib",), ("memory", "exports"), ("peft",)
    ),
    "scheduler": Guide("scheduler=wsd scheduler.decay_ratio=20% trainer.train_iters=50", ("lr",), (), ("scheduler",)),
    "source": Guide(
        "+source@data.sources.more=json data.sources.more.path=mine.jsonl",
        ("source_share/<name>", "eval/<source>/..."),
        ("data", "extending/data"),
        ("data/source", "data/rows", "data/formats"),
    ),
    "tokenizer": Guide(
        "'tokenizer.add_tokens=[tool_name]' trainer.train_iters=20", ("tokens",), ("data",), ("tokenizer",)
    ),
    "tracking": Guide(
        "'tracking=[mlflow,tensorboard]' trainer.train_iters=20", ("loss", "eval/loss"), ("extending/trackers",)
    ),
    "trainer": Guide(
        "trainer.micro_batch_size=2 trainer.gradient_accumulation_steps=2 trainer.train_iters=20",
        ("loss", "step_seconds", "tokens_per_second", "eval/loss", "eval/perplexity", "eval/accuracy"),
        ("trainers/index", "preference", "extending/trainers"),
        ("trainer",),
    ),
}
_OF_FIELDS = ("arctic_hydra/callback/", "arctic_hydra/data/")
"""Folders whose texts begin with fields of a component, some of which have the name of a key of the run."""
_PARTS = {"KEYS OF EVERY OPTION": "Keys of every option", "ONLY WITH": "Only with"}
_CODE = re.compile(r"`[^`]*`")


class MarkdownPage(Page):
    """A help page as Markdown."""

    in_full = True

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._in_part = False

    def heading(self, text: str) -> None:
        """Write a head: first that of the page, then those of parts (`KEYS OF ...`, `ONLY WITH ...`) and of sections in them."""
        if not self._lines:
            title, _, more = text.partition(": ")
            self._lines += [
                f"# {_escaped(title)}",
                "",
                *([f"{_escaped(more[:1].upper() + more[1:])}.", ""] if more else []),
            ]
            return
        if not text:  # only a gap in the terminal
            return
        for capitals, plain in _PARTS.items():
            if text.startswith(capitals):
                self._in_part = True
                self._lines += [f"## {_escaped(text.replace(capitals, plain))}", ""]
                return
        self._lines += [f"{'###' if self._in_part else '##'} {_escaped(text)}", ""]

    def gap(self) -> None:
        """Paragraphs are apart in any case."""

    def say(self, text: str, indent: int = 0) -> None:
        """Write a paragraph."""
        self._lines += [_escaped(text), ""]

    def row(self, left: str, right: str, *below: str, column: int = 0) -> None:
        """Write an entry of a list: its name as code, then what there is to say about it."""
        said = [text for text in (right, *below) if text]
        self._lines += [f"`{left}`", *(f": {_escaped(text)}" for text in said or ["."]), ""]

    def surround(self, start: list[str], end: list[str]) -> None:
        """Add lines before the first part of the page, and at its end."""
        first = next((index for index, line in enumerate(self._lines) if line.startswith("## ")), len(self._lines))
        self._lines[first:first] = start
        self._lines += end

    def text(self) -> str:
        """Return the page."""
        return "\n".join(self._lines)


def _escaped(text: str) -> str:
    """Return plain text as Markdown that shows it; what is in backquotes stays code."""
    parts, end = [], 0
    for match in [*_CODE.finditer(text), None]:
        start = match.start() if match else len(text)
        parts.append(re.sub(r"([\\*_<>\[\]{}$|~])", r"\\\1", text[end:start]))
        if match:
            parts.append(match[0])
            end = match.end()
    return "".join(parts)


@cache
def _texts() -> list[tuple[str, str]]:
    """Return the texts in the source that begin with a key and a colon, with their files; `…` stands for what is filled in."""
    found = []
    package = ROOT / "arctic_hydra"
    for path in [*sorted(package.rglob("*.py")), *sorted((ROOT / "launchers").rglob("*.py"))]:
        if path.is_relative_to(package / "migrate") or path.is_relative_to(package / "api"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in parts or node in docstrings:
                continue
            text = _template(node)
            if isinstance(node, ast.Tuple) and len(node.elts) == 2:  # a field and its problem, of a FieldError
                text = ": ".join(map(_template, node.elts))
            if re.match(r"[a-z…][\w.…<>=/]*: \S", text) and len(re.findall(r"\w{2,}", text.partition(": ")[2])) > 3:
                found.append((path.relative_to(ROOT).as_posix(), text))
    return found


def _template(node: ast.AST) -> str:
    """Return the text of a string in the source; empty for other nodes and for text of several lines."""
    if isinstance(node, ast.JoinedStr):
        text = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    else:
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return "" if "\n" in text else re.sub(r"\{\w*\}|…+", "…", text)


def errors(group: str, keys: Iterable[Key]) -> Iterator[str]:
    """Yield the errors about the keys of a group, each once, sorted by key."""
    names: dict[str, set[str]] = {}
    for key in keys:
        names.setdefault(key.field, set()).add(key.name)
    heads = [*names] if group == "run" else [group, group.replace("/", ".")]
    begins = re.compile(rf"(?:{'|'.join(map(re.escape, heads))})(?:[.=][^: ]*)?: ")
    rooms = tuple(f"arctic_hydra/{room}{end}" for room in GUIDES[group].rooms for end in ("/", ".py"))
    variable = re.compile(r"…[.\w…]*: (?:got|expected|no|there|not) ")
    found = set()
    for path, text in _texts():
        field, is_near = text.partition(": ")[0], path.startswith(rooms)
        if begins.match(text) and (group != "run" or not path.startswith(_OF_FIELDS)):
            found.add(text)
        elif is_near and (variable.match(text) or field in names):
            found.add(text.replace(field, min(names[field]), 1) if len(names.get(field, ())) == 1 else text)
    yield from sorted(found)


def _more(group: str, keys: Iterable[Key]) -> tuple[list[str], list[str]]:
    """Return the lines of a page before its first part, and those at its end."""
    guide = GUIDES[group]
    start = ["```console", f"$ python -m arctic_hydra {guide.command}", "```", ""]
    pages = ", ".join(f"[](../{page}.md)" for page in guide.pages)
    start += [f"More: {pages}.", ""] if pages else []
    end = ["## Errors", ""]
    end += [
        "A key that does not exist, a value of another type and one that is out of range are refused in one sentence, before any work and "
        "with exit code 2; [Troubleshooting](../troubleshooting.md) explains what needs more words.",
        "",
    ]
    found = list(errors(group, keys))
    end += ["Further errors and warnings, with … for what is filled in:", ""] if found else []
    for text in found:
        key, _, said = text.partition(": ")
        end.append(f"- `{key}`: {_escaped(said)}")
    if guide.metrics:
        names = (
            f"[`{name}`](../metrics.md#{'evaluations' if name.startswith('eval/') else 'steps'})"
            for name in guide.metrics
        )
        end += ["", "## Metrics", "", f"Look at {', '.join(names)}.", ""]
    return start, [*end, ""]


def write_pages(folder: Path) -> None:
    """Write a page for each group, one for the keys of the run itself, and their index."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with hydra_with() as loader:
        known = Inventory(loader)
        written = {"run": MarkdownPage()}
        written["run"].heading("The run itself")
        pages.run_page(written["run"], known)
        for group in known.groups:
            written[group.replace("/", "-")] = page = MarkdownPage()
            pages.group_page(page, known, group)
        for group, page in zip(["run", *known.groups], written.values(), strict=True):
            options = (known.option(group, name) for name in known.groups.get(group, ()))
            keys = known.run_keys if group == "run" else [key for option in options for key in option.keys]
            page.surround(*_more(group, keys))
    rows = [
        f"| [{name}]({name}.md) | {', '.join(f'`{item}`' for item in known.groups.get(name, []))} |" for name in written
    ]
    index = [
        "# Config groups",
        "",
        "| group | options |",
        "|---|---|",
        *rows,
        "",
        "```{toctree}",
        ":hidden:",
        "",
        *written,
        "```",
        "",
    ]
    for name, text in {**{name: page.text() for name, page in written.items()}, "index": "\n".join(index)}.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
