"""What is kept of pages: little, not for long, and nobody's because somebody else has many."""

from __future__ import annotations

import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.queueing import Event

from app.page_states import PageStates
from app.visitors import KEY, Visitor

ANN, BOB = Visitor("ann", "10.0.0.1", "ann"), Visitor("bob", "10.0.0.2", "bob")
CROWD = [Visitor(f"crowd {n}", "10.0.0.3", f"crowd {n}") for n in range(9)]
PLACES = 5


@pytest.fixture
def states() -> PageStates:
    """Of a page with a text and something remembered, with few places."""
    with gr.Blocks() as blocks:
        text, memory = gr.Textbox("a text", elem_id="text"), gr.State("nothing")
        text.change(lambda text: text, text, memory)
    blocks.state_session_capacity = PLACES
    return PageStates(blocks.queue())


def used(states: PageStates, session_id: str, visitor: Visitor | None = None) -> Any:
    if visitor:
        states.belongs(session_id, visitor)
    return states[session_id]


def called(states: PageStates, visitor: Visitor) -> str:
    """Begin the call of a program, which names no session; return the one that Gradio makes up."""
    (fn,) = states.blocks.fns.values()
    event = Event(None, fn, SimpleNamespace(scope={KEY: visitor}), None)
    states.blocks._queue.event_ids_to_events[event._id] = event
    return str(event.session_hash)


def test_a_page_s_settings_are_not_kept_with_every_session(states: PageStates) -> None:
    state = used(states, "ann's", ANN)
    (text,) = (b for b in states.blocks.blocks.values() if isinstance(b, gr.Textbox))
    (memory,) = (b for b in states.blocks.blocks.values() if isinstance(b, gr.State))
    state[memory._id] = "something"
    assert state.config_values, "or Gradio has mended it, and this is not needed any more"
    states.delete_all_expired_state()
    assert not state.config_values
    assert states["ann's"][memory._id] == "something"
    state._update_value_in_config(text._id, "another")  # what Gradio does with every value
    assert state.config_values[text._id]["props"]["value"] == "another"
    assert states["ann's"][text._id].value == "a text"


def test_whoever_has_most_makes_room(states: PageStates) -> None:
    used(states, "ann's", ANN)
    for n in range(20):
        used(states, f"bob's {n}", BOB)
    assert list(states.session_data) == ["ann's", *(f"bob's {n}" for n in range(16, 20))]
    used(states, "bob's 16")
    used(states, "ann's other", ANN)
    assert list(states.session_data) == ["ann's", "bob's 18", "bob's 19", "bob's 16", "ann's other"]


def test_many_at_one_address_make_room_among_themselves(states: PageStates) -> None:
    used(states, "ann's", ANN)
    used(states, "bob's", BOB)
    for number, visitor in enumerate(CROWD):
        used(states, f"crowd {number}", visitor)
    assert list(states.session_data) == ["ann's", "bob's", "crowd 6", "crowd 7", "crowd 8"]


def test_calls_of_programs_are_their_visitors_too(states: PageStates) -> None:
    calls = [called(states, BOB) for _ in range(20)]
    used(states, "ann's", ANN)
    used(states, "ann's other", ANN)
    for call in calls:
        states[call]
    assert list(states.session_data) == ["ann's", "ann's other", *calls[-3:]]


def test_nobody_s_go_first_and_the_one_in_use_never(states: PageStates) -> None:
    for session_id in ("ann's 1", "ann's 2"):
        used(states, session_id, ANN)
    for n in range(5):
        assert states[f"nobody's {n}"] is states.session_data[f"nobody's {n}"]
    assert list(states.session_data)[:2] == ["ann's 1", "ann's 2"]
    states.session_data.clear()
    for n in range(PLACES):
        used(states, f"bob's {n}", BOB)
    assert states["nobody's"] is states.session_data["nobody's"]
    assert "bob's 0" not in states


def test_a_page_that_was_closed_is_forgotten_after_a_day(states: PageStates) -> None:
    for session_id in ("closed", "closed today", "open"):
        used(states, session_id, ANN).is_closed = session_id != "open"
    states.time_last_used["closed today"] -= timedelta(hours=23)
    for session_id in ("closed", "open"):
        states.time_last_used[session_id] -= timedelta(days=1, seconds=1)
    states.delete_all_expired_state()
    assert list(states.session_data) == ["closed today", "open"]
    assert states.time_last_used.keys() == states._whose.keys() == states.session_data.keys()
    assert states["closed"].is_closed is False, "a page that comes back begins anew"


def test_what_is_to_be_heard_stays_as_long_as_its_page_or_its_call(states: PageStates) -> None:
    queue = states.blocks._queue
    messages, promises = queue.pending_messages_per_session, queue.pending_event_ids_session
    call = called(states, BOB)
    used(states, "ann's", ANN)
    for session_id in ("ann's", call, "gone"):
        messages[session_id], promises[session_id] = object(), {"an event"}
    states.delete_all_expired_state()
    assert messages.keys() == promises.keys() == {"ann's", call}
    queue.event_ids_to_events.clear()
    states.delete_all_expired_state()
    assert messages.keys() == promises.keys() == {"ann's"}
    # Gradio's own bound is on all of them, so that many of one visitor's would push out others'.
    assert messages.max_size == sys.maxsize
