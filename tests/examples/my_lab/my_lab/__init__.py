"""A user's own package: options for arctic_hydra without a fork."""

from my_lab import models as models
from my_lab import trainers as trainers
