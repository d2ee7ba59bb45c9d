"""Trackers: one module per option of the config group `tracking`."""

from arctic_hydra.tracking import mlflow as mlflow
from arctic_hydra.tracking import none as none
from arctic_hydra.tracking import tensorboard as tensorboard
from arctic_hydra.tracking import wandb as wandb
