"""arctic_hydra: a Hydra-composed experiment runner for post-training language models on DeepSpeed."""

__version__ = "0.1.0"
