"""Hydra plugins of arctic_hydra."""
