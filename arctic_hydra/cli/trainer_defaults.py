"""The options that a trainer composes by default: in each config group, the first that its type hints name."""

from __future__ import annotations

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.types import RunMode

from arctic_hydra.component import registered
from arctic_hydra.cross_checks import SLOTS, supported


def first_options(loader: ConfigLoader, config_name: str, overrides: list[str]) -> tuple[str, dict[str, str]]:
    """Return the trainer, and by group the option that it names first, where nobody chose another one.

    An option is chosen by an override on the command line or in a config file. A class without a config file of its name in
    the group, such as a base class, is no option; where a hint names none, the default of the config remains.
    """
    trainers = registered("trainer")
    if all(cls.__module__.startswith("arctic_hydra.") for cls in trainers.values()):
        return "", {}  # the config's defaults are theirs
    found = loader.compute_defaults_list(config_name, overrides, RunMode.RUN).overrides
    name = str(found.known_choices.get("trainer"))
    chosen: dict[str, str] = {}
    trainer = trainers.get(("trainer", name))
    for slot in SLOTS:
        if trainer is None or slot in found.override_choices:
            continue
        options = loader.get_group_options(slot, ObjectType.CONFIG)
        first = next((cls.option_name for cls in supported(trainer, slot) if cls.option_name in options), None)
        if first is not None and first != found.known_choices.get(slot):
            chosen[slot] = first
    return name, chosen
