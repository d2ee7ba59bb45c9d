"""Tokenized documents to batches: packing, order and micro-batches."""
