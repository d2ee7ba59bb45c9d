"""The contents of an experiment file: options, values, and what was not carried over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from arctic_hydra.errors import printable

_ORDER = (
    "trainer data data/sources model tokenizer peft optimizer scheduler deepspeed checkpoint callback tracking".split()
)
"""The groups in the order of the defaults list: an option may itself choose options of the groups after it."""


@dataclass
class Experiment:
    """What an experiment file will hold."""

    name: str
    source: str
    """Path of the recipe, for the first comment."""
    options: dict[str, str | list[str]] = field(default_factory=dict)
    """The option of each config group; a list for groups that take several."""
    added: dict[str, str] = field(default_factory=dict)
    """Options by place of named entries, such as `data/sources@data.sources.chat: ultrachat`."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values by full key."""
    lost: list[str] = field(default_factory=list)
    """What was not carried over, as `key: why`."""
    changed: list[str] = field(default_factory=list)
    """What means something else here, as `key: what`."""

    def choose(self, group: str, option: str) -> None:
        """Choose an option, in groups that take several in addition to those chosen before."""
        if option.startswith("["):
            chosen = self.options.setdefault(group, [])
            assert isinstance(chosen, list), group
            chosen += [name for name in option.strip("[]").split(",") if name and name not in chosen]
        else:
            self.options[group] = option

    def to_yaml(self, command: str) -> str:
        """Return the text of the file; `command` runs it."""
        comments = [command, f"Made from {self.source} by python -m arctic_hydra.migrate."]
        for title, entries in (("Not carried over:", self.lost), ("Different here:", self.changed)):
            comments += [title, *(f"  {entry}" for entry in entries)] if entries else []
        lines = ["# @package _global_", *(f"# {printable(comment, keep='')}" for comment in comments)]
        lines += ["defaults:", *(f"  - /{place}: {option}" for place, option in self.added.items())]
        for group in sorted(self.options, key=_ORDER.index):
            option = self.options[group]
            text = f"[{', '.join(option)}]" if isinstance(option, list) else option
            lines.append(f"  - override /{group}: {text}")
        lines += ["  - _self_", ""]
        tree: dict[str, Any] = {"name": self.name}
        for key, value in self.values.items():
            node = tree
            *groups, last = key.split(".")
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = value
        values: str = yaml.safe_dump(tree, sort_keys=False, width=120)
        return "\n".join(lines) + "\n" + values
