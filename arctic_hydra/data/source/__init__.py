"""Data sources: one module per option of the config group `source`."""

from arctic_hydra.data.source import arrow as arrow
from arctic_hydra.data.source import bundled as bundled
from arctic_hydra.data.source import csv as csv
from arctic_hydra.data.source import hf as hf
from arctic_hydra.data.source import json as json
from arctic_hydra.data.source import parquet as parquet
from arctic_hydra.data.source import text as text
