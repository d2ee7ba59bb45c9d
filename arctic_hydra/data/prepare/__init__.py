"""Tokenize all rows ahead of training, in parallel, into a cache entry."""
