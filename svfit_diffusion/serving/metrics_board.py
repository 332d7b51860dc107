"""Counts of all replicas, whichever of them is asked for them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client.metrics_core import Metric

EVERY = 5.0
"""Seconds after which a replica tells its counts again."""

_SILENT = 12 * EVERY


class MetricsBoard:
    """What each replica counted last; one for all of them."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, Sequence[Metric]]] = {}

    def exchange(self, replica: str, counted: Sequence[Metric]) -> list[Metric]:
        """Put up a replica's counts, and get everybody's, each with a label `replica`.

        Those of replicas that have been silent for a minute are left out.
        """
        now = time.monotonic()
        self._latest[replica] = (now, counted)
        self._latest = {r: own for r, own in self._latest.items() if now - own[0] < _SILENT}
        merged: dict[str, Metric] = {}
        for name, (_, metrics) in self._latest.items():
            for metric in metrics:
                family = Metric(metric.name, metric.documentation, metric.type)
                family = merged.setdefault(metric.name, family)
                family.samples += [
                    sample._replace(labels=sample.labels | {"replica": name})
                    for sample in metric.samples
                ]
        return list(merged.values())
