"""Where the subject's tokens are, and what is said about text that cannot be used."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_core.errors import PromptError
from rome_core.model.tokens import (
    EditRequest,
    Prompt,
    as_target,
    chat_prompt,
    cut_token,
    encode,
    labels,
    target_ids,
    text_ids,
)
from tests.tiny import tiny_tokenizer, tokenizer_with_start

PROMPTS = [
    Prompt("{} is located in the city of", "Colosseum"),  # first
    Prompt("The city of {}", "Paris"),  # last
    Prompt("{}", "Eiffel Tower"),  # all there is
    Prompt("The {} is located in the city of", "Eiffel Tower"),
    Prompt("Paris is the capital; {} is the", "Paris"),  # the second of two
    Prompt("{} is the capital, Paris", "Paris"),  # the first of two
    Prompt("The green {}, far away", "dragon"),  # punctuation behind
    Prompt("The “{}” is far", "green dragon"),  # and on both sides
    Prompt("The {}s are green", "dragon"),  # a letter behind
    Prompt("The  {}  is", "Eiffel Tower"),  # two spaces
    Prompt("The {} is", " Eiffel Tower "),  # spaces of its own
    Prompt("In {}, people", "São Paulo"),
    Prompt("{} is the capital of", "東京"),
    Prompt("The city 東{}都 is", "京"),  # inside a run of multi-byte characters
    Prompt("{} is a dragon", "🐉"),
    Prompt("Zu{}ich", "\u0308r"),  # a combining mark
]


def covered(prompt: Prompt) -> tuple[int, int]:
    """The oracle, by bytes: a byte-level token stands for as many bytes as it has characters."""
    tokenizer = tiny_tokenizer()
    start, stop = (len(prompt.text[:at].encode()) for at in prompt.span)
    inside, at = [], 0
    for i, token in enumerate(tokenizer(prompt.text)["input_ids"]):
        end = at + len(tokenizer.convert_ids_to_tokens(token))
        if at < stop and end > start:
            inside.append(i)
        at = end
    return inside[0], inside[-1] + 1


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_the_subject_is_found_by_its_characters(prompt: Prompt) -> None:
    encoded = encode(tiny_tokenizer(), prompt)
    first, stop = encoded.subject

    assert list(encoded.ids) == tiny_tokenizer()(prompt.text)["input_ids"]
    assert encoded.last_subject == stop - 1
    assert prompt.text[slice(*prompt.span)] == prompt.subject
    assert prompt.subject.strip() in tiny_tokenizer().decode(encoded.ids[first:stop])
    # Offsets know whole characters only, so a neighbour may count that holds other bytes of the same character.
    a, b = covered(prompt)
    assert first <= a < b <= stop
    if prompt.text.isascii():
        assert (first, stop) == (a, b)


def test_a_subject_that_occurs_twice_is_the_one_that_is_marked() -> None:
    first = encode(tiny_tokenizer(), Prompt("{} and Paris", "Paris"))
    second = encode(tiny_tokenizer(), Prompt("Paris and {}", "Paris"))

    assert first.ids == second.ids
    assert first.subject[1] <= second.subject[0]
    assert Prompt.from_text("Paris and Paris", "Paris").span == (0, 5)


@given(st.text(min_size=1, max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_any_text_keeps_its_subject(subject: str, before: str, after: str) -> None:
    """Whatever is typed, the span names the subject's characters; only an empty subject is refused."""
    if "{}" in before + after:
        return
    if not subject.strip():
        with pytest.raises(PromptError):
            Prompt(before + "{}" + after, subject)
        return

    prompt = Prompt(before + "{}" + after, subject)
    encoded = encode(tiny_tokenizer(), prompt)

    assert prompt.template.strip() == f"{before}{{}}{after}".strip()  # only spaces around it go
    assert prompt.text[slice(*prompt.span)] == prompt.subject == subject.strip()
    spelt = tiny_tokenizer().decode(encoded.ids[slice(*encoded.subject)])
    assert subject.strip() in spelt  # its tokens spell it
    assert 0 <= encoded.subject[0] < encoded.subject[1] <= len(encoded.ids) == len(encoded.labels)


def test_a_start_token_moves_the_subject_by_one() -> None:
    prompt = Prompt("{} is far", "Paris")

    assert encode(tiny_tokenizer(), prompt).subject == (0, 1)
    assert encode(tokenizer_with_start(), prompt).subject == (1, 2)


def test_a_prompt_from_text_reads_the_same() -> None:
    prompt = Prompt.from_text("The Eiffel Tower is located in the city of", "Eiffel Tower")

    assert prompt == Prompt("The {} is located in the city of", "Eiffel Tower")


def test_a_text_in_front_moves_the_span_and_keeps_the_subject() -> None:
    prompt = Prompt("The {} is", "Eiffel Tower")

    assert prompt.behind("x. ") == Prompt("x. The {} is", "Eiffel Tower")
    assert prompt.behind("x. {}") == prompt.behind("x. ")  # the authors write their contexts as templates
    assert prompt.behind("") == prompt


BAD = {
    "empty prompt": (lambda: Prompt("", "Paris"), "The prompt is empty."),
    "only spaces": (lambda: Prompt("  \n", "Paris"), "The prompt is empty."),
    "empty text": (lambda: Prompt.from_text(" ", "Paris"), "The prompt is empty."),
    "empty subject": (lambda: Prompt("{} is", " "), "The subject is empty."),
    "empty subject of a text": (lambda: Prompt.from_text("Paris is", ""), "The subject is empty."),
    "no {}": (lambda: Prompt("Paris is", "Paris"), "'Paris is' has no {}."),
    "two {}": (lambda: Prompt("{} is {}", "Paris"), "'{} is {}' has 2 {}s."),
    "subject not in the prompt": (
        lambda: Prompt.from_text("The Eiffel Tower is", "Eifel Tower"),
        "'Eifel Tower' is not in the prompt 'The Eiffel Tower is'.",
    ),
    "too long": (lambda: Prompt("{} " + "x" * 4_998, "P"), "The prompt has 5,000 characters; at most 2,000"),
    "empty target": (lambda: EditRequest(Prompt("{} is", "Paris"), ""), "The new object is empty."),
    "target of spaces": (lambda: EditRequest(Prompt("{} is", "Paris"), "  "), "The new object is empty."),
    "empty answer": (lambda: target_ids(tiny_tokenizer(), "Paris is", ""), "The answer is empty."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_a_sentence_of_its_own(case: str) -> None:
    make, sentence = BAD[case]
    with pytest.raises(PromptError) as caught:
        make()

    assert str(caught.value).startswith(sentence)
    assert caught.value.try_next  # what to do instead


@pytest.mark.parametrize("make", [tiny_tokenizer, tokenizer_with_start], ids=["plain", "with start token"])
@pytest.mark.parametrize("text", ["The Eiffel Tower is in", "Paris", "東京 is", "The city of "])
@pytest.mark.parametrize("answer", [" Rome", " New York City", " São Paulo", ".", "s", " 東京"])
def test_an_answer_has_the_tokens_that_it_adds_to_the_text(make, text: str, answer: str) -> None:
    tokenizer = make()
    front, joint = (tokenizer(t)["input_ids"] for t in (text, text + answer))

    ids = target_ids(tokenizer, text, answer)

    if joint[: len(front)] == front:
        assert [*front, *ids] == joint
    else:  # the seam merged into one token: the answer by itself, without another start token
        assert list(ids) == tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == answer
    assert text_ids(tokenizer, text) == tuple(front)


def test_a_target_has_one_leading_space() -> None:
    assert [as_target(t, "The city of") for t in ("Rome", " Rome", "  Rome ")] == [" Rome"] * 3


def test_a_label_reads_as_its_text_and_a_part_of_a_character_as_its_bytes() -> None:
    tokenizer = tiny_tokenizer()
    ids = tuple(tokenizer("The Eiffel東")["input_ids"])

    found = labels(tokenizer, ids)

    assert found[:2] == ["The", " Eiffel"]
    assert len(found) == len(ids) and all(found)
    assert not any("\ufffd" in label for label in found)


@pytest.mark.parametrize(
    ("template", "subject", "cut"),
    [
        ("The {} is far", "green dragon", False),
        ("The Colosseum is loc{} in", "ated", True),
        ("The {}gon is", "dra", True),
    ],
)
def test_a_subject_that_begins_or_ends_inside_a_token(template: str, subject: str, cut: bool) -> None:
    prompt = Prompt(template, subject)
    token = cut_token(tiny_tokenizer(), prompt)

    assert bool(token) == cut
    assert token in prompt.text and (token.strip() not in subject) == cut  # it holds more than the subject


def test_spaces_around_a_prompt_go_in_one_place_and_line_breaks_stay() -> None:
    assert Prompt(" The {} is in\u00a0", " Eiffel Tower\u2009") == Prompt("The {} is in", "Eiffel Tower")
    assert Prompt("{} is\n", "Paris").text == "Paris is\n"
    assert EditRequest(Prompt("{} is", "Paris"), " Rome ", "  ") == EditRequest(Prompt("{} is", "Paris"), "Rome")


def test_which_of_several_places_is_meant() -> None:
    text = "Iran is in Asia, and Iran is on the continent of"

    assert [Prompt.from_text(text, "Iran", n).span[0] for n in range(2)] == [0, 21]
    assert Prompt.from_text(text, "Iran", 1).text == text
    with pytest.raises(PromptError, match="'Iran' stands 2 times in the prompt"):
        Prompt.from_text(text, "Iran", 2)


def test_a_subject_that_is_spelt_otherwise_is_offered_as_the_prompt_has_it() -> None:
    cases = {
        ("Qui dirige l’IAAF ?", "l'IAAF"): ("the apostrophe differs", "l’IAAF"),
        ("la caserne est", "Caserne"): ("capital and small letters differ", "caserne"),
        ("the Eiffel\u00a0Tower is", "Eiffel Tower"): ("a space differs", "Eiffel\u00a0Tower"),
        ("Iranian people live in", "Iran"): ("only as a part of 'Iranian'", "Iranian"),
    }
    for (text, subject), (words, suggestion) in cases.items():
        with pytest.raises(PromptError) as caught:
            Prompt.from_text(text, subject)
        assert words in str(caught.value) and caught.value.suggestion == suggestion
        assert pickle.loads(pickle.dumps(caught.value)).suggestion == suggestion
        assert Prompt.from_text(text, suggestion).subject == suggestion
    with pytest.raises(PromptError) as caught:
        Prompt.from_text("Paris is", "London")
    assert caught.value.suggestion == ""


def test_a_prompt_that_marks_its_place_already_is_no_full_text() -> None:
    with pytest.raises(PromptError, match=r"marks the subject's place with \{\} already"):
        Prompt.from_text("Paris {} is", "Paris")


def test_a_damaged_letter_is_refused() -> None:
    for subject, new, true in (("S\ufffdo", "a", None), ("x", "R\ufffdme", None), ("x", "a", "\ufffd")):
        with pytest.raises(PromptError, match="damaged"):
            EditRequest(Prompt("{} is", subject), new, true)


def test_a_chat_template_wraps_the_prompt_up_to_the_answer() -> None:
    tokenizer = copy.deepcopy(tokenizer_with_start())
    with pytest.raises(PromptError, match="no chat template"):
        chat_prompt(tokenizer, Prompt("Where is {}?", "Paris"))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n{% endif %}"
    )

    prompt = chat_prompt(tokenizer, Prompt("Where is {}?", "Paris"))

    assert prompt.text == "<user>Where is Paris?\n<assistant>\n" and prompt.subject == "Paris"
    assert encode(tokenizer, prompt).ids[:2].count(tokenizer.bos_token_id) == 1
    assert as_target("Rome", prompt.text) == "Rome"
