"""v*: the value that makes the model say the new object (Meng et al. 2022, section 3.1, equation 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_core.editing.edit import PromptKeys, Step
from rome_core.editing.method import AddedTo, Report, ignore
from rome_core.model.edits import Update
from rome_core.model.generation import sample_texts
from rome_core.model.hooks import Batch, Patch, Point, activations, batch_of, hidden_states
from rome_core.model.language_model import LanguageModel
from rome_core.model.replay import record, run_block
from rome_core.model.tokens import EditRequest, Encoded, Prompt, as_target, encode, target_ids
from rome_core.progress import Track, silent

if TYPE_CHECKING:
    from rome_core.editing.value_search import ValueSearch

KlAt = Literal["subject", "prompt end"]
N_SAMPLED = 20
ESSENCE = "{} is a"


@dataclass(frozen=True, eq=False)
class Prompts:
    """The token rows of one request, aligned so that all subjects end in one column.

    Row 0 is the bare prompt, rows [used] are those whose loss and keys count, the last row is the essence prompt.
    """

    batch: Batch
    column: int
    rows: slice
    targets: tuple[int, ...]
    positions: Int[Tensor, "n tokens"]
    essence: int
    kl_column: int
    encoded: Encoded


def sampled_prefixes(lm: LanguageModel, seed: int, edits: Sequence[Update] = (), n: int = N_SAMPLED) -> tuple[str, ...]:
    """The empty prefix and n of 20 that the model writes, evenly chosen: 10 texts of 5 tokens and 10 of 10 tokens, each
    followed by ". "."""
    texts = [
        text for length in (5, 10) for text in sample_texts(lm, 10, length, seed=seed + length, top_k=5, edits=edits)
    ]
    chosen = [texts[i * len(texts) // n] for i in range(min(n, len(texts)))]
    return ("", *(text.replace("{}", " ").strip() + ". " for text in chosen))


def prompts_of(lm: LanguageModel, request: EditRequest, prefixes: Sequence[str], kl_at: KlAt = "subject") -> Prompts:
    """Token ids, built once: prompt ids and target ids of every prefixed prompt."""
    bare = encode(lm.tokenizer, request.prompt)
    used = [encode(lm.tokenizer, request.prompt.behind(prefix)) for prefix in prefixes]
    essence = encode(lm.tokenizer, Prompt(ESSENCE, request.prompt.subject))
    targets = target_ids(lm.tokenizer, request.prompt.text, as_target(request.target_new, request.prompt.text))
    fronts = used if prefixes and prefixes[0] == "" else [bare, *used]
    start = len(fronts) - len(used)
    rows = [front.ids + targets[:-1] for front in fronts] + [essence.ids]
    batch = batch_of(lm, rows, align=[e.last_subject for e in [*fronts, essence]])
    ends = [batch.column[r] + len(front.ids) - 1 for r, front in enumerate(fronts)][start:]
    positions = torch.tensor([[end + t for t in range(len(targets))] for end in ends], device=batch.ids.device)
    column = batch.column[0] + bare.last_subject
    kl_column = column if kl_at == "subject" else batch.column[-1] + len(essence.ids) - 1
    used_rows = slice(start, len(fronts))
    return Prompts(batch, column, used_rows, targets, positions, len(fronts), kl_column, bare)


def keys_of(lm: LanguageModel, prompts: Prompts, layer: int, edits: Sequence[Update]) -> PromptKeys:
    """One pass up to the layer."""
    key, value = Point("mlp_key", layer), Point("mlp_out", layer)
    kept = activations(lm, prompts.batch, [key, value], edits=edits)
    keys, values = (kept[point][:, prompts.column].float() for point in (key, value))
    bias = getattr(lm.module(lm.down_projection(layer)), "bias", None)
    offset = torch.zeros_like(values[0]) if bias is None else bias.float()
    values = values - offset
    return PromptKeys(keys[prompts.rows], values[prompts.rows], keys[0], values[0], offset)


Final = Callable[[Float[Tensor, " d_model"]], Float[Tensor, "batch tail d_model"]]


def final_by_replay(
    lm: LanguageModel, prompts: Prompts, layer: int, edits: Sequence[Update], site: AddedTo = "mlp_out"
) -> Final:
    """δ → states after the final norm, from the subject's last token on. Blocks and tokens before it run only once.

    site: whether δ is added to the MLP's output (ROME) or to the block's (MEMIT).
    """
    recording = record(lm, prompts.batch, edits=edits)
    column, rows = prompts.column, torch.arange(len(prompts.batch.ids), device=prompts.batch.ids.device)
    entry = recording.states[layer][:, column : column + 1]
    rest = recording.states[layer + 1][:, column + 1 :]

    def final(delta: Float[Tensor, " d_model"]) -> Float[Tensor, "batch tail d_model"]:
        add: Patch = lambda state: state + delta.to(state)  # noqa: E731
        own = run_block(lm, recording, layer, column, entry, rows, [(Point(site, layer), add)])
        state = torch.cat([own, rest.to(own.device)], 1)
        for later in range(layer + 1, lm.n_layers):
            state = run_block(lm, recording, later, column, state, rows)
        return lm.module(lm.layout.norm)(state)

    return final


def final_by_hooks(
    lm: LanguageModel, prompts: Prompts, layer: int, edits: Sequence[Update], site: AddedTo = "mlp_out"
) -> Final:
    """The same, plainly: the whole model runs every time. The oracle of the fast path."""
    column = prompts.column

    def final(delta: Float[Tensor, " d_model"]) -> Float[Tensor, "batch tail d_model"]:
        def add(state: Tensor) -> Tensor:
            state = state.clone()
            state[:, column] = state[:, column] + delta.to(state)
            return state

        return hidden_states(lm, prompts.batch, edits=edits, patches=[(Point(site, layer), add)])[:, column:]

    return final


def optimise_delta(
    lm: LanguageModel,
    prompts: Prompts,
    v_0: Float[Tensor, " d_model"],
    final: Final,
    config: ValueSearch,
    *,
    scale: float | None = None,
    track: Track = silent,
    report: Report = ignore,
) -> tuple[Float[Tensor, " d_model"], tuple[Step, ...]]:
    """Adam on δ, zero at first. Loss = mean over prompts of the target's NLL + kl_weight·KL(edited ‖ original) on the
    essence prompt + decay·‖δ‖/‖v_0‖²; after each update ‖δ‖ ≤ clamp·‖v_0‖. scale: what counts as ‖v_0‖, if another.

    `steps` counts evaluations of the loss, as the authors' code does: 20 steps are at most 19 updates.
    """
    assert config.clamp is not None and config.steps is not None
    delta = torch.zeros_like(v_0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.lr)
    scale = float(v_0.norm()) if scale is None else scale
    limit = config.clamp * scale
    column, essence = prompts.column, prompts.essence
    wanted = torch.tensor(prompts.targets)
    rows = torch.arange(prompts.rows.start, prompts.rows.stop)[:, None]
    places = prompts.positions.cpu() - column
    original: Tensor | None = None
    history: list[Step] = []
    for index in track(range(config.steps), "Optimising v*", config.steps):
        with torch.enable_grad():
            states = final(delta)
            log_probs = lm.unembed(states[rows, places]).float().log_softmax(-1)
            wanted = wanted.to(log_probs.device)
            nll = -log_probs.gather(-1, wanted.expand(len(rows), -1)[..., None])[..., 0].mean(1)
            now = lm.unembed(states[essence, prompts.kl_column - column]).float().log_softmax(-1)
            original = now.detach() if original is None else original
            kl = (now.exp() * (now - original)).sum()
            decay = config.decay * delta.norm() / scale**2
            loss = nll.mean() + config.kl_weight * kl + decay.to(nll.device)
        first = log_probs[0, 0].detach()
        step = Step(
            index=index,
            loss=loss.item(),
            nll=nll.mean().item(),
            kl=config.kl_weight * kl.item(),
            decay=decay.item(),
            p_target=nll.detach().neg().exp().mean().item(),
            delta_norm=delta.detach().norm().item(),
            limit=limit,
            rank=int((first > first[wanted[0]]).sum()) + 1,
        )
        history.append(step)
        report(step)
        if step.loss < config.stop_loss or index == config.steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, limit / max(float(delta.norm()), 1e-30))
    return delta.detach(), tuple(history)
