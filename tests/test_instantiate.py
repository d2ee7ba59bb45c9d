"""Components are built from plain data: only registered classes, only declared types, and no text is an interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from arctic_hydra.cli.composition.compose import with_paths
from arctic_hydra.component import BY_TARGET, to_yaml
from arctic_hydra.errors import ConfigError
from arctic_hydra.instantiate import create
from arctic_hydra.optimizer.adamw import AdamWFactory
from tests.composing import composed


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    """The default config."""
    return with_paths(composed())


def changed(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a config with one value replaced."""
    name, _, rest = key.partition(".")
    return {**tree, name: changed(tree[name], rest, value) if rest else value}


def refused(tree: dict[str, Any], key: str, value: Any) -> list[str]:
    """Return the problems of a config with one value replaced."""
    with pytest.raises(ConfigError) as caught:
        create(changed(tree, key, value))
    return caught.value.problems


def test_text_is_never_an_interpolation(tree: dict[str, Any]) -> None:
    text = "${oc.create:{_target_:os.system}} ${name} \\${x} ${"
    run = create(changed(tree, "model.hf_config_kwargs", {"x": text, "y": [text]}))
    assert run.model.hf_config_kwargs == {"x": text, "y": [text]}


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "arctic_hydra.optimizer.adamw.os", "arctic_hydra.config", "", 3, None, ["a"], {"a": 1}],
)
def test_only_the_exact_name_of_a_registered_class_is_a_target(tree: dict[str, Any], target: Any) -> None:
    [problem] = refused(tree, "optimizer._target_", target)
    assert problem.startswith(f"optimizer._target_: got {target!r}, which is not allowed")
    assert "optimizer=<one of adamw" in problem


def test_a_component_of_another_family_is_refused(tree: dict[str, Any]) -> None:
    [problem] = refused(tree, "optimizer", tree["scheduler"])
    assert problem.startswith(
        "optimizer._target_: got 'arctic_hydra.scheduler.cosine.CosineScheduler', expected a subclass of Optim"
    )
    [problem] = refused(tree, "checkpoint.hf", tree["scheduler"])
    assert problem.startswith("checkpoint.hf._target_: got 'arctic_hydra.scheduler.cosine")


@dataclass(kw_only=True)
class Hiding(AdamWFactory):
    """Has a field in the place of a method."""

    create_optimizer: str = "adamw"


@dataclass(kw_only=True)
class Placed(AdamWFactory):
    """Has a field in the place of a property of every component."""

    device: str = "cpu"


@dataclass(kw_only=True)
class Deaf(AdamWFactory):
    """Drops what the config sets."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


@dataclass(kw_only=True)
class Alone(AdamWFactory):
    """Converts and checks nothing."""

    def __post_init__(self) -> None:
        self.calls = 0


@dataclass(kw_only=True)
class Narrow(AdamWFactory):
    """Cannot be called as its base is."""

    def create_optimizer(self) -> Any:  # type: ignore[override]
        """Return nothing."""


@dataclass(kw_only=True)
class Called(AdamWFactory):
    """Has a method in the place of a property."""

    def world_size(self) -> int:  # type: ignore[override]
        """Return 1."""
        return 1


@dataclass(kw_only=True)
class Extended(AdamWFactory):
    """Overrides what it may, in its own way."""

    def __post_init__(self) -> None:
        AdamWFactory.__post_init__(self)

    def create_optimizer(self, *given: Any, fused: bool = False) -> Any:
        """Return nothing."""


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (
            Alone,
            "whose __post_init__ overrides Component.__post_init__ without calling it; call `super().__post_init__()` first",
        ),
        (
            Narrow,
            "whose create_optimizer overrides AdamWFactory.create_optimizer, but cannot be called like it; take the same parameters: "
            "`create_optimizer(self, model)`",
        ),
        (
            Called,
            "whose world_size overrides Component.world_size, which is a property; write `@property` above it",
        ),
        (
            Hiding,
            "whose field create_optimizer hides AdamWFactory.create_optimizer, which is not a field; give the field an",
        ),
        (Placed, "whose field device hides Component.device, which is not a field; give the field another name"),
        (Deaf, "whose `__init__` does not take all of its fields; write `__post_init__` instead, with `super()"),
    ],
)
def test_a_class_that_cannot_work_is_refused(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cls: type, text: str
) -> None:
    monkeypatch.setitem(BY_TARGET, "lab.Odd", cls)
    [problem] = refused(tree, "optimizer._target_", "lab.Odd")
    assert problem.startswith(f"optimizer._target_: got 'lab.Odd', {text}")


def test_a_class_that_overrides_methods_in_its_own_way_is_built(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BY_TARGET, "lab.Extended", Extended)
    assert isinstance(create({**tree["optimizer"], "_target_": "lab.Extended"}, "optimizer"), Extended)


@pytest.mark.parametrize("key", ["_target_", "_partial_", "_args_", "_convert_", "_recursive_"])
def test_the_keys_of_hydra_are_refused_in_free_form_dictionaries_and_components(tree: dict[str, Any], key: str) -> None:
    value = tree["optimizer"]["_target_"]  # even a registered class
    for place, nested in (
        ("deepspeed.config", {"a": {key: value}}),
        ("deepspeed.config", {"a": [1, {key: value}]}),
        ("log.print_ranks", [{key: value}]),
    ):
        [problem] = refused(tree, place, nested)
        assert problem.startswith(place) and f"{key}: " in problem
    if key != "_target_":
        [problem] = refused(tree, "model", {**tree["model"], key: True})
        assert problem == f"model.{key}: a key that Hydra interprets, which has no effect here; remove it"


BAD = [
    ("seed", "42", "seed: got '42', expected a whole number"),
    ("seed", True, "seed: got True, expected a whole number"),
    ("seed", 1.5, "seed: got 1.5, expected a whole number"),
    ("name", 3, "name: got 3, expected text"),
    ("fresh", "yes", "fresh: got 'yes', expected true or false"),
    ("init_from", 3, "init_from: got 3, expected text or null"),
    ("task", "dance", "task: got 'dance', expected one of train, check"),
    ("model", None, "model: got None, expected an option; pass model=<name of an option>"),
    ("model", [], "model: got [], expected an option"),
    ("checkpoint", [], "checkpoint: got [], expected named entries"),
    ("checkpoint", {"x": 1}, "checkpoint.x: got 1, expected an option"),
    ("data.sources.chat.path", "???", "data.sources.chat.path: "),
    ("optimizer.lr", "fast", "optimizer.lr: got 'fast', expected a number"),
    ("optimizer.betas", "x", "optimizer.betas: got 'x', expected "),
    ("optimizer.no_such", 1, "optimizer.no_such: there is no such key in AdamWFactory; remove it"),
    ("optimizer.weight_decy", 1, "optimizer.weight_decy: there is no such key in AdamWFactory; did you mean optimizer.weight_decay?"),
    ("name", "???", "name: required, but not set; pass name=<value>"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "text"), BAD, ids=[f"{key}={value}" for key, value, _ in BAD])
def test_values_of_another_type_are_refused(tree: dict[str, Any], key: str, value: Any, text: str) -> None:
    """As an edited `run.json` may hold them: OmegaConf checks the types of a command line only."""
    [problem] = refused(tree, key, value)
    assert problem.startswith(text)


def test_all_problems_are_reported_at_once(tree: dict[str, Any]) -> None:
    bad = changed(changed(changed(tree, "seed", "x"), "optimizer.lr", -1), "scheduler._target_", "os.system")
    with pytest.raises(ConfigError) as caught:
        create(bad)
    assert sorted(problem.partition(":")[0] for problem in caught.value.problems) == [
        "optimizer.lr",
        "scheduler._target_",
        "seed",
    ]


@pytest.mark.parametrize("content", [None, [], "x", 3, {}])
def test_what_is_no_config_is_refused(content: Any) -> None:
    with pytest.raises(ConfigError, match="config: got .*, expected a composed config"):
        create(content)


@pytest.mark.parametrize(
    "text", ["${a}", "\\${a}", "\\\\${a}", "a ${", "${oc.env:HOME}", "$", "{}", "\\", "a\\ ${b} \\"]
)
def test_yaml_of_a_config_resolves_to_the_same_text(text: str) -> None:
    from omegaconf import OmegaConf

    written = OmegaConf.create(to_yaml({"a": {"b": [text]}}))
    assert OmegaConf.to_container(written, resolve=True) == {"a": {"b": [text]}}
