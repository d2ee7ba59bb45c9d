"""Files and directories that one process writes and another trusts: owner and mode, state files, locks; code of the user."""
