"""Builds the parts of a run from its factories, for training, evaluation, export and the memory estimate."""
