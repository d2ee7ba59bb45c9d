"""Callbacks: one module per option of the config group `callback`."""

from arctic_hydra.callback import early_stopping as early_stopping
from arctic_hydra.callback import ema as ema
from arctic_hydra.callback import memory_profiler as memory_profiler
from arctic_hydra.callback import profiler as profiler
from arctic_hydra.callback import samples as samples
