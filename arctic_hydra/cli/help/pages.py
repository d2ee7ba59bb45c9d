"""The text of the help pages: the overview, a group, an option and a key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType

from arctic_hydra.cli.composition.config_sources import LIST_GROUPS
from arctic_hydra.cli.help.inventory import NAMED, Inventory, Key, Option, as_text, field_docs, first_sentence
from arctic_hydra.cli.help.layout import Page
from arctic_hydra.cli.help.sections import ORDER, places
from arctic_hydra.component import flatten
from arctic_hydra.config import Run, Task
from arctic_hydra.errors import EXIT_BAD_CONFIG, EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED_EARLY

EXAMPLES = {
    "": "the embedded default: a small model on bundled chats",
    "model=liger data=ultrachat optimizer.lr=2e-5": "a real model on real data, on a GPU",
    "data=json data.sources.json.path=my.jsonl": "your own chats",
    "optimizer.lr=1e-4 task=check": "check the config and this machine only",
    "-m optimizer.lr=1e-4,2e-4": "a sweep: one run per value",
}
FLAGS = {
    "--help TOPIC": "a group (trainer), an option (trainer=dpo) or a key (trainer.beta)",
    "--cfg job": "check and print the whole composed config; --resolve fills in what it refers to",
    "-m": "sweep over comma-separated values; hydra/launcher=local hydra.launcher.slots=N runs N jobs at a time, "
    "hydra/sweeper=optuna searches, `python -m arctic_hydra.sweep --help` manages sweeps",
    "--config-dir DIR": "a folder with options and experiments of your own",
    "--config-name NAME": "another whole config",
    "code=FILE": "a Python file whose components become options",
    "-sc install=SHELL": "print the TAB completion for bash, zsh or fish: "
    'eval "$(python -m arctic_hydra -sc install=bash)"; docs/completion.md has the others',
    "--version": "the version",
    "--hydra-help": "further flags of Hydra",
}
NUMBERS = "Numbers may be written as 1_000, 1e-6, 2^20, 50%, 4K, 8Ki."
_LONGEST_DEFAULT = 32
_FEW = 6
"""Largest number of keys that are listed without headings."""


def overview(page: Page, known: Inventory, program: str) -> None:
    """Write the overview: usage, examples, groups, tasks, the run's own keys and flags."""
    page.say("arctic_hydra: post-train language models from one composed config")
    page.heading("Usage")
    page.say(f"{program} [group=option ...] [group.key=value ...]", 2)
    page.say(f"{NUMBERS} In zsh, quote what has brackets: 'data/sources=[chat,json]'.", 2)
    page.heading("Examples")
    for arguments, text in EXAMPLES.items():
        page.row(f"{program} {arguments}".rstrip(), "", text)
    page.heading("Groups (group=option; the default first)")
    column = max(map(len, known.groups)) + 4
    for group, names in known.groups.items():
        same = group == "data/eval_sources" and sorted(names) == sorted(known.groups["data/sources"])
        page.row(group, "those of data/sources" if same else ", ".join(names) or "your own", column=column)
    page.heading("Tasks (task=...; the default first)")
    for name, text in task_docs().items():
        page.row(name, text, column=14)
    page.heading("Keys of the run itself")
    for key in known.run_keys:
        if key.name != "task":
            page.row(_assignment(key), first_sentence(key.doc), column=28)
    page.heading("Flags")
    for flag, text in FLAGS.items():
        page.row(flag, text, column=22)
    page.heading("Exit codes")
    codes = {
        EXIT_DONE: "done",
        EXIT_FAILED: "failed",
        EXIT_BAD_CONFIG: "invalid config",
        EXIT_STOPPED_EARLY: "stopped early with a checkpoint; the same command resumes",
        EXIT_INTERRUPTED: "interrupted before the ranks started",
    }
    for code, meaning in codes.items():
        page.row(str(code), meaning, column=7)


def task_docs() -> dict[str, str]:
    """Return what each task does, the default first, from the docstring of the field."""
    doc = field_docs(Run)["task"]
    default = next(item.default for item in fields(Run) if item.name == "task")
    found = dict(re.findall(r"(\w+): (.+?)(?=; \w+: |\.$)", doc))
    return {default.name: found.get(default.name, "prepare the data, train, evaluate and export")} | {
        task.name: found.get(task.name, "") for task in Task if task is not default
    }


def run_page(page: Page, known: Inventory) -> None:
    """Write all keys of the run itself."""
    page.say("Keys of the run itself, which belong to no group.")
    _write_sections(page, known.run_keys)


def group_page(page: Page, known: Inventory, group: str) -> None:
    """Write the options of a group and all of their keys, each once."""
    options = [known.option(group, name) for name in known.groups[group]]
    page.heading(f"{group}: {_how_to_choose(known, group)}")
    column = min(24, max((len(_named(known, option)) for option in options), default=0) + 4)
    for option in options:
        said = option.paragraphs if page.in_full else (option.about.partition("; ")[0].rstrip("."),)
        page.row(_named(known, option), *said, column=column)
    if not options:
        page.say('no options yet; see "Extend it from your own package" in CONTRIBUTING.md', 2)
    if group == "experiment":
        page.gap()
        page.say("--help experiment=NAME shows what an experiment chooses and sets.")
        return
    if group.startswith("data/"):
        page.gap()
        page.say(f"Their keys are those of `--help source`; --help {group}=NAME shows those of one.")
        return
    _write_keys_of_options(page, options)


def _how_to_choose(known: Inventory, group: str) -> str:
    if group in LIST_GROUPS or "data/" in group:
        shown = ",".join([name for name in known.groups[group] if name != "none"][:2])
        return f"several at once, as in {group}=[{shown}]"
    if group == "source":
        return f"added with +source@data.sources.{NAMED}=OPTION"
    return f"one of these, with {group}=OPTION"


def _named(known: Inventory, option: Option) -> str:
    return f"{option.name} (default)" if option.name in known.defaults(option.group) else option.name


def _write_keys_of_options(page: Page, options: Sequence[Option]) -> None:
    """Write the keys that all options have, then those of some: the same key of several options is one row."""
    by_field: dict[str, dict[str, Key]] = {}
    for option in options:
        for key in option.keys:
            by_field.setdefault(key.field, {})[option.name] = key
    sharing: dict[tuple[str, ...], list[dict[str, Key]]] = {}
    for found in by_field.values():
        sharing.setdefault(tuple(found), []).append(found)
    everyone = tuple(option.name for option in options)
    for names in sorted(sharing, key=lambda names: _order(names, sharing[names], everyone)):
        if len(options) > 1:
            page.heading("KEYS OF EVERY OPTION" if names == everyone else f"ONLY WITH {', '.join(names)}")
        rows = [(_common(found), found) for found in sharing[names]]
        notes = {key.name: _differences(page, key, found) for key, found in rows}
        _write_sections(page, [key for key, _ in rows], notes)


def _order(
    names: tuple[str, ...], keys: list[dict[str, Key]], everyone: tuple[str, ...]
) -> tuple[bool, bool, int, int]:
    """Return what sorts the keys of some options: required ones of most options first, then those that many options have."""
    required = 2 * len(names) > len(everyone) and any(not key.default for found in keys for key in found.values())
    return not required, names != everyone, -len(names), everyone.index(names[0])


def _common(found: dict[str, Key]) -> Key:
    """Return the key of several options as most of them have it."""
    most = Counter((key.default, key.kind, key.doc) for key in found.values()).most_common(1)[0][0]
    common = next(key for key in found.values() if (key.default, key.kind, key.doc) == most)
    if len({key.name for key in found.values()}) == 1:
        return common
    group, _, _ = common.name.partition(".")
    return Key(**{**vars(common), "name": f"{group}.<option>.{common.field}"})


def _differences(page: Page, common: Key, found: dict[str, Key]) -> list[str]:
    """Return how the options' keys differ from the common one: a line for the defaults, and one for each other difference."""
    defaults: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for name, key in found.items():
        if key.default != common.default:
            defaults.setdefault(f"default {_short(key.default)}" if key.default else "required", []).append(name)
        parts = [key.kind] if key.kind != common.kind else []
        parts += [_text_of(key, page)] if key.doc != common.doc else []
        if parts:
            others.setdefault("; ".join(parts), []).append(name)
    listed = "; ".join(f"{default} with {', '.join(names)}" for default, names in defaults.items())
    lines = [f"{listed[0].upper()}{listed[1:]}."] if listed else []
    return lines + [f"With {', '.join(names)}: {text}" for text, names in others.items()]


def _write_sections(page: Page, keys: Sequence[Key], notes: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
    """Write keys with further notes by their names, the required ones first, under headings unless they are few."""
    sections: dict[str, list[Key]] = {"Required": []}
    for key in keys:
        head = key.section if len(keys) > _FEW or key.section == "Required" else ""
        sections.setdefault(head, []).append(key)
    for head in sorted(sections, key=lambda head: ORDER.get(head, -1)):
        found = sections[head]
        if found:
            page.heading(head)
        order = places(head, [key.field for key in found])
        for _, key in sorted(zip(order, found, strict=True), key=lambda pair: pair[0]):
            page.row(_assignment(key), key.kind, _text_of(key, page), *notes.get(key.name, ()))


def _text_of(key: Key, page: Page) -> str:
    return key.doc if page.in_full else first_sentence(key.doc)


def _assignment(key: Key) -> str:
    return f"{key.name}={_short(key.default)}" if key.default else f"{key.name}=..."


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_DEFAULT else f"{text[: _LONGEST_DEFAULT - 3]}..."


def option_page(page: Page, known: Inventory, option: Option) -> None:
    """Write what an option is, what it chooses and sets, and its keys: first those that not all options of its group have."""
    page.heading(f"{option.group}={option.name}")
    for paragraph in option.paragraphs:
        page.say(paragraph)
        page.gap()
    if option.example:
        page.say(f"Example: {option.example}")
    if option.chooses:
        page.say(f"Also chooses {', '.join(f'{group}={name}' for group, name in option.chooses.items())}.")
    if option.group == "experiment":
        page.heading("Sets")
        for name, value in flatten(dict(option.sets)).items():
            page.say(f"{name}={as_text(value)}", 2)
        return
    others = [known.option(option.group, name) for name in known.groups[option.group] if name != option.name]
    shared = {
        key.field for key in option.keys if all(any(key.field == its.field for its in other.keys) for other in others)
    }
    own = [key for key in option.keys if key.field not in shared]
    if own and shared:
        page.heading("KEYS THAT NOT EVERY OPTION HAS")
        _write_sections(page, own)
        page.heading("KEYS OF EVERY OPTION")
        _write_sections(page, [key for key in option.keys if key.field in shared])
    else:
        _write_sections(page, option.keys)
    if not option.keys:
        page.say("It has no keys.")


def key_page(page: Page, name: str, found: Sequence[tuple[Key, Option | None]]) -> None:
    """Write everything about a key, once for all options that agree on it."""
    page.heading(name)
    variants: dict[tuple[str, str, str], list[str]] = {}
    for key, option in found:
        variants.setdefault((key.kind, key.default, key.doc), []).append(option.name if option else "")
    for (kind, default, doc), names in variants.items():
        page.gap()
        if len(variants) > 1:
            page.say(f"With {found[0][1].group if found[0][1] else ''}={', '.join(names)}:")
        page.row("type", kind, column=14)
        page.row("default", default or "none: required", column=14)
        page.gap()
        page.say(doc, 2)
    if found[0][0].kind.startswith(("integer", "number")):
        page.gap()
        page.say(NUMBERS, 2)
