"""From text to token ids, built once: prompt ids plus target ids, never decoded and read again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rome_core.errors import PromptError
from rome_core.model import wording
from rome_core.model.wording import gap, occurrences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CHARACTERS = 2_000  # a heat map of more tokens could not be read, and would take hours


@dataclass(frozen=True)
class Prompt:
    """A template with one {} and the subject that fills it: Prompt("The {} is in the city of", "Colosseum").

    Spaces around either are stripped here, for every way in; line breaks of a template mean something and stay.
    """

    template: str
    subject: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", _OUTER_SPACES.sub("", self.template))
        object.__setattr__(self, "subject", self.subject.strip())
        if not self.template.strip():
            raise PromptError("The prompt is empty.", "", "Write e.g. '{} is located in the city of'.")
        if not self.subject:
            raise PromptError("The subject is empty.", "", "Write the thing the fact is about, e.g. 'Eiffel Tower'.")
        if self.template.count("{}") != 1:
            found = self.template.count("{}")
            raise PromptError(
                f"'{self.template[:80]}' has {found or 'no'} {{}}{'s' if found > 1 else ''}.",
                "The place of the subject must be marked exactly once.",
                "Write {} where the subject goes, e.g. '{} is located in the city of'.",
            )
        check_whole(self.text)
        if len(self.text) > MAX_CHARACTERS:
            raise PromptError(
                f"The prompt has {len(self.text):,} characters; at most {MAX_CHARACTERS:,} can be used.",
                "",
                "Keep the sentence that states the fact and leave out the rest.",
            )

    @classmethod
    def from_text(cls, text: str, subject: str, occurrence: int = 0) -> Prompt:
        """A prompt from its full text, in which the subject is looked for as a whole word.

        occurrence: which of the `occurrences` is meant, from 0. The subject is kept as the text spells it. Raises
        PromptError; where the text spells the subject otherwise, its `suggestion` is that spelling.
        """
        subject = subject.strip()
        if not text.strip():
            raise PromptError("The prompt is empty.", "", "Write e.g. 'The Eiffel Tower is located in the city of'.")
        if not subject:
            raise PromptError("The subject is empty.", "", "Write the thing the fact is about, e.g. 'Eiffel Tower'.")
        if "{}" in text:
            raise PromptError(
                f"'{text[:80]}' marks the subject's place with {{}} already.",
                "",
                "Fill it in, or use it as a template.",
            )
        spans = occurrences(text, subject)
        if not spans:
            raise _not_there(text, subject)
        if not 0 <= occurrence < len(spans):
            raise PromptError(f"'{subject}' stands {len(spans)} times in the prompt.", "", "Choose one of them.")
        start, stop = spans[occurrence]
        return cls(text[:start] + "{}" + text[stop:], text[start:stop])

    @property
    def text(self) -> str:
        return self.template.replace("{}", self.subject)

    @property
    def span(self) -> tuple[int, int]:
        """First and one-past-last character of the subject in `text`."""
        start = self.template.index("{}")
        return start, start + len(self.subject)

    def behind(self, prefix: str) -> Prompt:
        """The same prompt with a text in front, in which {} means nothing (the authors write theirs as templates)."""
        return Prompt(prefix.replace("{}", "") + self.template, self.subject)


_SPACES = "[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+"  # of Unicode, without those that break a line
_HALF = re.compile("[\ud800-\udfff]")
_OUTER_SPACES = re.compile(rf"^{_SPACES}|{_SPACES}\Z")


def _not_there(text: str, subject: str) -> PromptError:
    """Why a subject is not found: it is spelt otherwise, a part of a word, or not there."""
    if alike := wording.spelt_alike(text, subject):
        return PromptError(
            f"'{subject}' is not in the prompt '{text[:80]}', but '{alike}' is: {_difference(subject, alike)}.",
            "",
            f"Did you mean '{alike}'? Then spell it as the prompt does.",
            suggestion=alike,
        )
    if words := wording.inside_words(text, subject):
        return PromptError(
            f"'{subject}' stands in the prompt only as a part of '{words[0]}'.",
            "",
            "Name the whole word, or write {} where the subject goes.",
            suggestion=words[0],
        )
    return PromptError(
        f"'{subject}' is not in the prompt '{text[:80]}'.",
        "",
        "Spell the subject as in the prompt, or write {} where it goes, e.g. '{} is located in the city of'.",
    )


def _difference(one: str, other: str) -> str:
    """In what two spellings that look alike differ."""
    kinds = {
        "the apostrophe": lambda c: c in wording.APOSTROPHES or c == "'",
        "a dash": lambda c: c in wording.DASHES or c == "-",
        "a quotation mark": lambda c: c in wording.QUOTES or c == '"',
        "a space": str.isspace,
    }
    found = [name for name, fits in kinds.items() if list(filter(fits, one)) != list(filter(fits, other))]
    return f"{' and '.join(found) or 'capital and small letters'} differ{'' if len(found) > 1 or not found else 's'}"


def check_whole(text: str) -> None:
    """Raise PromptError where a text holds half a letter (a lone surrogate), which no tokenizer and no file takes."""
    if half := _HALF.search(text):
        raise PromptError(
            f"The text holds U+{ord(half[0]):04X}, which is half a letter.",
            "It was cut in two on its way.",
            "Write the letter that was meant.",
        )


def check_letters(text: str) -> None:
    """Raise PromptError where a letter of what a person wrote was lost on its way here (a model may well write one)."""
    if "\ufffd" in text:
        raise PromptError(
            f"'{text[:80]}' holds \ufffd, the mark of a letter that was damaged on its way.",
            "",
            "Write the letter that was meant, or read the file in the encoding it was saved in.",
        )


@dataclass(frozen=True)
class EditRequest:
    """A wish: this prompt should be continued with `target_new`, behind what `wording.gap` puts between them.

    Spaces around the targets are stripped.
    """

    prompt: Prompt
    target_new: str
    target_true: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_new", self.target_new.strip())
        if self.target_true is not None:
            object.__setattr__(self, "target_true", self.target_true.strip() or None)
        if not self.target_new:
            raise PromptError("The new object is empty.", "", "Write what the model should answer, e.g. 'Rome'.")
        for text in (self.prompt.text, self.target_new, self.target_true or ""):
            check_letters(text)


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
    """Token ids of a plain text, with whatever start token the tokenizer adds by itself. Raises PromptError."""
    check_whole(text)
    return tuple(tokenizer(text)["input_ids"])


def as_target(target: str, text: str) -> str:
    """A target as it follows a text: behind one space, or none where `wording.gap` says so."""
    return gap(text, target)[0] + target.strip()


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


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Prompt:
    """The prompt as a user's message in the tokenizer's own chat template, up to where the assistant's answer begins.

    Raises PromptError if the tokenizer has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            "This model's tokenizer has no chat template.",
            "",
            "Write the prompt as plain text, or choose a chat model.",
        )
    message = [{"role": "user", "content": prompt.template}]
    text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    start = str(tokenizer.bos_token or "")
    if start and text.startswith(start) and text_ids(tokenizer, "a")[:1] == (tokenizer.bos_token_id,):
        text = text[len(start) :]  # the tokenizer puts it there itself
    return Prompt(text, prompt.subject)
