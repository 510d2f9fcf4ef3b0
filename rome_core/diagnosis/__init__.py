"""Judging and understanding an edit: before it is applied, beside other edits, inside a foreign checkpoint."""
