"""Editors that learn to edit: a network maps the gradient of a fact to an update (MEND, KE)."""
