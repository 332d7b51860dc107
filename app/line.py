"""The line of those who wait for pictures: who may join it, and whose turn it is."""

from __future__ import annotations

import threading

from svfit_diffusion.serving.turns import Turns

from .errors import BusyError
from .fairness import of_address
from .settings import Limits
from .visitors import HOUSE, Visitor
from .visits import Portion, Visit


class Line:
    """Portions of pictures that wait, and the visits they belong to.

    Nobody takes all places: a visitor has a few, an address leaves some to others. Turns go round:
    whoever was served longest ago comes first, however much they wait for.

    Args:
        limits: places, and pictures of a batch.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._visits: list[Visit] = []
        self._waiting: list[Portion] = []
        self._turns: Turns[Portion] = Turns(lambda portion: portion.visit.visitor.id)

    def __len__(self) -> int:
        """How many portions wait."""
        return len(self._waiting)

    def join(self, portions: list[Portion]) -> None:
        """Let a visit's portions wait.

        Raises:
            BusyError: there is no place left for this visitor; none of them waits.
        """
        visit = portions[0].visit
        with self._lock:
            self._visits = [other for other in self._visits if not other.over.is_set()]
            self._check(visit.visitor)
            self._visits.append(visit)
            self._waiting += portions

    def take(self) -> list[Portion]:
        """Take the portion whose turn it is, and those that fit into its batch; none if all who
        waited have left.
        """
        with self._lock:
            waiting = [portion for portion in self._waiting if not portion.visit.over.is_set()]
            taken: list[Portion] = []
            room = self._limits.max_images
            ordered = self._turns.in_order(waiting)
            for portion in ordered:
                if len(portion.wanted) <= room and portion.common == ordered[0].common:
                    taken.append(portion)
                    room -= len(portion.wanted)
            self._waiting = [portion for portion in waiting if portion not in taken]
            self._turns.note(taken, self._waiting)
        return taken

    def _check(self, visitor: Visitor) -> None:
        if visitor.id == HOUSE:
            return
        own, limits = self._limits.max_places, self._limits
        of_visitor = sum(visit.visitor.id == visitor.id for visit in self._visits)
        near = sum(visit.visitor.address == visitor.address for visit in self._visits)
        if of_visitor >= own:
            raise BusyError(
                f"You have {of_visitor} requests here already, as many as one visitor may; wait "
                f"for one of them, or stop it."
            )
        if len(self._visits) >= limits.max_waiting:
            raise BusyError("Everyone here is busy: too many wait for pictures; try again soon.")
        if near >= of_address(own, limits.max_waiting):
            raise BusyError("Too many wait for pictures from where you are; try again soon.")
