"""Values that nobody should type, for tests that throw them at every door."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rome_core.errors import RomeError

# Seeded, so that a fault that is found is found again; nothing is kept between runs, and nothing is timed.
generated = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

NASTY = (
    *(
        "",
        " ",
        "\n",
        "\t|",
        "{}",
        "{} {}",
        "{0}",
        "{",
        "The {} is in",
        "Eiffel Tower",
        "\0",
        "a\0b",
        "\ud800",
        "\udfff x",
    ),
    *(
        "\ufffd",
        "\u202e{}",
        "\u200b",
        "e\u0301",
        "𝔘𝔫𝔦 {}",
        "🏴󠁧󠁢󠁥󠁮󠁧󠁿 {}",
        "<|endoftext|>",
        "<|endoftext|> {}",
        "a" * 3000,
        "{} " + "b " * 1500,
    ),
    *(
        "<script>alert(1)</script>",
        "$\\frac{1}{2}$ {}",
        "%{x} %(s)s",
        "=1+1",
        "../../etc/passwd",
        "/dev/null",
        "C:\\x",
        "~nobody/x",
    ),
    *("nan", "1e999", "None", "[]", "'", '"', "\\", "NaN {}", "null", "-1", "\r\n{}"),
)
text = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=()), max_size=30))
whole = st.one_of(st.sampled_from((-(2**63) - 1, -(2**31), -1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**63, 2**64, 10**30)))
number = st.one_of(
    st.sampled_from((-1.0, -0.0, 0.0, 1e-300, 0.5, 1.0, 1e300, float("inf"), -float("inf"), float("nan"))), st.floats()
)
# JSON of any kind, nested, with what tables of facts call their fields among its names.
names = st.one_of(
    st.sampled_from(
        ("prompt", "subject", "template", "target_new", "target_true", "requested_rewrite", "str", "src", "alt")
    ),
    st.sampled_from(
        ("answers", "loc", "rephrase", "portability", "locality", "requests", "relation", "sub_label", "samples")
    ),
    text,
)
leaf = st.one_of(st.none(), st.booleans(), whole, number, text)
tree = st.recursive(
    leaf, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)), max_leaves=8
)


def json_text(value: object) -> str:
    return json.dumps(value, default=str)


def ends_well(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A normal result, or a RomeError of one sentence or more; whatever else is raised fails the test."""
    try:
        return call(*args, **options)
    except RomeError as error:
        found = error
    assert found.what.strip() and "Traceback" not in str(found)
    return found
