"""The derivation in two dimensions: keys as a cloud that can be dragged into another shape, computed in the browser."""

from __future__ import annotations

import streamlit as st

from pages.shared.style import AFTER, BEFORE, SITE_COLOURS

_HTML = """
<div class="plane-box">
  <svg class="plane" viewBox="-3 -3 6 6" role="img" aria-label="Keys in two dimensions">
    <g transform="scale(1,-1)">
      <g class="cloud"></g>
      <line class="untouched"></line><line class="whole"></line>
      <ellipse class="moment"></ellipse>
      <line class="row"></line><line class="zero"></line><line class="star"></line>
      <circle class="handle axis" tabindex="0" role="slider" aria-label="End of the ellipse" r=".11"></circle>
      <circle class="handle k0" tabindex="0" role="slider" aria-label="Key k zero" r=".13"></circle>
      <circle class="handle kstar" tabindex="0" role="slider" aria-label="Key k star" r=".13"></circle>
    </g>
    <text class="name-star">k*</text><text class="name-zero">k₀</text><text class="name-row">C⁻¹k*</text>
  </svg>
  <div class="beside">
    <label><input type="radio" name="divisor" value="star" checked> divide by k*ᵀC⁻¹k* (the derivation)</label>
    <label><input type="radio" name="divisor" value="zero"> divide by k₀ᵀC⁻¹k* (the authors' code)</label>
    <table>
      <tr><th>k*ᵀC⁻¹k*</th><td class="alpha"></td></tr>
      <tr><th>k₀ᵀC⁻¹k*</th><td class="mixed"></td></tr>
      <tr><th>‖Δ‖ for a residual of 1</th><td class="size"></td></tr>
      <tr><th>ordinary outputs move by (root mean square)</th><td class="cost"></td></tr>
    </table>
    <p class="said" aria-live="polite"></p>
    <p class="hint">Drag k*, k₀ or the end of the ellipse, or use the arrow keys. Dots are ordinary keys; the stronger
    their colour, the more the update moves what the layer answers to them. Dashed: keys it does not move at all. Thin
    line: keys that get the whole change.</p>
  </div>
</div>
"""

_CSS = f"""
.plane-box {{ display: flex; flex-wrap: wrap; gap: 1.5rem; color: var(--st-text-color); font-family: var(--st-font); }}
.plane {{ width: min(100%, 430px); aspect-ratio: 1; border: 1px solid var(--st-border-color); border-radius: 4px;
  touch-action: none; overflow: hidden; }}
.beside {{ flex: 1 1 270px; min-width: 0; font-size: 0.875rem; display: flex; flex-direction: column; gap: 0.35rem; }}
.beside table {{ border-collapse: collapse; margin-top: 0.4rem; }}
.beside th {{ text-align: left; font-weight: 400; padding: 0.2rem 1rem 0.2rem 0; }}
.beside td {{ text-align: right; font-variant-numeric: tabular-nums; padding: 0.2rem 0; min-width: 5rem; }}
.beside .said {{ font-weight: 600; margin: 0.4rem 0 0; min-height: 2.6em; }}
.beside .hint {{ opacity: 0.75; margin: 0; }}
.plane line {{ stroke-width: 0.035; stroke: currentColor; }}
.plane .moment {{ fill: none; stroke: currentColor; stroke-width: 0.02; opacity: 0.6; }}
.plane .untouched {{ stroke-dasharray: 0.1 0.08; opacity: 0.6; stroke-width: 0.02; }}
.plane .whole {{ opacity: 0.6; stroke-width: 0.015; }}
.plane .star {{ stroke: {AFTER}; }} .plane .zero {{ stroke: {BEFORE}; }}
.plane .row {{ stroke: {SITE_COLOURS["mlp_out"]}; }}
.plane .handle {{ cursor: grab; stroke: var(--st-background-color); stroke-width: 0.03; }}
.plane .handle:focus {{ outline: none; stroke: currentColor; stroke-width: 0.05; }}
.plane .kstar {{ fill: {AFTER}; }} .plane .k0 {{ fill: {BEFORE}; }} .plane .axis {{ fill: currentColor; opacity: 0.7; }}
.plane text {{ font-size: 0.24px; fill: currentColor; pointer-events: none; }}
.plane .cloud circle {{ fill: {AFTER}; stroke: {BEFORE}; stroke-width: 0.008; }}
"""

_JAVASCRIPT = """
const SVG = 'http://www.w3.org/2000/svg';
// A fixed cloud of 160 standard normal points, the same for everybody (mulberry32, Box-Muller).
let seed = 7;
const uniform = () => {
  seed = (seed + 0x6D2B79F5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};
const NORMAL = Array.from({length: 160}, () => {
  const r = Math.sqrt(-2 * Math.log(1 - uniform())), turn = 2 * Math.PI * uniform();
  return [r * Math.cos(turn), r * Math.sin(turn)];
});
const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const length = (a) => Math.hypot(a[0], a[1]);
const show = (x) => !isFinite(x) ? '∞' : Math.abs(x) >= 1000 ? x.toExponential(1) : x.toPrecision(3);

export default function({parentElement}) {
  const root = parentElement.querySelector('.plane-box');
  if (root.dataset.ready) return;
  root.dataset.ready = 'yes';
  const find = (name) => root.querySelector('.' + name), svg = find('plane');
  const at = {axis: [1.5, 0.8], k0: [1.1, -0.9], kstar: [-0.3, 1.3]}, short = 0.5;
  const dots = NORMAL.map(() => find('cloud').appendChild(document.createElementNS(SVG, 'circle')));
  dots.forEach((circle) => circle.setAttribute('r', '0.045'));
  const set = (element, values) => Object.entries(values).forEach(([k, v]) => element.setAttribute(k, v));
  const arrow = (name, end) => set(find(name), {x1: 0, y1: 0, x2: end[0], y2: end[1]});
  const across = (name, direction, offset) => {  // the line of keys x with direction·x = offset
    const n = length(direction), u = [direction[0] / n, direction[1] / n], far = 9;
    const base = [u[0] * offset / n, u[1] * offset / n];
    set(find(name), {x1: base[0] - far * u[1], y1: base[1] + far * u[0],
                     x2: base[0] + far * u[1], y2: base[1] - far * u[0]});
  };
  const place = (name, end, aside = 0.15) => set(find(name), {x: end[0] + aside, y: -end[1] - 0.12});

  function draw() {
    const long = Math.max(length(at.axis), 0.2), u = [at.axis[0] / long, at.axis[1] / long], w = [-u[1], u[0]];
    const solve = (k) => {  // C⁻¹k, C with standard deviations `long` along u and `short` across
      const a = dot(k, u) / (long * long), b = dot(k, w) / (short * short);
      return [a * u[0] + b * w[0], a * u[1] + b * w[1]];
    };
    const row = solve(at.kstar), alpha = dot(at.kstar, row), mixed = dot(at.k0, row);
    const byZero = root.querySelector('input[value=zero]').checked, divisor = byZero ? mixed : alpha;
    set(find('moment'), {rx: long, ry: short, transform: `rotate(${Math.atan2(u[1], u[0]) * 180 / Math.PI})`});
    NORMAL.forEach(([a, b], i) => {
      const key = [long * a * u[0] + short * b * w[0], long * a * u[1] + short * b * w[1]];
      set(dots[i], {cx: key[0], cy: key[1], 'fill-opacity': Math.min(1, Math.abs(dot(row, key) / divisor))});
    });
    const shown = 1.6 / Math.max(length(row), 1e-9);
    arrow('star', at.kstar); arrow('zero', at.k0); arrow('row', [row[0] * shown, row[1] * shown]);
    across('untouched', row, 0); across('whole', row, divisor);
    for (const name of ['axis', 'k0', 'kstar']) {
      const said = at[name].map((x) => x.toFixed(2)).join(', ');
      set(find(name), {cx: at[name][0], cy: at[name][1], 'aria-valuetext': said});
    }
    place('name-star', at.kstar); place('name-zero', at.k0); place('name-row', [row[0] * shown, row[1] * shown], -0.8);
    const cost = Math.sqrt(alpha) / Math.abs(divisor);
    find('alpha').textContent = show(alpha); find('mixed').textContent = show(mixed);
    find('size').textContent = show(length(row) / Math.abs(divisor)); find('cost').textContent = show(cost);
    find('said').textContent = !byZero ? 'One key: the cheapest update with this value at k*.'
      : Math.abs(mixed) < 0.15 * alpha ? 'k₀ᵀC⁻¹k* is nearly nothing: the update explodes and moves every key.'
      : mixed < 0 ? 'The denominator is negative: keys like k* are moved the other way.'
      : `Two keys: ${show(Math.abs(alpha / mixed))} times the derivation's update.`;
  }

  function drag(name) {
    const handle = find(name);
    handle.addEventListener('pointerdown', (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener('pointermove', (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const box = svg.getBoundingClientRect(), clip = (x) => Math.max(-2.8, Math.min(2.8, x));
      at[name] = [clip((event.clientX - box.left) / box.width * 6 - 3),
                  clip(3 - (event.clientY - box.top) / box.height * 6)];
      draw();
    });
    handle.addEventListener('keydown', (event) => {
      const step = {ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1]}[event.key];
      if (!step) return;
      event.preventDefault();
      at[name] = [at[name][0] + step[0], at[name][1] + step[1]];
      draw();
    });
  }
  ['axis', 'k0', 'kstar'].forEach(drag);
  root.querySelectorAll('input').forEach((input) => input.addEventListener('change', draw));
  draw();
}
"""


def draw() -> None:
    """The picture. It needs no model and asks the server nothing."""
    component = st.components.v2.component(
        "derivation_plane", html=_HTML, js=_JAVASCRIPT, css=_CSS, isolate_styles=False
    )
    component(key="derivation-plane")
