"""Errors are one readable paragraph and survive the way between processes."""

from __future__ import annotations

import pickle

import pytest

from rome_core import errors
from rome_core.errors import RomeError

KINDS = [errors.PromptError, errors.ModelError, errors.MomentError, errors.EditError, errors.DataError]


def test_the_message_is_its_parts_in_order_without_gaps() -> None:
    assert str(RomeError("It broke.", "It was old.", "Buy one.")) == "It broke. It was old. Buy one."
    assert str(RomeError("It broke.", "", "Buy one.")) == "It broke. Buy one."
    assert str(RomeError("It broke.")) == "It broke."


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_rome_error_and_pickles_whole(kind: type[RomeError]) -> None:
    error = kind("It broke.", "It was old.", "Buy one.")

    copy = pickle.loads(pickle.dumps(error))

    assert isinstance(error, RomeError)
    assert type(copy) is kind
    assert (copy.what, copy.why, copy.try_next) == ("It broke.", "It was old.", "Buy one.")
    assert str(copy) == str(error)
