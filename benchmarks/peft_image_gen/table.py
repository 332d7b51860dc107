"""Results of PEFT's comparison: who is how faithful for how large a file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOUNDS = (250_000, 1_200_000)
"""Bytes of a file under which methods are compared."""


@dataclass(frozen=True)
class Result:
    """What a run of PEFT's found.

    Attributes:
        name: `method/experiment`.
        size: of the adapter's file, in bytes.
        values: trained.
        similarity: of drawn and test pictures, by DINOv2; higher is better.
        drift: of pictures of other things, 0 if they stay as they are.
        seconds: of training.
        memory: reserved at most, in bytes.
    """

    name: str
    size: int
    values: int
    similarity: float
    drift: float
    seconds: float
    memory: int


def read_result(file: Path) -> Result | None:
    """A result as PEFT's `run.py` writes it; None of a run that did not succeed.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        train = found["train_info"]
        if train["status"] != "success":
            return None
        test = train["metrics"][-1]
        return Result(
            found["run_info"]["experiment_name"],
            train["file_size"],
            train["num_trainable_params"],
            test["test dino_similarity"],
            test["drift"],
            train["train_time"],
            train["accelerator_memory_max"],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no result of PEFT's image-gen comparison: {error!r}") from None


def best_under(results: Iterable[Result], size: int) -> Result | None:
    """The most faithful of those with a file smaller than `size` bytes, if there is one."""
    small = [result for result in results if result.size < size]
    return max(small, key=lambda result: result.similarity, default=None)


def as_markdown(results: Iterable[Result]) -> str:
    """A table from the most faithful on, and who leads under each of `BOUNDS`."""
    ordered = sorted(results, key=lambda result: -result.similarity)
    lines = [
        "| experiment | file, kB | values | similarity | drift | train, s | memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.size / 1e3:,.0f} | {r.values:,} | {r.similarity:.3f} | {r.drift:.3f} "
        f"| {r.seconds:,.0f} | {r.memory / 1e9:.1f} |"
        for r in ordered
    ]
    for bound in BOUNDS:
        best = best_under(ordered, bound)
        leader = f"{best.name} leads with {best.similarity:.3f}" if best else "nobody"
        lines += ["", f"Under {bound / 1e6:g} MB: {leader}."]
    return "\n".join(lines)
