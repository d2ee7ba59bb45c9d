"""For users of other trainers: their keys in arctic_hydra's terms, and recipes of ArcticTraining as experiments."""
