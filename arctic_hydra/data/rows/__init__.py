"""Rows of files: JSON Lines, Parquet, Arrow, CSV and text, whole or as shards of a stream."""
