"""The cache of tokenized data: entries keyed by content, and the command that lists and prunes them."""
