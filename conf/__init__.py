"""The config groups, one folder each; a package so that an installed copy is found as `pkg://arctic_hydra.conf`."""
