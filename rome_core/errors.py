"""What can go wrong, in sentences a person can act on."""

from __future__ import annotations


class RomeError(Exception):
    """A failure the user can do something about: what happened, why, and what to try next.

    `str(error)` is one short paragraph; pages show it as it is.
    """

    def __init__(self, what: str, why: str = "", try_next: str = "") -> None:
        self.what, self.why, self.try_next = what, why, try_next
        super().__init__(" ".join(part for part in (what, why, try_next) if part))

    def __reduce__(self) -> tuple[type[RomeError], tuple[str, ...]]:
        return type(self), (self.what, self.why, self.try_next)  # an error crosses process borders whole


class PromptError(RomeError):
    """The prompt, the subject or the target cannot be used as given. suggestion: a spelling that can, else empty."""

    def __init__(self, what: str, why: str = "", try_next: str = "", suggestion: str = "") -> None:
        super().__init__(what, why, try_next)
        self.suggestion = suggestion

    def __reduce__(self) -> tuple[type[PromptError], tuple[str, ...]]:
        return type(self), (self.what, self.why, self.try_next, self.suggestion)


class ModelError(RomeError):
    """The model cannot be found, loaded or handled."""


class MomentError(RomeError):
    """The second moment C of the keys is missing, damaged or belongs to another model."""


class EditError(RomeError):
    """An edit cannot be solved, read, saved or combined with this model."""


class DataError(RomeError):
    """A record or a file of facts cannot be read; the message names its place."""
