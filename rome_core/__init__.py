"""Locating and editing facts in Hugging Face decoders, exactly, on a laptop, without touching the weights."""

from rome_core.attribution import preview
from rome_core.datasets import Fact, load_facts
from rome_core.default_model import DEFAULT_MODEL
from rome_core.diagnostics import diagnose
from rome_core.edits import Delta, Edit, Step
from rome_core.errors import DataError, EditError, ModelError, MomentError, PromptError, RomeError
from rome_core.evaluation import evaluate
from rome_core.generation import generate
from rome_core.hooks import Point
from rome_core.methods import DEFAULT_METHOD, METHODS, solve
from rome_core.model import LanguageModel, load_model
from rome_core.moment import Moment, estimate_moment
from rome_core.runs import TraceConfig
from rome_core.scoring import continuation_probabilities
from rome_core.storage import export_adapter, load_edit, save_edit
from rome_core.tokens import EditRequest, Prompt
from rome_core.tracing import Trace, trace, trace_steps

__all__ = [
    "DEFAULT_METHOD",
    "DEFAULT_MODEL",
    "METHODS",
    "DataError",
    "Delta",
    "Edit",
    "EditError",
    "EditRequest",
    "Fact",
    "LanguageModel",
    "ModelError",
    "Moment",
    "MomentError",
    "Point",
    "Prompt",
    "PromptError",
    "RomeError",
    "Step",
    "Trace",
    "TraceConfig",
    "continuation_probabilities",
    "diagnose",
    "estimate_moment",
    "evaluate",
    "export_adapter",
    "generate",
    "load_edit",
    "load_facts",
    "load_model",
    "preview",
    "save_edit",
    "solve",
    "trace",
    "trace_steps",
]
