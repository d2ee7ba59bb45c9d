"""Learning-rate schedules: one module per option of the config group `scheduler`."""

from arctic_hydra.scheduler import constant as constant
from arctic_hydra.scheduler import cosine as cosine
from arctic_hydra.scheduler import cosine_with_min_lr as cosine_with_min_lr
from arctic_hydra.scheduler import inverse_sqrt as inverse_sqrt
from arctic_hydra.scheduler import linear as linear
from arctic_hydra.scheduler import polynomial as polynomial
from arctic_hydra.scheduler import wsd as wsd
