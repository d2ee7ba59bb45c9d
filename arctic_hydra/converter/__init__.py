"""Model converters: one module per option of the config group `converter`."""

from arctic_hydra.converter import tiled_mlp as tiled_mlp
