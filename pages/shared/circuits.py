"""CircuitsVis without a network: the JavaScript bundle that its wheel carries, served by this app itself.

CircuitsVis' own HTML asks a CDN whenever the server has a network. Here the bundle is copied to static/ once, and a
Streamlit component loads it from there and calls its `render`.
"""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import streamlit as st
from jaxtyping import Float
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = "circuitsvis.iife.js"
DIGITS = 4

# `render` finds its place with document.querySelector, so styles cannot be isolated in a shadow root.
_JAVASCRIPT = """
const load = (src) => (window.__circuitsvis ??= new Promise((ok, bad) => {
  const script = document.createElement('script');
  script.src = src; script.onload = () => ok(window.CircuitsVis); script.onerror = bad;
  document.head.appendChild(script);
}));
export default function({data, parentElement}) {
  const host = parentElement.querySelector('.circuitsvis');
  const place = document.createElement('div');
  place.id = 'cv-' + Math.random().toString(36).slice(2);
  place.className = 'circuitsvis-' + data.element;
  load(data.src).then((CV) => {
    if (!host.isConnected) return;  // the page was left while the bundle was loading
    host.replaceChildren(place);
    CV.render(place.id, CV[data.element], data.props);
  });
}
"""
# Its heat maps are squares as wide as their place, and its headings take the page's own sizes.
_CSS = """
.circuitsvis { color: var(--st-text-color); font-family: var(--st-font); overflow-x: auto; }
.circuitsvis-AttentionHeads > div > div:nth-of-type(2) { max-width: 600px; }
.circuitsvis-AttentionHeads h3 { font-size: 0.9rem !important; }
.circuitsvis-AttentionHeads h4 { font-size: 0.65rem !important; line-height: 1.2; }
.circuitsvis-AttentionHeads h2 { font-size: 0.9rem !important; padding: 0.1rem 0.5rem !important; }
"""


def copy_bundle() -> Path:
    """Put the wheel's bundle where Streamlit serves static files; nothing to do when it is there already."""
    target = ROOT / "static" / BUNDLE
    spec = find_spec("circuitsvis")  # importing it would take seconds and import torch
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "dist" / "cdn" / "iife.js"
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(source, partial)
        partial.replace(target)
    return target


def show(element: str, key: str | None = None, **props: Any) -> None:
    """Draw one CircuitsVis element with its properties, e.g. show("AttentionHeads", attention=..., tokens=...)."""
    base = str(st.get_option("server.baseUrlPath")).strip("/")
    source = (f"/{base}" if base else "") + f"/app/static/{BUNDLE}"
    component = st.components.v2.component(
        "circuitsvis", html="<div class='circuitsvis'></div>", js=_JAVASCRIPT, css=_CSS, isolate_styles=False
    )
    component(data={"element": element, "props": props, "src": source}, key=key)


def inert(labels: Sequence[str]) -> list[str]:
    """Tokens as CircuitsVis shows them as they are: it takes them for HTML."""
    return [html.escape(label) for label in labels]


def colored_tokens(labels: Sequence[str], values: Float[Tensor, " pos"], color: str, key: str | None = None) -> None:
    """A text whose tokens are coloured by a number each, from white at 0 to `color` at the largest."""
    show(
        "ColoredTokens",
        key,
        tokens=inert(labels),
        values=[round(v, DIGITS) for v in values.nan_to_num().tolist()],
        minValue=0,
        maxValue=max(1e-6, float(values.nan_to_num().max())),
        positiveColor=color,
    )


def attention_heads(labels: Sequence[str], pattern: Float[Tensor, "heads pos pos"], key: str | None = None) -> None:
    """All heads of one layer: thumbnails to choose from, and the chosen one large."""
    show("AttentionHeads", key, tokens=inert(labels), attention=pattern.round(decimals=DIGITS).tolist())
