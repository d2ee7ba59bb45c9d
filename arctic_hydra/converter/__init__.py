"""Model converters: one module per option of the config groups `converter` and `peft`."""

from arctic_hydra.converter import float8 as float8
from arctic_hydra.converter import freeze as freeze
from arctic_hydra.converter import peft as peft
from arctic_hydra.converter import tiled_mlp as tiled_mlp
