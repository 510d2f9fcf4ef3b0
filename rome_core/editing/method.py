"""What a method is: a frozen config that answers every question about itself, and solves an `Edit`.

A method is one file: a subclass of `MethodConfig` with what it asks for, how it updates and what may be said of it.
Nothing outside the file asks for its name or its type. Another package adds one by an entry point in the group
"rome_explorer.methods".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from rome_core.editing.edit import Edit, PromptKeys, Step
from rome_core.editing.second_moment import Moment, moments_for
from rome_core.errors import EditError
from rome_core.model.edits import Update
from rome_core.model.language_model import LanguageModel
from rome_core.model.tokens import EditRequest
from rome_core.progress import Track, silent
from rome_core.settings import first_fault, setting

AddedTo = Literal["mlp_out", "resid_post"]
M = TypeVar("M", bound="MethodConfig")
L = TypeVar("L", bound="LayerConfig")

Report = Callable[[Step], None]


def ignore(step: Step) -> None:
    """The default report: nobody watches."""


@dataclass(frozen=True, eq=False)
class FoundValue:
    """What one fact's value search found: z = h + δ where the method adds it, behind which prefixes, from which keys.

    keys: of the prefixed prompts, where δ is added to the MLP's output.
    """

    request: EditRequest
    prefixes: tuple[str, ...]
    h: Float[Tensor, " d_model"]
    delta: Float[Tensor, " d_model"]
    history: tuple[Step, ...]
    keys: PromptKeys | None = None


@dataclass(frozen=True, eq=False)
class EditContext:
    """What an edit is solved on: a model with the edits that are active, C by layer, and who watches.

    moments: None takes the kept ones, or estimates them. report: called with every step of an optimisation.
    """

    lm: LanguageModel
    edits: Sequence[Edit] = ()
    moments: Mapping[int, Moment] | None = None
    track: Track = silent
    report: Report = ignore

    def moments_for(self, layers: Sequence[int]) -> dict[int, Moment]:
        """C of these layers, checked."""
        return moments_for(self.lm, layers, self.moments, self.track)


@dataclass(frozen=True)
class Term:
    """A symbol in LaTeX, its value for an edit, and what it is."""

    symbol: str
    value: float
    meaning: str


@dataclass(frozen=True)
class KeyProducts:
    """k_0ᵀC⁻¹k_0, k_0ᵀC⁻¹k* and k*ᵀC⁻¹k*, k* the mean key of the prefixed prompts."""

    k0_k0: float
    k0_kstar: float
    kstar_kstar: float


@dataclass(frozen=True)
class MethodConfig:
    """Base of the methods' configs, which are frozen dataclasses; fields made by `settings.setting` appear on forms.

    name: the key in METHODS. title, formula, objective (LaTeX; empty: the formula): shown on the page.
    adds_to: where the δ is added that the method optimises; None: it optimises none.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    objective: ClassVar[str] = ""
    batches: ClassVar[bool] = False  # whether several requests may be solved into one edit
    prefixed_use: ClassVar[bool] = False  # whether a prefix stands before the prompt when the edited model is used
    single_key: ClassVar[bool] = False  # whether its edits have one key and one denominator, which can be judged
    trained: ClassVar[bool] = False  # whether it was trained on a part of the facts, which says little of others
    offered_instead: ClassVar[bool] = False  # whether it is offered in place of a disabling edit by another method
    same_update_as: ClassVar[str] = ""  # another method, whose update it makes
    divides_by: ClassVar[str] = "k*ᵀC⁻¹k*"  # what a single key's update divides by, as a figure's axis names it
    asks_at: ClassVar[str] = "k^*"  # the key at which it asks for v* (LaTeX)
    adds_to: ClassVar[AddedTo | None] = None

    @property
    def layers(self) -> list[int]:
        """The layers whose C the method needs, once the config is resolved for a model."""
        return []

    @property
    def conditioning(self) -> float:
        """The ridge, in units of C's mean diagonal entry, under which C is inverted for it."""
        return 1e-6

    @property
    def prefixes_used(self) -> tuple[str, ...]:
        """The texts that stood before the prompt while it was solved, "" for none."""
        return ("",)

    @property
    def use_prefix(self) -> str:
        """What stands before the prompts when the edited model is used: nothing, but for `prefixed_use`."""
        return ""

    def at_layer(self, layer: int) -> MethodConfig | None:
        """The same at another layer; None for methods that choose theirs themselves."""
        return None

    def with_prefixes(self, lm: LanguageModel, edits: Sequence[Update] = (), n: int | None = None) -> MethodConfig:
        """With the prefixes that it would sample (n: so many instead), so that all facts of a run have the same."""
        return self

    def like(self, method: type[M]) -> M:
        """Another method with the same values in the fields that both have; its own keep their defaults."""
        mine = {field.name for field in fields(self)}
        return method(**{field.name: getattr(self, field.name) for field in fields(method) if field.name in mine})

    # ------------------------------------------------------------------------------------------------------- solving

    def check_settings(self, lm: LanguageModel) -> None:
        """Raise EditError unless every setting is of its type, within its range and there in this model."""
        if fault := first_fault(self):
            raise EditError(f"{self.name} cannot have this setting: {fault}")

    def check(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Raise EditError unless these requests can be edited with these settings."""
        if not requests:
            raise EditError("There is no fact to edit.", "", "Give at least one.")
        self.check_settings(lm)
        if len(requests) > 1 and not self.batches:
            raise EditError(
                f"{self.name} edits one fact at a time; {len(requests)} were given.",
                "",
                "Solve them one after another, each with the former ones in edits=.",
            )

    def solve(self, on: EditContext, requests: Sequence[EditRequest]) -> Edit:
        """The edit of these requests. Configs arrive here resolved for the model."""
        raise TypeError(f"{type(self).__name__} says nothing of how it solves an edit.")

    def search(self, on: EditContext, request: EditRequest) -> FoundValue:
        """The value of one fact; `update` makes an edit of one or many. Its prefixes have been chosen."""
        raise EditError(f"{self.name} searches no value by itself.", "", "Solve the edit as a whole.")

    def update(self, on: EditContext, values: Sequence[FoundValue]) -> Edit:
        """One edit of facts whose values are known."""
        raise EditError(f"{self.name} makes no edit of values.", "", "Solve the edit as a whole.")

    def shares_search(self, other: MethodConfig) -> bool:
        """Whether `other`, asked for one fact with its settings, optimises what this one does, whose edit keeps δ."""
        return False

    def value_of(self, edit: Edit) -> FoundValue:
        """What the search behind an edit of one fact by this method found."""
        raise EditError(f"An edit by '{self.name}' does not hold the δ of its search.", "", "Solve it again.")

    # ------------------------------------------------------------------------------------------------ being understood

    def keys_asked(self, edit: Edit, layer: int) -> Float[Tensor, "d_mlp n"] | None:
        """The keys at which an update asks for something, as columns, float64; None of methods without keys."""
        return None

    def residuals_asked(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], number: int, keys: Float[Tensor, "d_mlp n"]
    ) -> Float[Tensor, "d_model n"]:
        """R: what update `number` of an edit was asked to add at its keys, on top of `below`, float64."""
        raise TypeError(f"{type(self).__name__} has keys, but does not say what it asks for there.")

    def denominator(self, edit: Edit, products: KeyProducts) -> float:
        """What a single key's update divides by."""
        return products.kstar_kstar

    def explain_denominator(self, products: KeyProducts) -> str:
        """A sentence where the denominator is another one than the key's own."""
        return ""

    def terms(
        self, lm: LanguageModel, edit: Edit, below: Sequence[Edit], moments: Callable[[int], Moment | None]
    ) -> list[Term]:
        """The objective's quantities for an edit. moments: C of a layer, if there is one without estimating it."""
        return []

    def notes(self, edit: Edit, missed: Mapping[int, float | None]) -> list[str]:
        """What should be known of the method's objective. missed: by layer, the share of what was asked for."""
        return []


@dataclass(frozen=True)
class LayerConfig(MethodConfig):
    """Base of the methods that edit the down projection of a chosen layer, alone or as the last of several."""

    layer: int | None = setting(
        None,
        "Layer",
        "The block whose down projection is edited.",
        source="preset of the model",
        bounds=(0, None, 1),
        within="layers",
    )

    def at_layer(self: L, layer: int) -> L:
        return replace(self, layer=layer)

    def check_settings(self, lm: LanguageModel) -> None:
        if not isinstance(self.layer, int) or not 0 <= self.layer < lm.n_layers:
            raise EditError(
                f"Layer {self.layer} does not exist.", "", f"'{lm.name}' has layers 0 to {lm.n_layers - 1}."
            )
        super().check_settings(lm)


@dataclass(frozen=True)
class Foreign(MethodConfig):
    """A change that was found in a checkpoint or an adapter; nobody knows how it was made."""

    name: ClassVar[str] = "found"
    title: ClassVar[str] = "A change that was found in a checkpoint or an adapter."
    formula: ClassVar[str] = r"\Delta = W' - W"
