"""Callbacks: one module per option of the config group `callback`."""
