"""What the tracing page shows of a run: numbers, three linked heat maps, curves, one cell in detail, files."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from importlib.util import find_spec

import streamlit as st

from pages.parts.tracing import figures, way_on
from pages.parts.tracing.further_studies import draw_panels
from pages.shared import circuits, session
from pages.shared.charts import ask_once, choose_image_format, draw_chart, draw_clickable_chart, metric_row, page_theme
from pages.shared.style import SITE_COLOURS
from pages.shared.text import code, literal, number, show_token, token_tables
from pages.shared.track import Job
from rome_core import LanguageModel, Trace
from rome_core.tracing.export import heat_maps_csv, heat_maps_npz
from rome_core.tracing.heat_map import attention, peak, restored_layers, restored_top_tokens, snippet
from rome_core.tracing.kinds import TraceRun
from rome_core.tracing.preview import compare_with_exact, likely_peaks, plateau
from rome_core.tracing.runs import KINDS, SITES, prepare

EXPORT_WIDTH = 1000  # px


TraceJob = Job[TraceRun, None]
LATEST = ("trace", "latest job")


def draw(lm: LanguageModel, job: TraceJob) -> None:
    """Everything about a run, as far as it is."""
    run = job.partial
    if run is None or run.first is None:
        if job.state == "running":
            st.caption("Both runs, clean and corrupted, are being recorded.")
        return
    metrics(run, run.first)
    heatmaps(run, run.first, job)
    curves(run, job)
    if not job.live:
        one_cell(lm, run, run.first, job.id)
        colored_prompt(run, job.id)
        compare_with_preview(run)
        draw_panels(lm, run, job.id)
        files(run, run.first)


# --------------------------------------------------------------------------------------------------- numbers, figures


def metrics(run: TraceRun, first: Trace) -> None:
    """The numbers that matter, in a row."""
    answer = show_token(first.answer)
    metric_row(
        (f"p({answer}), clean", number(first.clean), "", ""),
        (f"p({answer}), corrupted", number(first.corrupted), "", "Mean over the noise draws, after the softmax."),
        ("Total effect", number(first.total_effect), "", "Clean minus corrupted: all that can be restored."),
        ("Strongest MLP cell", *strongest(run, "mlp_out")),
        ("Strongest attention cell", *strongest(run, "attn_out")),
    )


def strongest(run: TraceRun, site: str) -> tuple[str, str, str]:
    """The strongest cell's token, its layer, and what that rests on: marked by ≈ or left open until the heat map is
    finished."""
    trace = run.finished.get(site)
    if trace is not None:
        token, layer = peak(trace)
        return show_token(trace.labels[token]), f"layer {layer}", "Of all cells. The layer is the window's centre."
    so_far = run.best(site)
    places = likely_peaks(so_far) if so_far else []
    if not so_far or not places:
        return "…", "", "Named once it has been measured."
    tokens = " or ".join(show_token(so_far.labels[token]) for token, _ in places)
    levels = [plateau(so_far, place) for place in places]
    layers = " or ".join(f"layer {first}" if first == last else f"layers {first}–{last}" for first, last in levels)
    which = "The strongest" if len(places) == 1 else "Too close to tell which is the strongest"
    why = f"{which} of {int(so_far.exact.sum())} measured cells; the others are estimated to be weaker."
    return f"≈ {tokens}", layers, why


def heatmaps(run: TraceRun, first: Trace, job: TraceJob) -> None:
    """The three kinds on one colour scale. A click on a cell chooses it for the details below."""
    low, high = figures.colour_range(first)
    st.caption(state_of(run, job.live))
    picked = None if job.live else _picked(run, job.id)
    for site in SITES:
        trace = run.best(site)
        if trace is None:
            st.skeleton(height=300)
            continue
        cell = picked[1:] if picked and picked[0] == site else None
        figure = figures.trace_heatmap(trace, low, high, page_theme(), cell)
        alt = f"{KINDS[site]}: {figures.caption(trace)}"
        draw_clickable_chart(figure, f"heat-{site}-{job.id}", f"trace-{site}", partial(_pick, site, job.id), alt)
    for note in {trace.note for trace in run.exact.values() if trace.note}:
        st.caption(literal(note))


def state_of(run: TraceRun, live: bool) -> str:
    """What the heat maps are made of so far."""
    if run.complete:
        return "Click a cell for its details below; one colour scale for all three."
    exact, cells = run.n_exact
    so_far = f"{exact} of {cells} cells are exact; dotted ones are estimated"
    if live:
        return f"{so_far}, and exact values take their place."
    return f"**Not finished:** {so_far}. Nothing is concluded from a heat map that is not exact throughout."


def curves(run: TraceRun, job: TraceJob) -> None:
    """Only of finished heat maps: the strongest of some cells is not the strongest of all."""
    if run.finished:
        draw_chart(figures.trace_marginals(run.finished, page_theme()), f"curves-{job.id}", "trace-curves")
    elif job.live:
        st.caption("The strongest effect by layer and by token is drawn once the first heat map is exact.")


# ----------------------------------------------------------------------------------------------------------- one cell


def _pick(site: str, id: str) -> None:
    """A click on a heat map: the cell goes into the number inputs, which hold it from then on."""
    points = st.session_state[f"heat-{site}-{id}"]["selection"]["points"]
    if points:
        st.session_state[f"kind-{id}"] = site
        st.session_state[f"token-{id}"], st.session_state[f"layer-{id}"] = int(points[0]["y"]), int(points[0]["x"])


def _picked(run: TraceRun, id: str) -> tuple[str, int, int] | None:
    """The chosen cell; at first the strongest one of the MLPs, or of what was finished before a stop, if anything."""
    names = [f"{name}-{id}" for name in ("kind", "token", "layer")]
    if run.finished:
        site = "mlp_out" if "mlp_out" in run.finished else next(iter(run.finished))
        for name, value in zip(names, (site, *peak(run.finished[site])), strict=True):
            st.session_state.setdefault(name, value)
    return tuple(st.session_state[name] for name in names) if names[0] in st.session_state else None


def one_cell(lm: LanguageModel, run: TraceRun, first: Trace, id: str) -> None:
    """What restoring one cell does to the next token, and where its layer attends."""
    st.subheader("One cell in detail")
    if _picked(run, id) is None:
        st.caption("Click a cell above: what it restores is measured then.")
        return
    site, token, layer = _cell_inputs(first, id)
    trace = run.best(site)
    if trace is None:
        st.caption(f"{KINDS[site]} was not traced: the run was stopped before.")
        return
    _what_it_does(lm, run, trace, token, layer)
    if site in run.finished:
        way_on.draw(lm, trace, token, layer)
    else:
        st.caption(f"{KINDS[site]} is not exact throughout: no layer is offered for an edit. **Trace** runs it again.")
    with st.expander(f"Attention of layer {layer}, clean prompt, every head", expanded=True):
        key, request = ("attention", lm.fingerprint, run.request.key, layer), run.request
        read = lambda: attention(lm, request.prompt, layer, edits=request.edits)  # noqa: E731
        labels, pattern = session.compute_once(key, read)
        circuits.attention_heads([show_token(label) for label in labels], pattern, key=f"heads-{id}-{layer}")


def _cell_inputs(first: Trace, id: str) -> tuple[str, int, int]:
    n_tokens, n_layers = first.indirect_effect.shape
    row = st.container(horizontal=True, vertical_alignment="bottom")
    site = row.segmented_control(
        "Kind", SITES, format_func=KINDS.__getitem__, key=f"kind-{id}", required=True, persist_state="session"
    )
    token = row.number_input("Token", 0, n_tokens - 1, width=92, key=f"token-{id}", persist_state="session")
    layer = row.number_input("Layer", 0, n_layers - 1, width=92, key=f"layer-{id}", persist_state="session")
    return site or SITES[0], int(token), int(layer)


def _what_it_does(lm: LanguageModel, run: TraceRun, trace: Trace, token: int, layer: int) -> None:
    key = ("cell", trace.fingerprint, run.request.key, trace.config, token, layer)
    tops = ask_once(key, lambda: restored_top_tokens(lm, prepare(lm, run.request), trace.config.site, token, layer))
    if tops is None:
        return
    first, last = restored_layers(trace, layer)
    where = f"layer {layer}" if first == last else f"layers {first}–{last}"
    what = f"{KINDS[trace.config.site]}, {where}, at {show_token(trace.labels[token])}"
    titles = {
        "clean": "Clean",
        "corrupted": "Corrupted",
        "restored": f"Restored: {what}",
    }
    st.html(token_tables({titles[name]: rows for name, rows in tops.items()}, trace.answer))


def colored_prompt(run: TraceRun, id: str) -> None:
    """CircuitsVis: the prompt's tokens, coloured by the strongest effect at each."""
    trace = run.finished.get(st.session_state.get(f"kind-{id}", ""))
    if trace is None:
        return
    strongest = trace.indirect_effect.amax(1)
    token = int(strongest.argmax())
    st.markdown(
        f"**The prompt, coloured by {KINDS[trace.config.site]}**: the strongest effect of any layer at each "
        f"token, from 0 to {number(float(strongest[token]))} at {code(show_token(trace.labels[token]))}"
    )
    circuits.colored_tokens(trace.labels, strongest, SITE_COLOURS[trace.config.site], key=f"tokens-{id}")


# ------------------------------------------------------------------------------------------------- preview, files


def compare_with_preview(run: TraceRun) -> None:
    """How far the first approximation was from the exact values."""
    rows = []
    for site, trace in run.finished.items():
        if site not in run.preview:
            continue
        agreement = compare_with_exact(run.preview[site], trace)
        worst = [
            f"{show_token(trace.labels[token])} · {layer}: {approximate:+.3g} instead of {exact:+.3g}"
            for token, layer, approximate, exact in agreement.worst
        ]
        rows.append(
            {"kind": KINDS[site], "rank correlation": f"{agreement.correlation:.2f}", "worst cells": "   ".join(worst)}
        )
    if rows:
        with st.expander("How good was the preview?"):
            st.caption(
                "Spearman's rank correlation of previewed and exact indirect effects, and the cells missed most."
            )
            st.dataframe(rows, hide_index=True)


def files(run: TraceRun, first: Trace) -> None:
    """The numbers and figures to take away."""
    if not run.exact:
        return
    st.subheader("Take it away")
    if not run.complete:
        st.caption("Files hold the exact cells alone.")
    code = "\n\n".join(snippet(trace) for trace in run.exact.values())
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.download_button("CSV, one row a cell", heat_maps_csv(run.exact), "trace.csv", "text/csv", on_click="ignore")
        st.download_button("Arrays (npz)", heat_maps_npz(run.exact), "trace.npz", on_click="ignore")
        st.download_button("Python", code, "trace.py", "text/x-python", on_click="ignore")
        if find_spec("kaleido"):
            st.download_button("Figures (zip)", partial(figure_zip, run, first), "trace-figures.zip", on_click="ignore")
        choose_image_format()
    if not find_spec("kaleido"):
        st.caption(
            "All figures in one zip need kaleido (`pip install kaleido`); the camera button of each figure does not."
        )
    with st.expander("Python that makes these numbers"):
        st.code(code, language="python")


def figure_zip(run: TraceRun, first: Trace) -> bytes:
    """All figures as SVG and PNG on white. Needs kaleido and a Chrome; without one the zip holds the reason."""
    low, high = figures.colour_range(first)
    drawn = {f"trace-{site}": figures.trace_heatmap(trace, low, high) for site, trace in run.exact.items()}
    if run.finished:
        drawn["trace-curves"] = figures.trace_marginals(run.finished)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        try:
            for name, figure in drawn.items():
                figure.update_layout(paper_bgcolor="white", width=EXPORT_WIDTH)
                for format in ("svg", "png"):
                    archive.writestr(f"{name}.{format}", figure.to_image(format=format, scale=2))
        except RuntimeError as error:
            archive.writestr("why-not.txt", f"{error}\nThe camera button of every figure needs neither.\n")
    return out.getvalue()
