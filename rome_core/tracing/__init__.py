"""Causal tracing: which hidden states carry a fact (Meng et al. 2022, arXiv 2202.05262, section 2)."""

from rome_core.tracing.heat_map import Trace, attention, restored_top_tokens, snippet, trace, trace_steps
from rome_core.tracing.runs import Runs, TraceConfig, TraceRequest, prepare
