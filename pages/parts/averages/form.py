"""The inputs of an average: which facts, how many, and the settings of their traces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from pages.shared import address, fact_sets, session
from pages.shared.forms import carry_fields, widget
from pages.shared.text import count
from rome_core import LanguageModel, TraceConfig
from rome_core.settings import about
from rome_core.tracing.average_records import Inquiry

N_FACTS, MOST = 20, 5000


def inquiry_form(lm: LanguageModel) -> tuple[Inquiry, bool]:
    """What the form asks, and whether to run it."""
    address.carry("facts", "Facts", address.a_number(int, 1, MOST))
    address.carry("order", "Seed", address.a_number(int, 0, 2**31 - 1))
    top = st.columns([1.2, 4, 1.2])
    settings = st.expander("Settings of the traces")
    facts = fact_sets.choose_or_upload()
    relations = sorted({fact.relation for fact in facts})
    n = top[0].number_input(
        "Facts",
        1,
        MOST,
        N_FACTS,
        key="facts",
        persist_state="session",
        help="How many facts that the model knows. Facts are tried in a seeded order until so many are found; the "
        "others are counted and left out, because an answer that is not there cannot be restored.",
    )
    chosen = top[1].multiselect(
        "Relations",
        relations,
        key="relations",
        placeholder="all of them",
        help="Which kinds of fact.",
        persist_state="session",
    )
    order = top[2].number_input(
        "Seed", 0, 2**31 - 1, 0, key="order", persist_state="session", help="Of the order in which facts are tried."
    )
    with settings:
        config = trace_settings(lm)
    inquiry = Inquiry(tuple(facts), int(n), tuple(chosen), int(order), config, session.active())
    row = st.container(horizontal=True, vertical_alignment="center")
    run = row.button("Run", type="primary", shortcut="Ctrl+Enter", key="run-averages")
    row.caption(
        f"{count(len(inquiry.order), 'fact')} to choose from. Facts are averaged as they finish; after a Stop, "
        "Run goes on with the fact that was under way."
    )
    if inquiry.edits:
        st.info(f"Tracing the **edited model**: {count(len(inquiry.edits), 'edit')} of the sidebar's list act.")
    return inquiry, run


def trace_settings(lm: LanguageModel) -> TraceConfig:
    """All but the kind, for all three are traced; and no second answer, for every fact has its own."""
    described = {name: field for name, field in about(TraceConfig).items() if name != "site"}
    described["metric"] = replace(described["metric"], choices=("p", "log p"))
    default, values = TraceConfig(), dict[str, Any]()
    carry_fields(default, {name: f"average-{name}" for name in described}, lm)
    for place, (name, field) in zip(st.columns(3) + st.columns(3), described.items(), strict=False):
        with place:
            values[name] = widget(field, getattr(default, name), {"key": f"average-{name}"}, lm)
    return TraceConfig(**values)
