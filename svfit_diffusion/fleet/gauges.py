"""A fleet's progress among Ray's metrics, which its dashboard and Prometheus show."""

from __future__ import annotations

from collections.abc import Mapping


class Gauges:
    """`svfit_fleet_subjects` by `state`, and the `svfit_fleet_steps` made by those under way; Ray
    puts `ray_` before the names. The process must be connected to a cluster.
    """

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._subjects = Gauge(
            "svfit_fleet_subjects", description="Subjects of the fleet.", tag_keys=("state",)
        )
        self._steps = Gauge(
            "svfit_fleet_steps",
            description="Steps that a worker has made with the subjects it has.",
            tag_keys=("worker",),
        )

    def show_subjects(self, counts: Mapping[str, int]) -> None:
        """Say how many subjects there are in each state."""
        for state, count in counts.items():
            self._subjects.set(count, {"state": state})

    def show_steps(self, worker: int, steps: Mapping[str, tuple[int, int]]) -> None:
        """Say how many steps a worker has made of each subject that it has, and of how many."""
        self._steps.set(sum(made for made, _ in steps.values()), {"worker": str(worker)})
