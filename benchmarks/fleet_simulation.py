"""A plan to internet scale: a million subjects and a thousand requests a second, simulated.

    python -m benchmarks.fleet_simulation

Service times are those that benchmarks.serving measured: a batch takes `a + b n` seconds. Subjects
are asked for as Zipf's law says, requests come independently of each other, and a fleet is large
enough when 99 of 100 are answered within ten times what a request takes alone. First the model is
checked: requests come to one real engine at such random moments, and the same ones are simulated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks import serving, serving_clients
from benchmarks.fleet_model import (
    BATCH,
    ONE_ADAPTER,
    ONE_REQUEST,
    ROWS,
    Fleet,
    Outcome,
    Service,
    poisson_arrivals,
    simulate,
    zipf_subjects,
)
from benchmarks.report import RESULTS, Row, print_table, read_report, write_report
from benchmarks.speed_rows import make_row
from svfit_diffusion.serving.deployment import place
from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.library import AdapterLibrary
from svfit_diffusion.serving.line import LineLimits, Ticket
from svfit_diffusion.serving.shelf import Shelf
from svfit_diffusion.training.base import BaseSource, load_base

SUBJECTS, RATE, EXPONENT = 10**6, 1000.0, 1.0
PATIENCE = 10.0
"""A fleet is large enough when p99 is at most so many times a request alone."""

FETCH = 0.05
"""Seconds to fetch an adapter from a store of objects; assumed."""

CACHE_BYTES = 10**9
"""Memory for adapters that each replica has; assumed."""

ADAPTER_BYTES = 46_080
LORA_BYTES = 4 * 187_392
"""Of a LoRA of rank 8 over the same projections of Toybox, for servers that switch those."""

MODEL, ENGINE = "the model", "the engine"
Needed = dict[tuple[str, bool], tuple[Fleet, Outcome]]
"""The fleet that is large enough and what comes of it, by policy and whether requests go near."""

_SECONDS, _WARM_UP = 300.0, 100.0
_CHECKED_SECONDS = 40.0
_CHECKED_LOADS = (0.4, 0.8)
_CHECKED_ADAPTERS, _CHECKED_STEPS = 64, 5
_WAYS = ((ROWS, False), (ONE_ADAPTER, False), (ONE_ADAPTER, True), (ONE_REQUEST, False))
_ROUTES = {True: "near its adapter", False: "anywhere"}
_COLOURS = {ROWS: "C0", ONE_ADAPTER: "C1", ONE_REQUEST: "C3"}


def main() -> None:
    """Check, simulate, print, draw and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no_check", action="store_true", help="Leave the real engine alone.")
    given = parser.parse_args()
    measured = {
        (row["what"], row["method"]): row["value"] for row in read_report("serving")["rows"]
    }
    services = services_from(measured)
    alone = measured[serving.ALONE, serving.SWITCHING]
    rows = [] if given.no_check else check_rows()
    needed: Needed = {}
    for policy, near in _WAYS:
        fleet = Fleet(1, policy, services[policy], cached_by(policy), near)
        needed[policy, near] = enough(fleet, PATIENCE * alone)
    rows += plan_rows(needed, alone)
    print_table(rows, ("what", "method", "value", "unit", "ratio"))
    print(draw(needed, alone))
    details = {
        "subjects": SUBJECTS,
        "requests_per_second": RATE,
        "zipf_exponent": EXPONENT,
        "p99_at_most_seconds": PATIENCE * alone,
        "cache_bytes": CACHE_BYTES,
        "services": {policy: vars(service) for policy, service in services.items()},
    }
    print(write_report("fleet_simulation", rows, **details))


def services_from(measured: dict[tuple[str, str], float]) -> dict[str, Service]:
    """What replicas take, by policy, from the rows of benchmarks.serving."""
    load, switch = (
        measured[serving.LOAD, serving.BATCHES],
        measured[serving.SWITCH, serving.SWITCHING],
    )
    alone = measured[serving.ALONE, serving.SWITCHING]
    per_batch = {w: measured[serving.PER_BATCH, w] for w in (serving.BATCHES, serving.BASE)}
    per_row = {w: measured[serving.PER_ROW, w] for w in (serving.BATCHES, serving.BASE)}
    return {
        ROWS: Service(per_batch[serving.BATCHES], per_row[serving.BATCHES], 0.0, load, FETCH),
        ONE_ADAPTER: Service(per_batch[serving.BASE], per_row[serving.BASE], switch, load, FETCH),
        ONE_REQUEST: Service(alone - switch, 0.0, switch, load, FETCH),
    }


def cached_by(policy: str) -> int:
    """How many adapters a replica's memory holds: ours, or LoRAs where those are switched."""
    return CACHE_BYTES // (ADAPTER_BYTES if policy == ROWS else LORA_BYTES)


def enough(fleet: Fleet, p99: float) -> tuple[Fleet, Outcome]:
    """The smallest fleet, to a fiftieth, that answers 99 of 100 requests in so many seconds."""
    arrivals = poisson_arrivals(RATE, _SECONDS, seed=0)
    subjects = zipf_subjects(len(arrivals), SUBJECTS, EXPONENT, seed=1)

    def outcome(replicas: int) -> Outcome:
        return simulate(replace(fleet, replicas=replicas), arrivals, subjects, _WARM_UP)

    service = fleet.service
    low = int(RATE * (service.per_batch / BATCH + service.per_row))  # if all batches were full
    high = int(1.3 * low)
    while outcome(high).percentile(99) > p99:
        low, high = high, int(1.3 * high)
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if outcome(middle).percentile(99) <= p99 else (middle, high)
    return replace(fleet, replicas=high), outcome(high)


def plan_rows(needed: Needed, alone: float) -> list[Row]:
    """What each way of serving needs, and gives."""
    fewest = needed[ROWS, False][0].replicas
    rows = []
    for (policy, near), (fleet, outcome) in needed.items():
        method = f"{policy}, {_ROUTES[near]}"
        ours = f"{ROWS}, {_ROUTES[False]}"
        rows += [
            make_row("replicas", method, fleet.replicas, "", ours, fleet.replicas / fewest),
            make_row("adapters in a replica's memory", method, fleet.cached, ""),
            make_row("adapters not in memory", method, 100 * outcome.misses, "%"),
            make_row("requests of a batch", method, outcome.batch, ""),
        ]
        for percent in (50, 99):
            value = outcome.percentile(percent)
            what = f"p{percent} latency"
            rows.append(make_row(what, method, value, "s", "a request alone", value / alone))
    return rows


class Noted:
    """What an engine says of its batches: how many pictures, and how many seconds."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, float]] = []

    def drawn(self, pictures: int, seconds: float) -> None:
        """A batch is done."""
        self.batches.append((pictures, seconds))

    def begun(self, waited: float) -> None:
        """Of no interest here."""

    def service(self) -> Service:
        """The line `a + b n` through the batches."""
        pictures, seconds = zip(*self.batches, strict=True)
        slope, intercept = np.polyfit(pictures, seconds, 1)
        return Service(float(intercept), float(slope), 0.0, 0.0, 0.0)


def check_rows() -> list[Row]:
    """Latencies of a real engine under requests at random moments, against the model's, which is
    given what the engine's batches took: the machine is not equally fast all the time.
    """
    noted, rows = Noted(), []
    with checked_engine(noted) as engine:
        pictures = serving_clients.requests(_CHECKED_ADAPTERS, BATCH, _CHECKED_STEPS)
        for ticket in engine.submit([*pictures, *pictures]):
            ticket.image.result()
        full = BATCH / noted.batches[-1][1]
        for load in _CHECKED_LOADS:
            noted.batches.clear()
            arrivals = poisson_arrivals(load * full, _CHECKED_SECONDS, seed=2)
            subjects = zipf_subjects(len(arrivals), _CHECKED_ADAPTERS, EXPONENT, seed=3)
            real = engine_latencies(engine, arrivals, subjects)
            fleet = Fleet(1, ROWS, noted.service(), _CHECKED_ADAPTERS, near=False)
            model = simulate(fleet, arrivals, subjects)
            what = f"check at {load:.0%} of what one engine draws"
            batch = len(arrivals) / len(noted.batches)
            rows += [
                make_row(f"{what}, requests of a batch", MODEL, model.batch, ""),
                make_row(f"{what}, requests of a batch", ENGINE, batch, ""),
            ]
            for percent in (50, 99):
                found, said = float(np.percentile(real, percent)), model.percentile(percent)
                name = f"{what}, p{percent} latency"
                rows.append(make_row(name, MODEL, said, "s", ENGINE, said / found))
                rows.append(make_row(name, ENGINE, found, "s"))
    return rows


@contextmanager
def checked_engine(observer: Noted) -> Iterator[Engine]:
    """An engine with all adapters, as a server has it."""
    with tempfile.TemporaryDirectory() as folder:
        serving_clients.make_library(Path(folder), _CHECKED_ADAPTERS)
        pipe = load_base(BaseSource(str(serving_clients.TOYBOX)))
        pipe.set_progress_bar_config(disable=True)
        library = AdapterLibrary(folder)
        shelf = Shelf(pipe, library)
        shelf.fill(file.name for file in library.files())
        place(pipe, "cpu", torch.float32)
        line = LineLimits(batch=BATCH, waiting=1000, of_a_client=1000, linger=0.0)
        engine = Engine(pipe, shelf, line, observer)
        try:
            yield engine
        finally:
            engine.close()


def engine_latencies(engine: Engine, arrivals: np.ndarray, subjects: np.ndarray) -> list[float]:
    """Seconds that each request takes which comes to an engine at its moment."""
    latencies: list[float] = []
    began = time.monotonic()
    pictures = serving_clients.requests(_CHECKED_ADAPTERS, _CHECKED_ADAPTERS, _CHECKED_STEPS)
    tickets: list[Ticket] = []
    for moment, subject in zip(arrivals.tolist(), subjects.tolist(), strict=True):
        due = began + moment
        time.sleep(max(0.0, due - time.monotonic()))
        ticket = engine.submit([replace(pictures[subject], seed=len(tickets))])[0]

        def note(_: object, due: float = due) -> None:
            latencies.append(time.monotonic() - due)

        ticket.image.add_done_callback(note)
        tickets.append(ticket)
    for ticket in tickets:
        ticket.image.result()
    return latencies


def draw(needed: Needed, alone: float) -> Path:
    """A plot of p99 latency against the size of the fleet, for each way of serving."""
    figure, axes = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    arrivals = poisson_arrivals(RATE, _SECONDS, seed=0)
    subjects = zipf_subjects(len(arrivals), SUBJECTS, EXPONENT, seed=1)
    for (policy, near), (fleet, _) in needed.items():
        sizes = [int(fleet.replicas * share) for share in (0.9, 1, 1.2, 1.6)]
        latencies = [
            simulate(replace(fleet, replicas=size), arrivals, subjects, _WARM_UP).percentile(99)
            for size in sizes
        ]
        axes.plot(
            sizes,
            np.array(latencies) / alone,
            "o-" if near else "s--",
            color=_COLOURS[policy],
            label=f"{policy}, {_ROUTES[near]}",
            markersize=4,
        )
    axes.axhline(PATIENCE, color="0.6", linewidth=0.8)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="replicas (two CPU cores each, Toybox)",
        ylabel="p99 latency, in times of a request alone",
        title="A million subjects, a thousand requests a second (simulated)",
    )
    for axis, ticks in ((axes.xaxis, (1000, 1500, 2000, 3000, 4000)), (axes.yaxis, (2, 5, 10, 20))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8, frameon=False)
    path = RESULTS / "fleet_simulation.png"
    figure.savefig(path, dpi=150)
    return path


if __name__ == "__main__":
    main()
