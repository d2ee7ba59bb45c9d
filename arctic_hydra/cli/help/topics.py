"""Finds the help page of a topic: a group, an option, a key, or the nearest ones."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence

from arctic_hydra.cli.composition.search_path import hydra_with
from arctic_hydra.cli.help import pages
from arctic_hydra.cli.help.inventory import HYDRA_GROUPS, NAMED, Inventory, Key, Option
from arctic_hydra.cli.help.layout import Page, page_for_output
from arctic_hydra.cli.help.sections import RUN
from arctic_hydra.errors import ConfigError

MOST_NEAR = 3
"""Largest number of topics that the error for an unknown one names."""
_SIMILAR = 0.75
_SOURCE = re.compile(r"data\.(?:eval_)?sources\.[^.]+\.")


def print_help(program: str, topics: Sequence[str], config_dir: str | None = None) -> None:
    """Print the overview, or the page of each topic; raises ConfigError for an unknown one."""
    page = page_for_output()
    with hydra_with(config_dir) as loader:
        known = Inventory(loader)
        if not topics:
            pages.overview(page, known, program)
        for topic in topics:
            _write(page, known, topic)
    sys.stdout.write(page.text())


def _write(page: Page, known: Inventory, topic: str) -> None:
    name, equals, value = topic.lstrip("+~").partition("=")
    name = name.partition("@")[0]
    group = next((item for item in HYDRA_GROUPS if item.endswith(f"/{name}")), name)
    if group in known.groups:
        if not equals:
            return pages.group_page(page, known, group)
        chosen = [item for item in value.strip("[]").split(",") if item]
        if not chosen or not all(item in known.groups[group] for item in chosen):
            raise ConfigError(
                f"--help {topic}: {group} has no such option; expected one of {', '.join(known.groups[group])}"
            )
        for item in chosen:
            pages.option_page(page, known, known.option(group, item))
        return None
    if name == RUN:
        return pages.run_page(page, known)
    found = list(_keys(known, name))
    if found:
        for full in dict.fromkeys(key.name for key, _ in found):
            pages.key_page(page, full, [(key, option) for key, option in found if key.name == full])
        return None
    options = [option for option in _options(known) if option.endswith(f"={name}")]
    if len(options) == 1:
        return _write(page, known, options[0])
    if options:
        raise ConfigError(f"--help {topic}: is an option of several groups; expected one of {', '.join(options)}")
    near = _nearest(known, name)
    raise ConfigError(
        f"--help {topic}: there is no such group, option or key; "
        + (f"the nearest are {', '.join(near)}" if near else "--help lists the groups")
    )


def _options(known: Inventory) -> list[str]:
    return [f"{group}={option}" for group, names in known.groups.items() for option in names]


def _keys(known: Inventory, name: str) -> list[tuple[Key, Option | None]]:
    """Return the keys of a full name; those below it; or those whose last word it is."""
    name = _SOURCE.sub(f"data.sources.{NAMED}.", name)
    listed = [(key, option) for key, option in known.every_key() if not option or not option.group.startswith("data/")]
    return (
        [(key, option) for key, option in listed if key.name == name]
        or [(key, option) for key, option in listed if key.name.startswith(f"{name.rstrip('.')}.")]
        or [(key, option) for key, option in listed if key.field.rpartition(".")[2] == name]
    )


def _nearest(known: Inventory, name: str) -> list[str]:
    """Return the most similar topics; a key also by its last word alone."""
    keys = {key.name for key, _ in known.every_key()}
    words: dict[str, str] = {}
    for topic in (*known.groups, *sorted(keys), *_options(known)):
        for word in (topic, topic.rpartition(".")[2], topic.rpartition("=")[2], topic.rpartition("/")[2]):
            words.setdefault(word, topic)
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, words, MOST_NEAR, _SIMILAR) or difflib.get_close_matches(
        last, words, MOST_NEAR, _SIMILAR
    )
    return list(dict.fromkeys(words[word] for word in near))
