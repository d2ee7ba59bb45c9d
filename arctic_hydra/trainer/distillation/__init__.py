"""Distillation: a student learns the distributions that a teacher predicts, token by token."""

from arctic_hydra.trainer.distillation import distill as distill
