"""Fronts: what an adapter gives for what it costs, over the strengths it is drawn at.

Strength moves an adapter along one line of drift against fidelity, as the learning rate does, so a
method is a line and no point. Lines are compared where they cost alike: at a reference's drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

STRENGTHS = (0.5, 0.7, 0.85, 1.0)
"""At which every trained adapter is judged; the base is strength 0."""


@dataclass(frozen=True)
class Front:
    """Drift and gains at rising strengths; the first is the base, whose drift is 0.

    Attributes:
        drift: as in `Scores`, one per strength.
        subject_fidelity: the same.
        prompt_fidelity: the same.
    """

    drift: tuple[float, ...]
    subject_fidelity: tuple[float, ...]
    prompt_fidelity: tuple[float, ...]

    def at_drift(self, drift: float) -> tuple[float, float]:
        """Subject and prompt fidelity where the drift is first reached, or at the end."""
        place = self._place(self.drift, drift)
        return self._value(self.subject_fidelity, place), self._value(self.prompt_fidelity, place)

    def drift_at(self, subject_fidelity: float) -> float:
        """Drift where the fidelity is first reached, or at the end."""
        return self._value(self.drift, self._place(self.subject_fidelity, subject_fidelity))

    def reaches_drift(self, drift: float) -> bool:
        """Whether some strength drifts so far."""
        return max(self.drift) >= drift

    def reaches_fidelity(self, subject_fidelity: float) -> bool:
        """Whether some strength is so faithful."""
        return max(self.subject_fidelity) >= subject_fidelity

    def _place(self, values: Sequence[float], wanted: float) -> float:
        """Where along the strengths `wanted` is first reached, counted in strengths."""
        for index, (low, high) in enumerate(pairwise(values)):
            if low >= wanted:
                return float(index)
            if high >= wanted:
                return index + (wanted - low) / (high - low)
        return len(values) - 1.0

    def _value(self, values: Sequence[float], place: float) -> float:
        return float(np.interp(place, range(len(values)), values))
