"""Edits on edits, and what is left of the earlier ones."""
