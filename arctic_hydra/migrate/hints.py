"""What to write instead of a key that the config does not have."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields

from arctic_hydra.component import registered
from arctic_hydra.migrate import key_map

_GROUPS = ("trainer", "model", "tokenizer", "optimizer", "scheduler", "peft")
"""Groups of which one option is chosen, and whose options are classes; those of `data` are named after sets of data."""
_SIMILAR = 0.75
"""Least similarity of two names of which one may be a misspelling of the other."""


def hint(key: str, known: Iterable[str]) -> str:
    """Return the end of the error about an unknown key, from the keys of the composed config: what to write instead.

    A key is suggested only if it is the same setting: of another option of the group, under the name that another project
    gives it, in another place, or spelled almost alike. Otherwise the keys that do exist are listed.
    """
    keys = sorted(name for name in known if not name.endswith("_target_"))
    parent, _, last = key.rpartition(".")
    if problem := _missing_source(key, keys):
        return f"; {problem}"
    if options := _options_with(parent, last):
        return f"; it belongs to {parent}={_listed(options)}"
    if parent.split(".")[0] == "deepspeed" and (problem := _engine_key(key)):
        return f"; {problem}"
    if advice := key_map.advice(key):
        return f"; {advice}"
    elsewhere = [name for name in keys if name.rpartition(".")[2] == last]
    if len(elsewhere) == 1:
        return f"; did you mean {elsewhere[0]}?"
    if similar := _similar(key, keys):
        return f"; did you mean {similar}?"
    start = f"{parent}." if parent else ""
    names = sorted({name.removeprefix(start).split(".")[0] for name in keys if name.startswith(start)})
    return f"; {parent or 'the root'} has {', '.join(names)}" if names else ""


def _missing_source(key: str, keys: list[str]) -> str:
    """Return that the source of a key does not exist, and how to add it; empty for other keys."""
    match = re.match(r"(data\.(?:eval_)?sources)\.([^.]+)\.", key)
    if not match or any(name.startswith(match[0]) for name in keys):
        return ""
    group, name = match.groups()
    chosen = sorted({other.split(".")[2] for other in keys if other.startswith(f"{group}.")})
    only = f", only {', '.join(chosen)}" if chosen else ""
    if name in ("json", "text") and group == "data.sources" and chosen == ["chat"]:
        return f"{group} has no entry {name}{only}; pass data={name} too, for files of your own"
    rest = key.removeprefix(match[0])
    if name in ("json", "text") and [f"{group}.{other}.{rest}" in keys for other in chosen] == [True]:
        return f"{group} has no entry {name}{only}; did you mean {group}.{chosen[0]}.{rest}?"
    return f"{group} has no entry {name}{only}; add it with +source@{group}.{name}=<option>, such as json or hf"


def _listed(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _engine_key(key: str) -> str:
    """Return where a key of DeepSpeed's own belongs; empty for another key."""
    from arctic_hydra.assets import deepspeed_keys  # reads its table

    name = key.split(".")[1]
    return f"{name} of DeepSpeed belongs in deepspeed.config" if name in deepspeed_keys.names() else ""


def _options_with(group: str, name: str) -> list[str]:
    """Return the other options of a group that have a key."""
    classes = registered(group).items() if group in _GROUPS else ()
    return [
        option for (_, option), cls in classes if name != "_target_" and name in {item.name for item in fields(cls)}
    ]


def _similar(key: str, keys: list[str]) -> str:
    """Return the key, or the group of keys, of which `key` may be a misspelling; empty if there is none."""
    parent, _, last = key.rpartition(".")
    nodes = {".".join(parts[: end + 1]) for parts in (name.split(".") for name in keys) for end in range(len(parts))}
    siblings = {name.rpartition(".")[2]: name for name in nodes if name.rpartition(".")[0] == parent}
    short = next((last.removeprefix(f"{group}_") for group in parent.split(".") if last.startswith(f"{group}_")), "")
    if near := difflib.get_close_matches(last, siblings, n=1, cutoff=_SIMILAR):
        return siblings[near[0]]
    if short in siblings:  # as in tracking.mlflow.tracking_uri
        return siblings[short]
    near = difflib.get_close_matches(key, sorted(nodes), n=1, cutoff=_SIMILAR)
    return (
        near[0] if near and difflib.SequenceMatcher(None, last, near[0].rpartition(".")[2]).ratio() >= _SIMILAR else ""
    )
