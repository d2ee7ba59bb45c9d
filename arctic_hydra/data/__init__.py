"""Data: one module per kind of the config group `data`, and the sources that it reads."""

from arctic_hydra.data import causal as causal
from arctic_hydra.data import preference as preference
from arctic_hydra.data import sft as sft
from arctic_hydra.data import source as source
from arctic_hydra.data import unpaired as unpaired
