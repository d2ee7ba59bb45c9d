"""Checkpoint engines, one module per option of the config group `checkpoint`, and the store they share."""

from arctic_hydra.checkpoint import deepspeed as deepspeed
from arctic_hydra.checkpoint import hf as hf
