"""What each step of the derivation says, and where the source document is imprecise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A step's heading, its formula (LaTeX), its sentences, and what the document says otherwise, if anything."""

    title: str
    formula: str
    text: str
    imprecise: str = ""


STEPS: dict[str, Words] = {
    "problem": Words(
        "1 · What is asked",
        r"\min_{\hat W}\ \tfrac12\lVert(\hat W - W)K_0\rVert_F^2\quad\text{subject to}\quad\hat W k^* = v^*",
        "The layer's down projection W is a memory: keys k go in, values W k come out. One new pair (k\\*, v\\*) shall "
        "be stored exactly, and all keys K₀ of ordinary text shall keep their values as well as they can. With Δ = Ŵ − "
        "W and C = 𝔼[k kᵀ] what is minimised is ½ tr(Δ C Δᵀ): what the update adds to the outputs of ordinary keys.",
        "The document takes W as the optimum of the old pairs, V₀ = W K₀. That is an assumption about training; the "
        "problem above does not need it.",
    ),
    "gradient": Words(
        "2 · The Lagrangian and its gradient",
        r"\mathcal L = \tfrac12\operatorname{tr}(\Delta C\Delta^\top) - \lambda^\top(\hat W k^* - v^*),\qquad"
        r"\frac{\partial\mathcal L}{\partial\hat W} = \Delta C - \lambda k^{*\top} = 0",
        "The constraint is a vector of d_model equations, so λ is a vector, too. At the minimum the gradient vanishes: "
        "Δ C is an outer product, and Δ = λ k\\*ᵀ C⁻¹ has rank one, whatever λ is.",
    ),
    "multiplier": Words(
        "3 · The multiplier",
        r"Wk^* + \lambda\,\underbrace{k^{*\top}C^{-1}k^*}_{\alpha} = v^*"
        r"\quad\Rightarrow\quad\lambda = \frac{v^* - Wk^*}{k^{*\top}C^{-1}k^*}",
        "Put into the constraint, what is left of C is one number, α. It is the squared length of the key after "
        "whitening, and positive for every key.",
    ),
    "closed_form": Words(
        "4 · The closed form",
        r"\hat W = W + \frac{v^* - Wk^*}{k^{*\top}C^{-1}k^*}\,(C^{-1}k^*)^\top",
        "A column, how much each output must change, times a row, at which inputs it shall. No iteration: one system "
        "of equations is solved, by a Cholesky factor of C.",
        "The document writes C = K₀K₀ᵀ, a sum over keys, in the derivation, and the mean over keys where it is "
        "estimated. A factor of C changes nothing: it stands once above and once below the line. What MEMIT calls λ "
        "depends on it, though.",
    ),
    "whitening": Words(
        "5 · What whitening does",
        r"C = LL^\top,\quad\tilde k = L^{-1}k^*:\qquad"
        r"\Delta = (v^* - Wk^*)\,\frac{\tilde k^\top L^{-1}}{\lVert\tilde k\rVert^2}",
        "In coordinates in which ordinary keys are alike in all directions, the update is the smallest that meets the "
        "constraint. Back in the model's own it avoids the directions that ordinary keys use most.",
        "The document says that the update is orthogonal to what the model knows. It is not: no direction of C is "
        "empty. The update is the cheapest one, and what it still costs is measured here.",
    ),
    "denominator": Words(
        "6 · Which key, and when an edit disables the model",
        r"\hat W_{\text{code}} = W + \frac{v^* - Wk_0}{k_0^\top C^{-1}k^*}\,(C^{-1}k^*)^\top",
        "k\\* is a mean over texts in front of the prompt. The authors' code takes the row from k\\*, the residual "
        "and the denominator from the bare prompt's key k₀. With one key α cannot be small by accident; k₀ᵀC⁻¹k\\* "
        "can, and then ‖Δ‖ explodes (Yang et al. 2024; Gupta et al. 2024). **Diagnose** is about this number.",
        "The document writes one key everywhere and explains the failure by two. Both are right: the formula has one, "
        "the published code has two.",
    ),
    "memit": Words(
        "7 · Relaxed: MEMIT",
        r"\min_{\Delta}\ \lambda\operatorname{tr}(\Delta C\Delta^\top) + \lVert\hat WK - V\rVert_F^2"
        r"\quad\Rightarrow\quad\Delta = R\,K^\top(\lambda C + KK^\top)^{-1}",
        "For many facts the constraint becomes a second cost, R = V − W K. With one fact the same direction comes out, "
        "shorter: the share α/(λ + α) of the residual is brought about, all of it only for λ → 0.",
        "The document has Kᵀ behind the inverse, where the shapes do not fit, and says that MEMIT with one fact is "
        "ROME. It tends to it.",
    ),
    "emmet": Words(
        "8 · Several constraints: EMMET",
        r"\min_{\Delta}\ \tfrac12\operatorname{tr}(\Delta C\Delta^\top)\ \text{s. t.}\ \hat WK = V"
        r"\quad\Rightarrow\quad\Delta = R\,(K^\top C^{-1}K)^{-1}K^\top C^{-1}",
        "A multiplier for each fact, and α becomes the matrix KᵀC⁻¹K. With one fact it is ROME's formula; here it is "
        "solved for two keys of the same fact, the mean one and the bare prompt's.",
    ),
    "edit": Words(
        "9 · This edit",
        r"\Delta_{\text{edit}}\ \text{beside}\ \Delta",
        "Methods differ in which keys they take and what they hold. This is how far the update of the edit above is "
        "from the closed form with its own k\\* and v\\*.",
    ),
}
