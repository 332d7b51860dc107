"""What Gradio keeps of open pages: no more than is needed, and nobody's is lost to others."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

from gradio.state_holder import StateHolder

from .disk import DAY
from .fairness import superfluous
from .visitors import Visitor, visitor_of


class PageStates(StateHolder):
    """Gradio's sessions, in place of its own keeping of them.

    Gradio copies all settings of a page into each session, half a megabyte and more, for links to a
    page as it is, which this app has none of. It keeps sessions until there are too many, whoever
    has left; then the oldest go, so that a visitor with many would take everyone's photos and
    choices away, and what they are about to hear of their pictures. Here the oldest of whoever has
    most go, and those of pages that were closed a day ago; until then a page may come back, of a
    computer that slept.

    Args:
        blocks: Gradio's app, which is being launched.
    """

    def __init__(self, blocks: Any) -> None:
        super().__init__()
        self._whose: dict[str, Visitor] = {}
        self.set_blocks(blocks)
        self._queue = blocks._queue
        # Messages are dropped with their sessions, by which they are bounded.
        self._queue.pending_messages_per_session.max_size = sys.maxsize

    def belongs(self, session_id: str, visitor: Visitor) -> None:
        """Say whose a session is that is about to be used."""
        self._whose[session_id] = visitor

    def update(self, session_id: str) -> None:
        """Note that a session is used, and let others go where there are too many."""
        if session_id not in self._whose:
            self._ask_queue(session_id)
        with self.lock:
            self.session_data.move_to_end(session_id)
            while len(self.session_data) > self.capacity:
                self._forget(superfluous({id: self._whose.get(id) for id in self.session_data}))

    def delete_all_expired_state(self) -> None:
        """Let go of what nobody needs any more; Gradio calls it once a second."""
        super().delete_all_expired_state()
        now = datetime.now()
        with self.lock:
            for session_id, state in list(self.session_data.items()):
                state.config_values.clear()  # what is missing is made again when it is written to
                unused = now - self.time_last_used.get(session_id, now)
                if state.is_closed and unused.total_seconds() > DAY:
                    self._forget(session_id)
        self._forget_messages()

    def _ask_queue(self, session_id: str) -> None:
        """Find out whose a session is that Gradio alone has named, for the call of a program."""
        for event in list(self._queue.event_ids_to_events.values()):
            if event.session_hash == session_id:
                self.belongs(session_id, visitor_of(event.request.scope))

    def _forget(self, session_id: str) -> None:
        del self.session_data[session_id]
        self.time_last_used.pop(session_id, None)

    def _forget_messages(self) -> None:
        """Drop what sessions that are gone were to hear, and whose they were."""
        events = list(self._queue.event_ids_to_events.values())
        needed = self.session_data.keys() | {event.session_hash for event in events}
        queue = self._queue
        for kept in (queue.pending_messages_per_session, queue.pending_event_ids_session):
            for session_id in kept.keys() - needed:
                del kept[session_id]
        self._whose = {id: visitor for id, visitor in self._whose.items() if id in needed}
