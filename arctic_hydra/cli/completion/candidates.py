"""Completes the last word of a command line: flags, groups, options, keys, values and paths."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.types import RunMode

from arctic_hydra.cli import hydra_parser
from arctic_hydra.cli.composition.config_sources import LIST_GROUPS
from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.cli.help import pages
from arctic_hydra.cli.help.inventory import Inventory, Key, first_sentence, keys_of, schema_class
from arctic_hydra.hub import holds_path

_CURSOR = "\0"
_WITHOUT_EFFECT = ("--config-path", "--experimental-rerun")
SHELLS = ("bash", "zsh", "fish")
_CODE = "code="
_FILES = ("out", "prompts")
"""Keys that hold a path below the working directory whatever it is named; they are no settings of a run."""


@dataclass(frozen=True)
class Candidate:
    """A word that could replace the last one."""

    text: str
    about: str = ""
    """What it is, in one line."""


@dataclass(frozen=True)
class Line:
    """A command line up to the cursor, as a shell splits it."""

    arguments: list[str]
    """The words after the program, without the last."""
    word: str
    """The word that ends at the cursor, without quotes; empty after a space."""
    quote: str
    """The quotation mark within which the cursor is; empty outside."""


def read_line(line: str) -> Line:
    """Split a command line; the program is its first word, or `python ... -m arctic_hydra`."""
    for quote in ("", "'", '"'):
        try:
            words = shlex.split(line + _CURSOR + quote)
        except ValueError:
            continue
        before = words[:-1]
        is_module = "-m" in before and before[before.index("-m") + 1 :][:1] == ["arctic_hydra"]
        start = before.index("-m") + 2 if is_module else 1
        return Line(before[start:], words[-1].removesuffix(_CURSOR), quote)
    return Line([], "", "")


def complete(line: Line) -> Iterator[Candidate]:
    """Yield what completes the last word of a line; reads config files and directories, and imports nothing."""
    previous = line.arguments[-1] if line.arguments else ""
    if previous in ("--config-dir", "-cd"):
        yield from _paths("", line.word, folders_only=True)
        return
    for action in hydra_parser.actions():
        if previous in action.option_strings and action.choices and (action.nargs is None or line.word):
            yield from (Candidate(str(choice)) for choice in action.choices if str(choice).startswith(line.word))
            return
    if previous in ("--shell-completion", "-sc"):
        yield from (Candidate(f"install={shell}") for shell in SHELLS if f"install={shell}".startswith(line.word))
        return
    if line.word.startswith("-"):
        yield from _flags(line.word)
        return
    folder = os.path.expanduser(_given(line.arguments, "--config-dir", "-cd"))
    takes_value = any(previous in action.option_strings and action.nargs is None for action in hydra_parser.actions())
    with hydra_with(folder if os.path.isdir(folder) else None) as loader:
        if takes_value:
            names = loader.get_group_options("", ObjectType.CONFIG) if previous in ("--config-name", "-cn") else []
            yield from (Candidate(name) for name in names if name.startswith(line.word))
            return
        completer = _Completer(loader, line.arguments)
        yield from completer.values(line.word) if "=" in line.word else completer.names(line.word)


def _flags(word: str) -> Iterator[Candidate]:
    texts = {flag.split(" ")[0]: text for flag, text in pages.FLAGS.items()}
    for action in hydra_parser.actions():
        for flag in action.option_strings:
            if (
                flag.startswith(word)
                and action.option_strings[0] not in _WITHOUT_EFFECT
                and (flag.startswith("--") or flag == word)
            ):
                yield Candidate(flag, next((texts[name] for name in action.option_strings if name in texts), ""))


def _given(arguments: Sequence[str], *flags: str) -> str:
    """Return the value of a flag, after a space or `=`; empty without it."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True) if arguments else ()
    return next((item.partition("=")[2] or after for item, after in pairs if item.partition("=")[0] in flags), "")


class _Completer:
    """Completes a word, given the arguments before it."""

    def __init__(self, loader: Any, arguments: Sequence[str]) -> None:
        self._loader, self._known = loader, Inventory(loader)
        self._arguments = arguments
        self._for_help = bool({"--help", "-h"} & set(arguments))

    def names(self, word: str) -> Iterator[Candidate]:
        """Yield groups, keys and the beginnings of keys; without `=` after `--help`."""
        if word and _CODE.startswith(word):
            yield Candidate(_CODE, "A file with components of your own")
        body = word.lstrip("+~")
        operator = word[: len(word) - len(body)]
        end = "" if self._for_help or operator == "~" else "="
        for group in self._known.groups:
            if group.startswith(body):
                yield Candidate(f"{operator}{group}{end}", "group")
        seen: set[str] = set()
        for key in self._keys():
            rest = key.name.removeprefix(body)
            if not key.name.startswith(body) or (
                not body and "." in rest
            ):  # an empty word has enough candidates without
                continue
            part, dot, _ = rest.partition(".")
            text = f"{operator}{body}{part}{dot or end}"
            if text not in seen:
                seen.add(text)
                yield Candidate(text, "keys" if dot else first_sentence(key.doc))

    def values(self, word: str) -> Iterator[Candidate]:
        """Yield the options of a group, the allowed values of a key, or paths."""
        name, _, value = word.partition("=")
        plain = name.lstrip("+~").partition("@")[0]
        if word.startswith(_CODE):
            yield from (found for found in _paths(_CODE, value) if found.text.endswith((".py", "/")))
            return
        if plain in self._known.groups:
            yield from self._options(plain, name, value)
            return
        key = next((key for key in self._keys() if key.name == plain), None)
        if key is None:
            return
        texts = pages.task_docs() if plain == "task" else {}
        before, last = _last_element(value)
        if holds_path(key.field.rpartition(".")[2]) or plain in _FILES:
            yield from _paths(f"{name}={before}", last)
        yield from (
            Candidate(f"{name}={before}{item}", texts.get(item, "")) for item in key.values if item.startswith(last)
        )

    def _options(self, group: str, name: str, value: str) -> Iterator[Candidate]:
        before, last = _last_element(value)
        for option in self._known.groups[group]:
            if option.startswith(last) and option not in before.strip("[").split(","):
                about = self._known.option(group, option).about
                text = f"{name}={before}{option}"
                yield from (Candidate(f"{text}{end}", about) for end in (("]", ",") if "[" in before else ("",)))
        if not value and (group in LIST_GROUPS or group.startswith("data/")):
            yield Candidate(f"{name}=[", "several")

    def _keys(self) -> Iterator[Key]:
        """Yield the keys that the options chosen so far have, as Hydra's defaults list names their schemas."""
        given = [argument.partition("=") for argument in self._arguments]
        choices = [
            f"{name}={value if value.startswith('[') else value.partition(',')[0]}"
            for name, equals, value in given
            if equals and name.lstrip("+").partition("@")[0] in self._known.groups
        ]
        chosen = _given(self._arguments, "--config-name", "-cn") or "config"
        for name, overrides in ((chosen, choices), ("config", [])):
            try:
                found = self._loader.compute_defaults_list(name, overrides, RunMode.RUN).defaults
            except Exception:  # an unfinished or wrong line: Hydra raises many kinds of errors
                continue
            for item in found:
                cls = schema_class(item.config_path)
                if cls is not None:
                    yield from keys_of(cls, item.package, item.config_path.split("/")[-2], {})
            return


def _last_element(value: str) -> tuple[str, str]:
    """Split a value at the start of the last element of its list or sweep."""
    start = max(value.rfind(","), value.rfind("[")) + 1
    return value[:start], value[start:]


def _paths(before: str, value: str, folders_only: bool = False) -> Iterator[Candidate]:
    """Yield the files and folders whose path begins with a value; hidden ones only if its last part begins with a dot."""
    folder, slash, part = value.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder + slash) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not part
        if hidden or not entry.name.startswith(part) or not entry.name.isprintable():
            continue
        if entry.is_dir():
            yield Candidate(f"{before}{folder}{slash}{entry.name}/")
        elif not folders_only:
            yield Candidate(f"{before}{folder}{slash}{entry.name}")
