"""Scores that a frozen model gives the data, computed before training and stored by content."""
