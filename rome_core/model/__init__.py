"""A decoder that is looked into: where its parts are, its tokens, hooks, overlays and recorded runs."""

from rome_core.model.language_model import LanguageModel, fingerprint
from rome_core.model.loading import from_pretrained_parts, load_model
