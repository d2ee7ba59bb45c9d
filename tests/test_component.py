"""Components: fields converted once, the registry, and what a component may read of its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from arctic_hydra import component
from arctic_hydra.component import Component, default_of, flatten, registered
from arctic_hydra.errors import ConfigError, FieldError
from arctic_hydra.human_numbers import HumanInt, integer
from arctic_hydra.instantiate import create


class Color(Enum):
    red = 1
    blue = 2


@pytest.fixture
def thing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A component of a group of its own."""
    monkeypatch.setattr(component, "_REGISTRY", {})

    @component.component(group="things", name="thing")
    class Thing(Component):
        count: HumanInt = integer(1, minimum=1)
        color: Color = Color.red

    return Thing


def test_fields_are_converted_once_and_every_problem_is_reported(thing: Any) -> None:
    made = thing(count="2Ki", color="blue")
    assert (made.count, made.color) == (2048, Color.blue)
    with pytest.raises(FieldError) as caught:
        thing(count=0, color="green")
    assert [name for name, _ in caught.value.fields] == ["count", "color"]
    assert "expected one of red, blue" in str(caught.value)


def test_the_registry_knows_group_and_name_and_refuses_a_second_one(thing: Any) -> None:
    assert registered("things") == {("things", "thing"): thing}
    assert (thing.option_group, thing.option_name, thing.identity_name()) == ("things", "thing", "things/thing")
    with pytest.raises(ValueError, match="things=thing is already .*Thing; .*Other needs another name"):

        @component.component(group="things", name="thing")
        class Other(Component):
            pass


def test_a_component_reads_its_run_through_the_trainer_and_notifies_its_callbacks(thing: Any) -> None:
    made, heard = thing(), []
    with made.event("work"):  # nothing is attached yet
        pass
    with pytest.raises(AssertionError, match="was read before a trainer was attached"):
        _ = made.device
    run = SimpleNamespace(
        device="cpu", world=SimpleNamespace(size=4, rank=2), notify=lambda *event: heard.append(event)
    )
    made.attach(run)
    assert (made.trainer, made.device, made.world_size, made.global_rank) == (run, "cpu", 4, 2)
    with made.event("work", part=1):
        pass
    assert heard == [("work_start", made, {"part": 1}), ("work_end", made, {"part": 1})]


def test_defaults_and_leaves(thing: Any) -> None:
    from dataclasses import fields

    assert {item.name: default_of(item) for item in fields(thing)}["count"] == 1
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "d": [2]}


def test_a_literal_is_refused_where_it_is_declared():
    with pytest.raises(TypeError, match=r"Odd.mode: a config cannot hold a Literal\['a', 'b'\]; declare an Enum"):

        @component.component(group="optimizer", name="odd")
        class Odd(Component):
            mode: Literal["a", "b"] = "a"

    assert ("optimizer", "odd") not in registered()


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (tuple[float, float], r"tuple\[float, float\]"),
        (Path, "Path"),
        (Path | None, r"pathlib\.Path \| None"),
        (set, "set"),
    ],
)
def test_a_type_that_no_config_can_hold_is_refused_where_it_is_declared(hint, said):
    made = type("Odd", (Component,), {"__annotations__": {"kind": hint}, "kind": None, "__module__": __name__})
    with pytest.raises(TypeError, match=rf"Odd\.kind: a config cannot hold a {said}; declare str, int, .* instead"):
        component.component(group="optimizer", name="odd")(made)
    assert ("optimizer", "odd") not in registered()


@dataclass(kw_only=True, slots=True)
class Inner:
    size: HumanInt = integer(1, minimum=1)


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)


def test_nested_fields_with_slots_are_converted():
    values = {"inner": Inner(size="2Ki")}
    assert component.convert_fields(Outer, values) == [] and values["inner"].size == 2048


@dataclass
class Palette:
    one: Color | None = None
    several: list[Color] = field(default_factory=list)
    named: dict[str, Color | None] = field(default_factory=dict)
    other: Color | int = 1


def test_names_of_enums_become_members_also_in_optional_fields_lists_and_dicts():
    plain = {"one": "red", "several": ["red", Color.red], "named": {"a": "red", "b": None}, "other": "red"}
    assert component.convert_fields(Palette, plain) == []
    red = Color.red
    assert plain == {"one": red, "several": [red, red], "named": {"a": red, "b": None}, "other": red}
    wrong = {"one": "pink", "several": ["red", "pink"], "named": {"a": "pink"}, "other": 2}
    found = component.convert_fields(Palette, wrong)
    assert [name for name, _ in found] == ["one", "several", "named"]
    assert all(text.startswith("got 'pink', expected one of red") for _, text in found)


@pytest.mark.parametrize(
    ("hint", "default", "message"),
    [
        (Inner | None, None, r"Odd\.inner: the command line cannot set keys of a Inner that is unset; declare `inner: Inner = "),
        (list[Inner], field(default_factory=list), r"Odd\.inner: a config cannot hold several Inner in one field; declare"),
        (dict[str, Inner], field(default_factory=dict), r"Odd\.inner: a config cannot hold several Inner in one field"),
    ],
)  # fmt: skip
def test_groups_of_fields_that_cannot_be_set_are_refused_where_they_are_declared(hint, default, message):
    made = type("Odd", (Component,), {"__annotations__": {"inner": hint}, "inner": default, "__module__": __name__})
    with pytest.raises(TypeError, match=message):
        component.component(group="optimizer", name="odd")(made)
    assert ("optimizer", "odd") not in registered()


@dataclass
class Nullable:
    inner: Inner | None = field(default_factory=Inner)


def test_a_group_of_fields_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(component, "_REGISTRY", {})
    monkeypatch.setattr(component, "BY_TARGET", component.BY_TARGET.copy())
    made = type(
        "Able",
        (Component,),
        {
            "__annotations__": {"nullable": Nullable},
            "nullable": field(default_factory=Nullable),
            "__module__": __name__,
        },
    )
    cls = component.component(group="things", name="able")(made)
    monkeypatch.setattr("arctic_hydra.instantiate.BY_TARGET", component.BY_TARGET)
    tree = {"_target_": cls._target_, "nullable": {"inner": None}}
    assert create(tree).nullable.inner is None
    tree["nullable"]["inner"] = {"size": "2Ki"}
    assert create(tree).nullable.inner.size == 2048
    tree["nullable"]["inner"] = {"size": 0}
    with pytest.raises(ConfigError, match=r"nullable\.inner\.size: got 0, expected 1 or more"):
        create(tree)
