"""Print how many damaged files and kills were tried, and what was taken wrongly or lost.

`make robustness`, or with other numbers `make robustness ARGS="--adapters 10000"`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import crash
import tiny_training
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from targets import Adapters, CacheFiles, Checkpoints, PeftFolders, Pictures, Records, Target

from svfit_diffusion.files.adapter import Adapter, read_adapter, write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.cache import load_bases, read_base
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.folders import image_files
from svfit_diffusion.training.state import begin_run, find_checkpoint, save_checkpoint, tidy

NUMBERS = {
    Adapters: 2000,
    CacheFiles: 300,
    Checkpoints: 60,
    Pictures: 1000,
    PeftFolders: 500,
    Records: 500,
}


def damaged_files(target: Target, number: int) -> Counter[str]:
    """How damaged files ended: refused, accepted, taken wrongly, or in an error not of ours."""
    ends: Counter[str] = Counter()
    all_kinds = settings(
        max_examples=number,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    @seed(0)
    @all_kinds
    @given(data=st.data())
    def read(data: st.DataObject) -> None:
        damaged = data.draw(target.damages())
        try:
            ends["accepted" if target.check(damaged) else "refused"] += 1
        except AssertionError:
            ends["taken wrongly"] += 1
        except Exception as error:
            ends["raw errors"] += 1
            print(f"  {type(target).__name__}: {error!r:.200}")

    read()
    return ends


def kills_of_an_adapter(folder: Path) -> Iterator[bool]:
    """A process dies while an adapter is replaced: whether the file is the old or the new one."""

    def adapter(value: float) -> Adapter:
        return Adapter({"unet": {"a.to_q": torch.full((50,), value)}}, AdapterMetadata())

    path = folder / "a.safetensors"
    write_adapter(path, adapter(1.0))
    for _ in crash.moments(lambda: write_adapter(path, adapter(2.0))):
        values = set(read_adapter(path).deltas["unet"]["a.to_q"].tolist())
        yield values in ({1.0}, {2.0})
        write_adapter(path, adapter(1.0))


def kills_of_a_checkpoint(folder: Path) -> Iterator[bool]:
    """A process dies while a checkpoint is replaced: whether training goes on from there."""
    trainer, out = tiny_training.make_trainer(folder, 1), folder / "out"
    begin_run(trainer, out)
    save_checkpoint(trainer, out)
    for _ in crash.moments(lambda: save_checkpoint(trainer, out)):
        tidy(out)
        yield find_checkpoint("latest", out) == out / "checkpoint-1"


def kills_of_a_cache(folder: Path) -> Iterator[bool]:
    """A process dies while bases are kept: whether the next one has the right ones."""
    weights = {n: torch.randn(8, 6, generator=torch.Generator().manual_seed(n)) for n in (1, 2)}
    base = read_base({str(n): weight for n, weight in weights.items()})
    right = load_bases(base, show_progress=False, cache=folder / "right")
    for number in crash.moments(
        lambda: load_bases(base, show_progress=False, cache=folder / "cache")
    ):
        bases = load_bases(base, show_progress=False, cache=folder / "cache")
        yield all(torch.equal(bases[n].u, right[n].u) for n in right)
        (folder / "cache").rename(folder / f"cache-{number}")


def kills_of_class_pictures(folder: Path) -> Iterator[bool]:
    """A process dies while class pictures are drawn: whether those there are are whole."""

    def draw(prompt: list[str], generator: list[torch.Generator]) -> Any:
        return SimpleNamespace(images=[Image.new("RGB", (8, 8)) for _ in prompt])

    def generate(place: Path) -> None:
        options: dict[str, Any] = {"batch_size": 2, "seed": 5, "show_progress": False}
        generate_class_images(draw, place, "a dog", 4, {}, **options)

    generate(folder / "right")
    right = {path.name: path.read_bytes() for path in image_files(folder / "right")}
    place = folder / "pictures"
    for number in crash.moments(lambda: generate(place)):
        there = image_files(place) if place.exists() else []
        yield all(path.read_bytes() == right[path.name] for path in there)
        if place.exists():
            place.rename(folder / f"pictures-{number}")


KILLS: dict[str, Callable[[Path], Iterator[bool]]] = {
    "an adapter": kills_of_an_adapter,
    "a checkpoint": kills_of_a_checkpoint,
    "the cache": kills_of_a_cache,
    "class pictures": kills_of_class_pictures,
}


def main() -> None:
    """Print a line for each kind of file, and one for each kind of kill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for target, number in NUMBERS.items():
        parser.add_argument(f"--{target.__name__.lower()}", type=int, default=number)
    numbers = vars(parser.parse_args())
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SVFIT_CACHE"] = str(folder / "svfit-cache")
        print("damaged          tried  refused  accepted  taken wrongly  raw errors", flush=True)
        for target in NUMBERS:
            place = folder / target.__name__
            place.mkdir()
            ends = damaged_files(target(place), numbers[target.__name__.lower()])
            columns = [ends[n] for n in ("refused", "accepted", "taken wrongly", "raw errors")]
            print(
                "{:<14}{:>8}{:>9}{:>10}{:>15}{:>12}".format(
                    target.__name__, ends.total(), *columns
                ),
                flush=True,
            )
        print("killed while writing   kills   lost")
        for what, kills in KILLS.items():
            place = folder / what
            place.mkdir()
            with contextlib.redirect_stdout(io.StringIO()):
                kept = list(kills(place))
            print(f"{what:<20}{len(kept):>8}{kept.count(False):>7}", flush=True)


if __name__ == "__main__":
    main()
