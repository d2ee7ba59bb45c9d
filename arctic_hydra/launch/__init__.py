"""Starting the ranks of a run: on this machine, on several, or as a job of a cluster."""
