"""Encoding of examples: token ids and loss masks."""
