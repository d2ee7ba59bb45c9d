"""The order of the keys of large groups, and the units of numbers."""

from __future__ import annotations

from arctic_hydra.cli.help.sections import ORDER, RUN, SECTIONS, places, section_of, unit_of


def test_every_listed_field_exists(known):
    for group, sections in SECTIONS.items():
        keys = (
            known.run_keys
            if group == RUN
            else [key for name in known.groups[group] for key in known.option(group, name).keys]
        )
        assert {name for names in sections.values() for name in names.split()} <= {key.field for key in keys}


def test_a_field_that_is_not_listed_follows_the_one_before_it():
    assert section_of("trainer", "beta", "Loss") == "Loss"
    assert section_of("trainer", "epochs", "Loss") == "Length"


def test_fields_are_in_the_order_of_their_list():
    assert places("Learning rate", ["groups", "mine", "lr"]) == [3, 3, 0]
    assert [ORDER[head] for head in SECTIONS["optimizer"]] == sorted(ORDER[head] for head in SECTIONS["optimizer"])


def test_units_come_from_names():
    assert [unit_of(name) for name in ("max_length", "warmup_steps", "timeout_min", "seed")] == [
        "tokens",
        "steps",
        "minutes",
        "",
    ]
