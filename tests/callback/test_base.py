"""Callbacks define events by their names."""

from __future__ import annotations

import pytest

from arctic_hydra.callback.base import EVENTS, MOMENTS, REPLACES, Callback


def test_each_moment_has_two_events() -> None:
    assert len(EVENTS) == len(set(EVENTS)) == 2 * len(MOMENTS) + 2
    assert {"on_step_start", "on_step_end", "on_log", "on_exception"} < set(EVENTS)
    assert set(REPLACES) < set(EVENTS)


def test_a_misspelt_event_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Late.on_steps_end is not an event; the events are on_init_start, "):

        class Late(Callback):
            def on_steps_end(self, trainer, facts):
                pass
