"""Streamed data: rows tokenized and packed while training reads them."""
