"""A user's own package: options for arctic_hydra without a fork."""
