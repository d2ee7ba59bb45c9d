"""For users of other trainers: their keys in our words, and recipes of ArcticTraining as experiments."""
