"""Optimizers: one module per option of the config group `optimizer`."""

from arctic_hydra.optimizer import adamw as adamw
