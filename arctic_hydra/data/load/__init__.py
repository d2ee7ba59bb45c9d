"""Prepared documents to batches: packing, order, micro-batches."""
