"""Console commands, for everything that needs no browser."""
