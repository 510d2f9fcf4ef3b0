"""Text as people write it: where a subject stands in a sentence, how it is spelt there, and whether a space follows.

Nothing here changes a text. Unicode writes some letters in two ways (é as one character, or as e and an accent: NFC and
NFD); they are told apart by nobody who reads, so they are not told apart here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator

Span = tuple[int, int]  # first and one-past-last character

APOSTROPHES = dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u00b4\uff07`", "'")
QUOTES = dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02", '"')
DASHES = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
_ALIKE = str.maketrans(APOSTROPHES | QUOTES | DASHES)
# Unicode's names of the letters of scripts that put no space between words.
_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
_SUFFIXED = (*_UNSPACED, "HANGUL")  # Korean has spaces, but its particles follow a noun without one


def occurrences(text: str, subject: str) -> list[Span]:
    """Where the subject stands in the text as a whole word, from left to right; NFC and NFD count as one spelling."""
    return [span for span in _find(text, subject, _exactly) if not _cuts_a_word(text, span)]


def inside_words(text: str, subject: str) -> list[str]:
    """The words of the text that hold the subject as a part of them: Iranian for Iran."""
    return [text[slice(*_word(text, span))] for span in _find(text, subject, _exactly) if _cuts_a_word(text, span)]


def spelt_alike(text: str, subject: str) -> str:
    """The subject as the text spells it, where only apostrophes, quotes, dashes, spaces or case differ; else empty."""
    spans = [span for span in _find(text, subject, _loosely) if not _cuts_a_word(text, span)]
    return text[slice(*spans[0])] if spans else ""


def is_unspaced(character: str) -> bool:
    """Whether it is a letter of a script that puts no space between words (Chinese, Japanese, Thai, …)."""
    return unicodedata.name(character, "").startswith(_UNSPACED)


def gap(text: str, answer: str) -> tuple[str, str]:
    """What stands between a text and the answer that follows it, a space or nothing; and the rule that says so.

    Nothing after a line break, an opening mark, a currency sign, a hyphen, a slash or an apostrophe; nothing within
    scripts that put no space between words; nothing before a suffix (%, 's, -ish) or a closing mark.
    """
    last, first = text[-1:], answer.strip()[:1]
    if not last or last.isspace():
        return "", "no space: the prompt ends in a line break" if last else "no space: nothing stands before it"
    if unicodedata.category(last) in ("Ps", "Pi") or (last == '"' and text.count('"') % 2):
        return "", f"no space after the opening {last}"
    if unicodedata.category(last) == "Sc":
        return "", f"no space after the currency sign {last}"
    if last in "-\u2010\u2011/\\@#_" or (last in "'\u2019" and text[-2:-1] not in ("", " ", "s", "S")):
        return "", f"no space after {last}"
    if is_unspaced(last) or (unicodedata.east_asian_width(last) in "WF" and unicodedata.category(last)[0] == "P"):
        return "", f"no space after {last}: its script puts none between words"
    if _is_suffix(answer.strip()):
        return "", f"no space before {first}"
    return " ", "one space between the prompt and the object"


def _is_suffix(answer: str) -> bool:
    """Whether an answer leans on what stands before it: %, °C, ), ', …' and 's or -ish, but not -5, .NET or '90s."""
    first, rest = answer[:1], answer[1:]
    if first in "'\u2019":
        return rest[:2].rstrip(" .,").casefold() in ("s", "t", "d", "m", "re", "ve", "ll") and not rest[2:3].isalpha()
    if first in "-\u2010\u2011":
        return rest[:1].isalpha()
    if first in ".,:;!?":
        return not rest[:1].isalnum()
    return first in "%\u2030\u00b0\u2032\u2033\u2026" or unicodedata.category(first or "a") in ("Pe", "Pf")


# ------------------------------------------------------------------------------------------------------------- finding


def _exactly(cluster: str) -> str:
    return unicodedata.normalize("NFD", cluster)


def _loosely(cluster: str) -> str:
    """Without case, with one kind of apostrophe, quote, dash and space."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", cluster.translate(_ALIKE)).casefold())
    return "".join(" " if character.isspace() else character for character in folded)


def _clusters(text: str) -> Iterator[Span]:
    """The characters of a text, each with the marks that are written on it: normal forms never reach beyond them."""
    start = 0
    for at in range(1, len(text) + 1):
        if at == len(text) or not unicodedata.combining(text[at]):
            yield start, at
            start = at


def _find(text: str, subject: str, form: Callable[[str], str]) -> list[Span]:
    """Spans of the text whose normal form is the subject's, not overlapping, from left to right."""
    if not subject:
        return []
    wanted = "".join(form(subject[a:b]) for a, b in _clusters(subject))
    normal, starts, stops = [], {}, {}  # where a place in the normal text begins or ends a place in the text
    length = 0
    for a, b in _clusters(text) if text else ():
        starts[length] = a
        normal.append(form(text[a:b]))
        length += len(normal[-1])
        stops[length] = b
    joined, spans, at = "".join(normal), [], 0
    while wanted and (at := joined.find(wanted, at)) >= 0:
        if at in starts and at + len(wanted) in stops:
            spans.append((starts[at], stops[at + len(wanted)]))
            at += len(wanted)
        else:  # a base letter without the marks that the text has on it
            at += 1
    return spans


def _is_letter(character: str) -> bool:
    """Whether it belongs to a word; letters of scripts whose words are not parted, or take particles, stand alone."""
    if not character or unicodedata.name(character, "").startswith(_SUFFIXED):
        return False
    return character.isalnum() or character == "_" or bool(unicodedata.combining(character))


def _cuts_a_word(text: str, span: Span) -> bool:
    start, stop = span
    before, after = text[start - 1 : start], text[stop : stop + 1]
    return (_is_letter(before) and _is_letter(text[start])) or (_is_letter(after) and _is_letter(text[stop - 1]))


def _word(text: str, span: Span) -> Span:
    start, stop = span
    while start > 0 and _is_letter(text[start - 1]):
        start -= 1
    while stop < len(text) and _is_letter(text[stop]):
        stop += 1
    return start, stop
