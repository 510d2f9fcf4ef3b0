"""Words and numbers as they stand on the pages. No streamlit in here."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Mapping, Sequence

from rome_core import Prompt
from rome_core.editing.edit import Edit
from rome_core.errors import PromptError

# What Markdown reads anywhere in a line, what only at its beginning, and a directive such as :red[...].
_MARKS = re.compile(r"[\\`*_\[\]~$<&]|^[-+](?=[\s-]|$)|^[#>=|]|:(?=[\w:\[])")
# Emoji, icons, arrows and links are made of a text that Markdown has read already: no backslash keeps it as it is.
_SIGNS = re.compile(r":(?=[\w+/-]+:)|[<=~>-](?=[->=])|\bhttps?:(?=//)|\bwww(?=\.)|\w@(?=\w)", re.IGNORECASE)
_WORD_JOINER = "\u2060"

_OPENERS = {"the", "a", "an", "in", "on", "at", "of", "what", "where", "who", "when", "which"}
_LINKS = {"of", "the", "de", "du", "la", "von", "van", "and"}


def literal(text: str) -> str:
    """Text that Markdown leaves as it is, on one line: k*ᵀC⁻¹k* keeps its stars and A$AP its dollar."""
    joined = _SIGNS.sub(lambda sign: sign[0] + _WORD_JOINER, show_breaks(text).strip())
    return _MARKS.sub(r"\\\g<0>", re.sub(r"^(\d+)(?=[.)](\s|$))", rf"\1{_WORD_JOINER}", joined))


def code(text: str) -> str:
    """Text as Markdown code that nothing in it can end."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{show_breaks(text)}{pad}{fence}"


def show_breaks(text: str) -> str:
    """A text on one line, its line breaks made visible."""
    return re.sub(r" *(\r\n|\r|\n) *", " ⏎ ", text)


def number(value: float) -> str:
    """Three significant digits: 0.450, 12.3, 4.56e-05."""
    return f"{value:#.3g}".rstrip(".") if value else "0"


def show_token(label: str) -> str:
    """A token as it reads on the screen: spaces and line breaks made visible."""
    return label.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


def escape_token(label: str) -> str:
    """A token as plotly may draw it: visible spaces, no accidental markup."""
    return html.escape(show_token(label), quote=False)


def shorten(text: str, limit: int = 60) -> str:
    """The end of a long prompt: that is where prompts differ."""
    return text if len(text) <= limit else "…" + text[-limit:]


def guess_subject(text: str) -> str:
    """The longest stretch of capitalised words in a sentence, without an opening article or question word."""
    spans, span = [], list[str]()
    for word in text.split():
        bare = word.rstrip(".,;:!?")
        named = any(letter.isupper() for letter in bare)
        if (not span and named and bare.lower() not in _OPENERS) or (
            span and (named or bare in _LINKS or bare.isdigit())
        ):
            span.append(word)
        else:
            spans.append(span)
            span = []
        if word[-1] in ",;:!?":
            spans.append(span)
            span = []
    return max((_without_links(span) for span in [*spans, span]), key=len)


def _without_links(words: list[str]) -> str:
    """A stretch that does not end in "of" or a full stop."""
    while words and words[-1] in _LINKS:
        words = words[:-1]
    return " ".join(words).rstrip(".,;:!?")


def read_prompt(text: str, subject: str, occurrence: int = 0) -> Prompt:
    """A prompt from a form: a template with {}, or the full text with a subject, which may be left to be guessed."""
    subject = subject.strip()
    if "{}" in text:
        return Prompt(text, subject)
    if text.strip() and not subject and not guess_subject(text):
        raise PromptError(
            f"No subject could be guessed in '{text[:80]}'.",
            "It has no {} and no capitalised word.",
            "Write the subject beside it, or {} where it goes, e.g. '{} is located in the city of'.",
        )
    return Prompt.from_text(text, subject or guess_subject(text), occurrence)


def count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def edit_label(edit: Edit) -> str:
    """What an edit is called in a list: its first fact, how many others, its method."""
    first, *others = edit.requests
    more = f" and {count(len(others), 'other')}" if others else ""
    return f"{first.prompt.subject} → {first.target_new.strip()}{more} ({edit.method})"


def token_tables(tables: Mapping[str, Sequence[tuple[str, float]]], answer: str) -> str:
    """HTML: lists of tokens with their probabilities side by side, the answer in bold."""
    columns = "".join(_token_table(title, rows, answer) for title, rows in tables.items())
    return f"<div class='token-tables'>{columns}</div>"


def _token_table(title: str, rows: Sequence[tuple[str, float]], answer: str) -> str:
    lines = "".join(
        f"<tr class='{'answer' if token == answer else ''}' style='--p: {100 * p:.1f}%'>"
        f"<td>{html.escape(show_token(token))}</td><td>{number(p)}</td></tr>"
        for token, p in rows
    )
    return f"<div><h4>{html.escape(title)}</h4><table>{lines}</table></div>"


MARK = {"before": "91,112,131", "after": "217,130,43"}


def word_differences(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, with the words that the other one does not have marked."""
    old, new = before.split(" "), after.split(" ")
    left, right = [], []
    for change, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        same = change == "equal"
        left.append(_marked(old[a:b], None if same else "before"))
        right.append(_marked(new[c:d], None if same else "after"))
    return " ".join(filter(None, left)), " ".join(filter(None, right))


def _marked(words: list[str], kind: str | None) -> str:
    text = html.escape(" ".join(words))
    return f'<mark style="color:inherit;background:rgba({MARK[kind]},.28)">{text}</mark>' if kind and text else text
