"""Tokenizers: one module per option of the config group `tokenizer`."""

from arctic_hydra.tokenizer import bundled as bundled
from arctic_hydra.tokenizer import hf as hf
