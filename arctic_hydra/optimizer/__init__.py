"""Optimizers: one module per option of the config group `optimizer`."""

from arctic_hydra.optimizer import adamw as adamw
from arctic_hydra.optimizer import cpu_adam as cpu_adam
from arctic_hydra.optimizer import fused_adam as fused_adam
from arctic_hydra.optimizer import muon as muon
