"""The command line: its grammar, composing a config, help, sweeps and what a run prints at its end."""
