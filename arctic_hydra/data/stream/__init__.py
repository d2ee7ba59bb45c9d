"""Streamed data: rows are tokenized and packed during training."""
