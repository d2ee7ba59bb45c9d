"""Model converters: one module per option of the config group `converter`."""
