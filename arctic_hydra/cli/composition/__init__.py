"""From the words of a command line to one checked config: sources, schemas, search path, composition, and its errors."""
