"""A sweep: the jobs of one command, in one directory that the same command finds again.

`outputs/<name>/sweeps/<id>/` holds

    sweep.json    what the sweep is, and its jobs: number, overrides, run directory, submission (see `directory`)
    .lock         held by the process that conducts the sweep
    study.log     a search's journal (Optuna's format)
    sweep.csv, sweep.html, tracking-mlflow.json   the results

Each job is a normal run in a directory of its own, `outputs/<name>/<id>/`, with `run.json` written at submission. How far
it is and how it ended stands there, so that killing the sweep process loses nothing.

Where jobs run is a backend: the module `arctic_hydra.sweep.<kind>` (`local`, `slurm`) with the functions of
`directory.Backend`. The Hydra launchers that submit live in `launchers/hydra_plugins/`.
"""
