"""Reading rows from JSON Lines, Parquet, Arrow, CSV and text files, as a whole or in shards."""
