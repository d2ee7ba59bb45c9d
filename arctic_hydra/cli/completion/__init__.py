"""TAB completion: what completes a command line, and the scripts for bash, zsh and fish that ask for it."""
