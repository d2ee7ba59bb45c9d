"""Models: one module per option of the config group `model`."""

from arctic_hydra.model import hf as hf
from arctic_hydra.model import liger as liger
from arctic_hydra.model import random as random
from arctic_hydra.model import spec as spec
from arctic_hydra.model import tiny as tiny
