"""The help pages: what a command line can choose and set, and its text for a terminal."""
