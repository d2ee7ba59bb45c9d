"""Trainers: one module per option of the config group `trainer`."""

from arctic_hydra.trainer import causal as causal
from arctic_hydra.trainer import distillation as distillation
from arctic_hydra.trainer import preference as preference
from arctic_hydra.trainer import sft as sft
