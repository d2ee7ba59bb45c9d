"""Checkpoints: a store that publishes only what is complete, and one module per option of the group `checkpoint`."""

from arctic_hydra.checkpoint import deepspeed as deepspeed
from arctic_hydra.checkpoint import hf as hf
