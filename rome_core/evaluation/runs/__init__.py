"""Many facts by many methods in a folder that survives any interruption."""
