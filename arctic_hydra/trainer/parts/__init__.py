"""Parts of the base trainer: its state, the construction of a run, bookkeeping and evaluation."""
