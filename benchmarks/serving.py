"""Many adapters served to many clients: batches with an adapter per row against switching.

    python -m benchmarks.serving

Sixteen clients ask the engine of `svfit fleet serve` for pictures of 64 adapters of Toybox, each
for the next one when it has the last. The same requests are then drawn one at a time by switching
adapters, as servers do that cannot mix them, and every picture of the engine is compared with its
own one there. Rounds of both alternate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.report import Row, write_report
from benchmarks.serving_clients import (
    TOYBOX,
    Round,
    Switching,
    batched,
    in_turn,
    make_library,
    requests,
)
from benchmarks.speed_rows import make_row
from svfit_diffusion.serving.deployment import ServeSettings, make_service
from svfit_diffusion.serving.engine import Engine
from svfit_diffusion.serving.line import LineLimits
from svfit_diffusion.serving.picture import Picture
from svfit_diffusion.training.base import BaseSource, load_base

BATCHES, SWITCHING = "an adapter per row", "switching, one request at a time"
BASE = "the base model, no adapters"
PER_BATCH, PER_ROW = "batch, for itself (a)", "batch, for each row (b)"
ALONE, SWITCH, LOAD = "a request alone", "switch", "load an adapter"
PER_SECOND, CPU_SECONDS = "pictures per second", "CPU seconds of a picture"
TARGET = 4.0
_LEVELS = 2  # of 255, by which float32 sums in company move a picture
_SIZES = (1, 4, 16)


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=2, help="Of each client, in a round.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_library(Path(folder), given.adapters)
        line = LineLimits(batch=16, linger=0.05)
        settings = ServeSettings(BaseSource(str(TOYBOX)), folder, line=line)
        service = make_service(settings)
        switching = Switching(Path(folder))
        rows = load_rows(Path(folder))
        wanted = requests(given.adapters, given.clients * given.requests, given.steps)
        service.engine.submit(wanted[:1])[0].image.result()
        switching.draw(wanted[0])
        rounds: dict[str, list[Round]] = {BATCHES: [], SWITCHING: []}
        for number in range(given.rounds):
            own = [replace(one, seed=one.seed + 1000 * number) for one in wanted]
            rounds[BATCHES].append(batched(service.engine, own, given.clients))
            rounds[SWITCHING].append(in_turn(switching.draw, own, given.clients))
        rows += throughput_rows(rounds)
        rows += latency_rows(rounds)
        rows += own_rows(rounds)
        rows += batch_rows(service.engine, wanted)
        rows += [make_row(SWITCH, SWITCHING, median(switching.seconds), "s")]
    for row in rows:
        print(f"{row['what']}: {row['method']} {row['value']:.4g} {row['unit']}", end="")
        print(f", {row['ratio']:.3f} of {row['ratio_to']}" if row["ratio"] else "", flush=True)
    print(write_report("serving", rows, settings=vars(given), line=vars(line)))


def throughput_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    """Pictures per second, and the CPU time of each, both ways."""
    rows = []
    for what, unit, of in (
        (PER_SECOND, "1/s", lambda r: len(r.images) / r.wall),
        (CPU_SECONDS, "s", lambda r: r.cpu / len(r.images)),
    ):
        values = {way: [of(own) for own in each] for way, each in rounds.items()}
        for way, each in values.items():
            ratios = [a / b for a, b in zip(each, values[SWITCHING], strict=True)]
            row = make_row(what, way, median(each), unit, SWITCHING, median(ratios), rounds=each)
            if (what, way) == (PER_SECOND, BATCHES):
                row |= {"target": f"at least {TARGET:g}", "holds": median(ratios) >= TARGET}
            rows.append(row)
    return rows


def latency_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    """Latencies under load, against the time that a request takes alone."""
    alone = median(own.wall / len(own.images) for own in rounds[SWITCHING])
    rows = [make_row(ALONE, SWITCHING, alone, "s")]
    for way, each in rounds.items():
        latencies = [latency for own in each for latency in own.latencies]
        for percent in (50, 99):
            value = float(np.percentile(latencies, percent))
            rows.append(make_row(f"p{percent} latency", way, value, "s", ALONE, value / alone))
    return rows


def own_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    """How far pictures are from their own ones drawn alone, and from the nearest other one.

    Raises:
        AssertionError: a picture is not its own.
    """
    farthest, nearest_other = 0, 255.0
    for mixed, alone in zip(rounds[BATCHES], rounds[SWITCHING], strict=True):
        ours, theirs = (
            np.stack([np.asarray(image, dtype=np.int16) for image in each.images])
            for each in (mixed, alone)
        )
        for number, image in enumerate(ours):
            distances = np.abs(theirs - image)
            assert distances[number].max() <= _LEVELS, f"picture {number} is not its own"
            farthest = max(farthest, int(distances[number].max()))
            others = np.delete(distances.mean(axis=(1, 2, 3)), number)
            nearest_other = min(nearest_other, float(others.min()))
    what = "levels of 255 from the one drawn alone"
    return [
        make_row(f"most {what}", BATCHES, farthest, "levels"),
        make_row("mean levels of 255 from the nearest other", BATCHES, nearest_other, "levels"),
    ]


def batch_rows(engine: Engine, wanted: Sequence[Picture], repeats: int = 3) -> list[Row]:
    """Seconds of a batch of n rows, and the line `a + b n` through them; of the base alone, too."""
    kinds = {BATCHES: list(wanted), BASE: [replace(one, adapters={}) for one in wanted]}
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for size in _SIZES:
            for kind, pictures in kinds.items():
                began = time.perf_counter()
                for ticket in engine.submit(pictures[:size]):
                    ticket.image.result()
                seconds.setdefault((kind, size), []).append(time.perf_counter() - began)
    rows = []
    for kind in kinds:
        taken = {size: min(seconds[kind, size]) for size in _SIZES}
        slope, intercept = np.polyfit(list(taken), list(taken.values()), 1)
        rows += [make_row(f"batch of {size}", kind, each, "s") for size, each in taken.items()]
        rows += [
            make_row(PER_BATCH, kind, float(intercept), "s"),
            make_row(PER_ROW, kind, float(slope), "s"),
        ]
    gain = taken[_SIZES[0]] * _SIZES[-1] / taken[_SIZES[-1]]
    return [*rows, make_row("what a batch of 16 gains over one at a time", BASE, gain, "times")]


def load_rows(folder: Path) -> list[Row]:
    """Seconds to read an adapter, and to put it on a pipeline beside others, one with the other."""
    pipe: Any = load_base(BaseSource(str(TOYBOX)))
    seconds = []
    for path in sorted(folder.glob("*.safetensors")):
        began = time.perf_counter()
        pipe.load_svfit_weights(path, path.stem, activate=False, show_progress=False)
        seconds.append(time.perf_counter() - began)
    return [make_row(LOAD, BATCHES, mean(seconds[1:]), "s")]


if __name__ == "__main__":
    main()
