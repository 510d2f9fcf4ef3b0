"""The editing methods: the face of `rome_core.editing.methods`."""

from rome_core.editing.methods import DEFAULT_METHOD, METHODS, MethodConfig, solve

__all__ = ["DEFAULT_METHOD", "METHODS", "MethodConfig", "solve"]
