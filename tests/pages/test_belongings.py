"""What a visitor has outlasts a reload, is nobody else's, and is given back when they are gone."""

from __future__ import annotations

from pages.shared.belongings import KEPT_FOR, Cloakroom, is_served, token


def test_a_second_connection_with_the_same_token_finds_everything() -> None:
    room = Cloakroom({"tab 1", "tab 2"}.__contains__)
    room.of("a", "tab 1")["edits"] = [1]

    assert room.of("a", "tab 2")["edits"] == [1]
    assert room.of("b", "tab 2") == {}
    assert room.knows("a") and not room.knows("c")


def test_a_visitor_is_there_while_any_tab_is_open() -> None:
    open_tabs = {"tab 1", "tab 2"}
    room = Cloakroom(open_tabs.__contains__)
    room.of("a", "tab 1")
    room.of("a", "tab 2")

    assert room.is_there("a") is True and room.is_there("nobody") is None
    open_tabs.remove("tab 1")
    assert room.is_there("a") is True
    open_tabs.clear()
    assert room.is_there("a") is False


def test_what_nobody_comes_back_for_is_given_back() -> None:
    open_tabs = {"tab 1"}
    gone = list[str]()
    room = Cloakroom(open_tabs.__contains__, gone.append)
    room.of("a", "tab 1").update(edits=[1], _owner="a's results")
    room.tidy(100.0)
    open_tabs.clear()
    room.tidy(200.0)
    room.tidy(200.0 + KEPT_FOR / 2)
    assert room.knows("a")
    open_tabs.add("reloaded")
    assert room.of("a", "reloaded")["edits"] == [1]  # in time
    room.tidy(300.0 + KEPT_FOR)
    assert room.knows("a")

    open_tabs.clear()
    room.tidy(400.0)
    room.tidy(400.0 + KEPT_FOR)

    assert not room.knows("a") and room.of("a", "later") == {} and gone == ["a's results"]


def test_outside_a_server_there_is_no_token() -> None:
    assert not is_served() and token() == ""
