"""The Python API: `arctic_hydra.compose`, `run`, `load_run` and `sweep`, and what they return."""
