"""Preference training: one module per trainer; scores of answers and losses are shared."""

from arctic_hydra.trainer.preference import cpo as cpo
from arctic_hydra.trainer.preference import dpo as dpo
from arctic_hydra.trainer.preference import kto as kto
from arctic_hydra.trainer.preference import orpo as orpo
from arctic_hydra.trainer.preference import reward as reward
from arctic_hydra.trainer.preference import simpo as simpo
