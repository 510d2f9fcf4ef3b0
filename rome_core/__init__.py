"""Locating and editing facts in Hugging Face decoders, exactly, on a laptop, without touching the weights."""

from rome_core.diagnosis.verdict import diagnose
from rome_core.editing.edit import Edit, Step
from rome_core.editing.methods import DEFAULT_METHOD, METHODS, solve
from rome_core.editing.second_moment import Moment, estimate_moment
from rome_core.editing.storage import export_adapter, load_edit, save_edit
from rome_core.errors import DataError, EditError, ModelError, MomentError, PromptError, RomeError
from rome_core.evaluation import evaluate
from rome_core.facts.datasets import Fact, load_facts
from rome_core.model.default_model import DEFAULT_MODEL
from rome_core.model.edits import Delta
from rome_core.model.generation import generate
from rome_core.model.hooks import Point
from rome_core.model.language_model import LanguageModel
from rome_core.model.loading import load_model
from rome_core.model.scoring import continuation_probabilities
from rome_core.model.tokens import EditRequest, Prompt
from rome_core.tracing.heat_map import Trace, trace, trace_steps
from rome_core.tracing.preview import preview
from rome_core.tracing.runs import TraceConfig

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
