"""The keys of other trainers in arctic_hydra's terms.

A file of `tables/` holds the keys of one project, in sections. A line is `key: place | note`. The place is the equivalent
here: options to choose (`data=preference`) and then keys (`data.max_prompt_length`); `none` if there is nothing, in which
case the note says why. `<name>` is any entry of a group that holds several. A key that ends in `*` matches all keys
that begin like it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources

import yaml

PROJECTS = {
    "arctictraining": "ArcticTraining",
    "transformers": "transformers",
    "trl": "TRL",
    "peft": "peft",
    "axolotl": "Axolotl",
    "llamafactory": "LLaMA-Factory",
    "others": "others",
}
"""The tables, with the names of their projects."""
_INTRODUCTION = """\
Where each key is here. A key in the column "here" is an override of the command line, and a key of a YAML file; an option such as
`data=preference` has to be chosen for it. `python -m arctic_hydra --help <group>` describes each key. This page is printed by
`python -m arctic_hydra.migrate --table <project>`; [Migrating](../migrating.md) says more."""
_ENTRIES = (
    (re.compile(r"data\.(eval_)?sources\.[^.]+\."), ("source.", "datasets.")),
    (re.compile(r"checkpoint\.[^.]+\."), ("checkpoint.",)),
)
"""Keys of named entries here, and how the tables begin those of a list's items."""


@dataclass(frozen=True)
class MappedKey:
    """A key of another project, and its equivalent here."""

    project: str
    """Key of `PROJECTS`."""
    section: str
    key: str
    options: tuple[str, ...]
    """Options to choose, such as `callback=[early_stopping]`."""
    keys: tuple[str, ...]
    """Equivalent keys here; if empty, the first option is the equivalent."""
    note: str

    @property
    def exists(self) -> bool:
        """Whether the key has an equivalent here."""
        return bool(self.options or self.keys)

    @property
    def place(self) -> str:
        """The equivalent of the key, in words; empty if there is none."""
        if not self.keys:
            return " and ".join(self.options)
        return " and ".join(self.keys) + (f" with {' and '.join(self.options)}" if self.options else "")


@cache
def mapped_keys(project: str) -> tuple[MappedKey, ...]:
    """Return the keys of one project, in the order of its table."""
    text = resources.files("arctic_hydra.migrate").joinpath("tables", f"{project}.yaml").read_text(encoding="utf-8")
    return tuple(
        _mapped_key(project, section, key, line)
        for section, lines in yaml.safe_load(text).items()
        for key, line in lines.items()
    )


@cache
def options() -> dict[str, dict[str, str]]:
    """Return our option for each name that other projects give one, by config group."""
    text = resources.files("arctic_hydra.migrate").joinpath("tables", "options.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def option_advice(group: str, option: str) -> str:
    """Return the end of the error about an unknown option that other projects have; empty if none has it."""
    ours = options().get(group, {}).get(option)
    return f"; {option} is {group}={ours} here" if ours else ""


def _mapped_key(project: str, section: str, key: str, line: str) -> MappedKey:
    place, _, note = line.partition(" | ")
    spans = [] if place == "none" else place.split()
    options = tuple(span for span in spans if "=" in span)
    return MappedKey(project, section, key, options, tuple(span for span in spans if "=" not in span), note)


def find(key: str, projects: tuple[str, ...] = tuple(PROJECTS)) -> list[MappedKey]:
    """Return what a key of a config may be in the tables: matches of the whole key, else of its beginning, else of its last part.

    A key of our config that begins with the name of an entry, such as `checkpoint.hf.`, is looked up without that name.
    """
    spellings = [key]
    for entry, prefixes in _ENTRIES:
        if match := entry.match(key):
            spellings = [f"{prefix}{key[match.end() :]}" for prefix in prefixes]
    known = [mapped for project in projects for mapped in mapped_keys(project)]
    for spelling in spellings:
        parts = spelling.split(".")
        for end in range(len(parts), 1, -1):
            if found := [mapped for mapped in known if mapped.key == ".".join(parts[:end])]:
                return found
    if spellings == [key] and key.count(".") > 1:
        return []  # its last part is a key of something else, such as DeepSpeed
    parent, _, last = key.rpartition(".")
    flat = [mapped for mapped in known if mapped.project != "arctictraining" or parent in ("", "trainer")]
    found = (
        [mapped for mapped in flat if mapped.key == last]
        or [mapped for mapped in flat if mapped.key.endswith("*") and fnmatchcase(last, mapped.key)]
        or [mapped for mapped in known if mapped.project == "arctictraining" and mapped.key.rpartition(".")[2] == last]
    )
    return [mapped for mapped in found if mapped.project != "others"] or found


def advice(key: str) -> str:
    """Return what to use instead of a key that another project has, as a clause; empty if none has it."""
    by_place: dict[tuple[str, ...], dict[str, MappedKey]] = {}
    for mapped in find(key):
        if key not in mapped.keys or mapped.options:
            by_place.setdefault((*mapped.options, *mapped.keys), {}).setdefault(mapped.project, mapped)
    return ", or ".join(_clause(key, list(same.values())) for same in by_place.values())


def _clause(key: str, same: list[MappedKey]) -> str:
    mapped, names = same[0], [PROJECTS[mapped.project] for mapped in same]
    called = key.rpartition(".")[2] if mapped.key.endswith("*") else mapped.key.rpartition(".")[2]
    who = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    note = mapped.note.replace("`", "")
    if not mapped.exists:
        return f"{called} of {who} has no counterpart here: {note}"
    entry = next((match[0] for known, _ in _ENTRIES if (match := known.match(key))), "")
    if entry and mapped.keys and mapped.keys[0].startswith(entry.partition(".")[0]):
        place = " and ".join(re.sub(r".*<name>\.", entry, item) for item in mapped.keys)
    else:
        place = mapped.place.replace("checkpoint.<name>", "checkpoint.deepspeed")
    what = "it is" if mapped.project == "others" else f"{called} of {who} is"
    return f"{what} {place} here{f' ({note})' if note else ''}"


def page(project: str) -> str:
    """Return the page of the documentation with the keys of one project, in Markdown."""
    lines = [f"# From {PROJECTS[project]}", "", _INTRODUCTION, ""]
    for section in dict.fromkeys(mapped.section for mapped in mapped_keys(project)):
        lines += [f"## {section}", "", f"| {PROJECTS[project]} | here | note |", "|---|---|---|"]
        for mapped in mapped_keys(project):
            if mapped.section == section:
                place = " ".join(f"`{span}`" for span in (*mapped.options, *mapped.keys)) or "–"
                lines.append(f"| `{mapped.key}` | {place} | {mapped.note} |".replace("|  |", "| |"))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
