"""What a run can do besides training."""
