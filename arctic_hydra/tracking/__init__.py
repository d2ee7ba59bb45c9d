"""Trackers: one module per option of the config group `tracking`."""

from arctic_hydra.tracking import mlflow as mlflow
from arctic_hydra.tracking import none as none
