"""From text to token ids, built once: prompt ids plus target ids, never decoded and read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_core.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CHARACTERS = 2_000  # a heat map of more tokens could not be read, and would take hours


@dataclass(frozen=True)
class Prompt:
    """A template with one {} and the subject that fills it: Prompt("The {} is in the city of", "Colosseum")."""

    template: str
    subject: str

    def __post_init__(self) -> None:
        if not self.template.strip():
            raise PromptError("The prompt is empty.", "", "Write e.g. '{} is located in the city of'.")
        if not self.subject.strip():
            raise PromptError("The subject is empty.", "", "Write the thing the fact is about, e.g. 'Eiffel Tower'.")
        if self.template.count("{}") != 1:
            found = self.template.count("{}")
            raise PromptError(
                f"'{self.template[:80]}' has {found or 'no'} {{}}{'s' if found > 1 else ''}.",
                "The place of the subject must be marked exactly once.",
                "Write {} where the subject goes, e.g. '{} is located in the city of'.",
            )
        if len(self.text) > MAX_CHARACTERS:
            raise PromptError(
                f"The prompt has {len(self.text):,} characters; at most {MAX_CHARACTERS:,} can be used.",
                "",
                "Keep the sentence that states the fact and leave out the rest.",
            )

    @classmethod
    def from_text(cls, text: str, subject: str) -> Prompt:
        """A prompt from its full text. Of several occurrences the first is meant; write a template to mean another."""
        if not text.strip():
            raise PromptError("The prompt is empty.", "", "Write e.g. 'The Eiffel Tower is located in the city of'.")
        at = text.find(subject) if subject.strip() else -1
        if subject.strip() and at < 0:
            raise PromptError(
                f"'{subject}' is not in the prompt '{text[:80]}'.",
                "",
                "Spell the subject as in the prompt, or write {} where it goes, e.g. '{} is located in the city of'.",
            )
        if at < 0:
            raise PromptError("The subject is empty.", "", "Write the thing the fact is about, e.g. 'Eiffel Tower'.")
        return cls(text[:at].replace("{}", "") + "{}" + text[at + len(subject) :].replace("{}", ""), subject)

    @property
    def text(self) -> str:
        return self.template.replace("{}", self.subject)

    @property
    def span(self) -> tuple[int, int]:
        """First and one-past-last character of the subject in `text`."""
        start = self.template.index("{}")
        return start, start + len(self.subject)

    def behind(self, prefix: str) -> Prompt:
        """The same prompt with a text in front."""
        return Prompt(prefix.replace("{}", "") + self.template, self.subject)


@dataclass(frozen=True)
class EditRequest:
    """A wish: this prompt should be continued with `target_new`. Targets are read with one leading space."""

    prompt: Prompt
    target_new: str
    target_true: str | None = None

    def __post_init__(self) -> None:
        if not self.target_new.strip():
            raise PromptError("The new object is empty.", "", "Write what the model should answer, e.g. 'Rome'.")


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, a label for each token as it reads on the screen, and the subject's tokens [first, stop)."""

    ids: tuple[int, ...]
    labels: tuple[str, ...]
    subject: tuple[int, int]

    @property
    def last_subject(self) -> int:
        """Position of the subject's last token."""
        return self.subject[1] - 1


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Encoded:
    """Tokenise a prompt and find its subject's tokens by the tokenizer's character offsets.

    A token belongs to the subject if it covers at least one of its characters, so a token that also covers a
    neighbouring space or letter counts.
    """
    text = prompt.text
    batch = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = tuple(batch["input_ids"]), batch["offset_mapping"]
    start, stop = prompt.span
    inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
    if not inside:
        raise PromptError(
            f"The tokenizer leaves nothing of the subject '{prompt.subject}'.", "", "Use a subject with letters in it."
        )
    return Encoded(ids, tuple(labels(tokenizer, ids)), (inside[0], inside[-1] + 1))


def cut_token(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The token that holds both a part of the subject and a letter beside it; empty if there is none."""
    encoded = encode(tokenizer, prompt)
    offsets = tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
    start, stop = prompt.span
    for token in (encoded.subject[0], encoded.subject[1] - 1):
        a, b = offsets[token]
        if (prompt.text[a:start] + prompt.text[stop:b]).strip():
            return encoded.labels[token]
    return ""


def labels(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> list[str]:
    """One readable piece of text a token. Tokens that hold a part of a character show its bytes' token instead."""
    pieces = [str(tokenizer.decode([token])) for token in ids]
    return [
        str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in piece or not piece else piece
        for token, piece in zip(ids, pieces, strict=True)
    ]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a plain text, with whatever start token the tokenizer adds by itself."""
    return tuple(tokenizer(text)["input_ids"])


def as_target(target: str) -> str:
    """A target as it follows a prompt: one leading space."""
    return " " + target.strip()


def target_ids(tokenizer: PreTrainedTokenizerBase, text: str, continuation: str) -> tuple[int, ...]:
    """Token ids that `continuation` adds behind `text`.

    Read off the joint text, because some tokenizers put a stray space token in front of a text that stands alone;
    where the seam merges into one token, the continuation is tokenised by itself.
    """
    if not continuation:
        raise PromptError("The answer is empty.", "", "Write the text whose probability you want, e.g. ' Rome'.")
    front, joint = text_ids(tokenizer, text), text_ids(tokenizer, text + continuation)
    added = joint[len(front) :]
    if joint[: len(front)] == front and added:
        return added
    alone = tuple(tokenizer(continuation, add_special_tokens=False)["input_ids"])
    if not alone:
        raise PromptError(f"The tokenizer leaves nothing of '{continuation}'.", "", "Use an answer with letters in it.")
    return alone
