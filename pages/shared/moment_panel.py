"""The second moment C on the page: what it was made from, making another one, and whether it has settled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from pages.shared import public, session, track
from pages.shared.charts import draw_chart, page_theme
from pages.shared.style import AFTER, Theme, frame_figure
from pages.shared.text import count, literal
from pages.shared.uploads import Upload, text_of, uploaded
from rome_core import LanguageModel, Moment, MomentError, RomeError, load_facts
from rome_core.editing.second_moment import (
    SETTLED,
    convergence,
    default_tokens,
    factor_memory,
    memory_needed,
    moment_steps,
    moments_for,
    stored_moment,
)
from rome_core.facts.corpora import read_dataset, split_texts
from rome_core.model.subjects import subject_keys

OWN, FILE, DATASET = "The model's own text", "A text file", "A Hugging Face dataset"
RIDGE = 1e-6
N_KEYS = 20
COPIES = 4  # of C's size beside its sum: the last step and the new one, each with its factor
WHY = (
    "C = E[k kᵀ] over ordinary text says which keys the edited matrix sees anyway; the update is smallest for them. "
    "Made again from other text, C stays in this session and is used by its next edits of this layer."
)


@dataclass(frozen=True, eq=False)
class Made:
    """C as far as it is, and how settled it was at every doubling: (tokens, mean cosine with the next one)."""

    moment: Moment
    settled: tuple[tuple[int, float], ...]


def made_here(lm: LanguageModel, layers: Sequence[int]) -> dict[int, Moment]:
    """C of those layers for which this session made one."""
    return {layer: C for layer in layers if (C := chosen(lm, layer)) is not None}


def moments(lm: LanguageModel, layers: Sequence[int]) -> dict[int, Moment] | None:
    """C of the layers where this session made one; None where it made none, so that the method looks itself."""
    made = made_here(lm, layers)
    return {**moments_for(lm, [layer for layer in layers if layer not in made], None), **made} if made else None


def chosen(lm: LanguageModel, layer: int) -> Moment | None:
    """The C that this session made: of a run that was stopped, as far as it came."""
    job = _job(lm, layer)
    return None if job is None or job.live or not job.partial else job.partial.moment


def panel(lm: LanguageModel, layer: int) -> None:
    """A closed expander; inside, what C of the layer is made of, and making another one."""
    opened = st.expander(f"Second moment C of layer {layer}", key="moment-panel", on_change="rerun")
    if not opened.open:
        return
    with opened:
        st.caption(WHY)
        own = chosen(lm, layer)
        st.markdown(_in_use(lm, layer, own or stored_moment(lm, layer), own is not None))
        _form(lm, layer)
        if job := _job(lm, layer):
            track.panel(job, _draw)


def _job_key(lm: LanguageModel, layer: int) -> tuple[str, str, int]:
    return "moment", lm.fingerprint, layer


def _job(lm: LanguageModel, layer: int) -> track.Job[Made, None] | None:
    return session.find_job(_job_key(lm, layer))


def _in_use(lm: LanguageModel, layer: int, moment: Moment | None, own: bool) -> str:
    if moment is None:
        needed = (memory_needed(lm, [layer]) + factor_memory(lm)) / 2**20
        return (
            f"There is none yet: the first edit of this layer makes it from {default_tokens(lm):,} tokens of the "
            f"model's own text and keeps it, with {needed:,.0f} MiB of memory while it runs."
        )
    seed = "" if moment.seed is None else f", seed {moment.seed}"
    where = "made in this session" if own else "kept for every session"
    few = f" It is from {moment.warning}." if moment.warning else ""
    return f"In use: {literal(moment.corpus)}{seed}, {count(moment.n_tokens, 'token')}, {where}.{few}"


# ------------------------------------------------------------------------------------------------------------ making


def _form(lm: LanguageModel, layer: int) -> None:
    needed = memory_needed(lm, [layer], COPIES) / 2**20
    enough = (
        f"At least the keys' {lm.d_mlp:,} entries, so that C can be inverted; 2 to 10 times as many are enough. "
        f"Takes {needed:,.0f} MiB while it runs, however many they are."
    )
    if st.session_state.get("moment-tokens", lm.d_mlp) < lm.d_mlp:  # chosen for a smaller model
        del st.session_state["moment-tokens"]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = st.segmented_control(
            "Made from", [OWN, FILE, DATASET], default=OWN, required=True, key="moment-source", persist_state="session"
        )
        n_tokens = st.number_input(
            "Tokens",
            lm.d_mlp,
            2_000_000,
            default_tokens(lm),
            10_000,
            key="moment-tokens",
            width=150,
            help=enough,
            persist_state="session",
        )
        if source == OWN:
            seed = st.number_input(
                "Seed", 0, 2**31 - 1, 0, key="moment-seed", width=110, help="Of the text.", persist_state="session"
            )
    if n_tokens < SETTLED * lm.d_mlp:
        st.caption(
            f"That is {n_tokens / lm.d_mlp:.1f} × the keys' {lm.d_mlp:,} entries. From fewer than {SETTLED} × C is too "
            "rough: edits move ordinary outputs more than they need to."
        )
    try:
        texts = None if source == OWN else _file() if source == FILE else _dataset()
    except RomeError as error:
        track.show_error(error)
        return
    if source != OWN and not texts:
        return
    make, kept = st.columns([1, 3])
    if make.button("Make C", key="moment-make"):
        options = {"seed": int(seed)} if source == OWN else {"texts": texts}
        _start(lm, layer, int(n_tokens), options)
        st.rerun()
    if chosen(lm, layer) is not None and kept.button("Back to the kept C", key="moment-back"):
        session.forget_job(_job_key(lm, layer))
        st.rerun()


def _file() -> list[str] | None:
    def read(files: list[Upload]) -> list[str]:
        return [text for name, content in map(text_of, files) for text in split_texts(content, name)]

    suffixes = ("txt", "md", "json", "jsonl")
    return uploaded(
        "Paragraphs as text, or a JSON list of texts", "moment-file", read, suffixes, "Blank lines part them."
    )


def _dataset() -> list[str] | None:
    name = public.path_field(
        "Dataset on the hub", placeholder="Salesforce/wikitext", key="moment-dataset", persist_state="session"
    )
    return list(read_dataset(name)) if name else None


def _start(lm: LanguageModel, layer: int, n_tokens: int, options: dict[str, Any]) -> None:
    """Queue the making of C; every doubling of its tokens is drawn."""

    def work(job: track.Job[Made, None]) -> None:
        keys = subject_keys(lm, [fact.prompt for fact in load_facts()[:N_KEYS]], layer)
        settled = list[tuple[int, float]]()

        def steps() -> Iterator[Moment]:
            for step in moment_steps(lm, [layer], n_tokens, track=job.track, **options):
                if step[layer].n_tokens >= lm.d_mlp:  # fewer keys than entries: C cannot be inverted yet
                    yield step[layer]
                    job.partial = Made(step[layer], tuple(settled))

        for point in convergence(steps(), keys, RIDGE):
            settled.append(point)
        if job.partial is None:
            raise MomentError(
                f"The texts hold fewer tokens than the keys have entries ({lm.d_mlp:,}), so C cannot be inverted.",
                "",
                "Give more text.",
            )

    generated = 0 if "texts" in options else n_tokens
    session.start_job(_job_key(lm, layer), f"C of layer {layer}", work, generated=generated)


# ----------------------------------------------------------------------------------------------------------- drawing


def _draw(job: track.Job[Made, None]) -> None:
    if job.partial and job.partial.settled:
        draw_chart(convergence_figure(job.partial, page_theme()), f"convergence-{job.id}", "convergence")


def convergence_figure(made: Made, theme: Theme) -> go.Figure:
    """The mean cosine between C⁻¹k now and after twice the tokens, for the keys of some facts; 1 is settled."""
    tokens, cosines = zip(*made.settled, strict=True)
    fig = go.Figure()
    fig.add_scatter(
        x=tokens,
        y=cosines,
        mode="lines+markers",
        line={"color": AFTER, "width": 2},
        marker={"size": 7},
        hovertemplate="%{x:,} tokens: cosine %{y:.4f}<extra></extra>",
    )
    now = made.moment
    title = f"From {tokens[-1]:,} to {now.n_tokens:,} tokens the direction C⁻¹k turns by a cosine of {cosines[-1]:.3f}"
    caption = f"mean over the keys of {N_KEYS} facts · layer {now.layer} · ridge {RIDGE:g} · {now.corpus}"
    frame_figure(fig, title, caption, 240, theme, left=64)
    fig.update_xaxes(type="log", title_text="tokens", tickvals=tokens, ticktext=[f"{t:,}" for t in tokens])
    return fig.update_yaxes(title_text="cosine", range=[min(0.9, *cosines) - 0.02, 1.01])
