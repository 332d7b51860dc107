"""Visitors who draw, switch, train and leave: no error, no growth, and everyone's own picture.

python -m benchmarks.soak --minutes 20

The app runs in a process of its own, whose memory is watched; visitors draw and train over HTTP,
each with a cookie of their own. Every picture is compared with the one that its visitor gets alone,
from a generator in this process.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

from app.base_model import BaseModel
from app.entrance.recognition import COOKIE
from app.generation import ImageGenerator
from app.library import AdapterLibrary
from app.picture import PictureSettings
from app.settings import SAMPLES, Limits
from app.training_status import Stage
from app.visits import Picture
from benchmarks.app_process import AppProcess, running

_BASE = str(SAMPLES / "toybox")
_VISITORS = 4
_LEVELS = 2  # of 255, by which float32 sums differ in company
_GROWTH = 40.0  # megabytes between the second and the last quarter
_PROMPTS = ("a photo of sks car in the snow", "a cartoon of a cat", "a photo of a teapot")
_STAYS_AWAY = 0.3  # share of trainings that are given up


class Alone:
    """Draws what a visitor gets alone, one picture after the other.

    Args:
        adapters: folder of the app's.
    """

    def __init__(self, adapters: Path) -> None:
        base, limits = BaseModel(_BASE, "cpu"), Limits()
        library = AdapterLibrary(adapters, base, limits.max_file_bytes)
        self._generator = ImageGenerator(base, library, limits)
        self._one_at_a_time = threading.Lock()

    def draw(self, settings: PictureSettings) -> Image.Image:
        """The picture of these settings."""
        with self._one_at_a_time:
            events = list(self._generator.run([settings]))
        (image,) = (event.image for event in events if isinstance(event, Picture))
        return image


@dataclass
class Stay:
    """A visitor, from coming to leaving.

    Attributes:
        client: of the app, with a cookie of the visitor's own.
        choice: what they choose by.
        names: adapters that they may use.
    """

    client: Client
    choice: random.Random
    names: list[str] = field(default_factory=lambda: ["blue_car"])


@dataclass
class Soak:
    """What goes on, and what came of it.

    Attributes:
        app: the app.
        until: when to end, by the monotonic clock.
        photos: to train on.
        done: how often what was done.
        errors: what should not have been.
        worst: largest difference of a picture from the one drawn alone, in levels.
        memory: megabytes that the app's process has, a sample every few seconds.
    """

    app: AppProcess
    until: float
    photos: list[Path]
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    worst: int = 0
    memory: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._alone = Alone(self.app.folder / "adapters")

    def visit(self, number: int) -> None:
        """Come, do this and that, leave, and come again as someone else."""
        choice = random.Random(number)
        while time.monotonic() < self.until:
            try:
                self._stay(choice)
            except Exception as error:
                logging.exception("soak")
                self.errors.append(f"{type(error).__name__}: {error}")

    def _stay(self, choice: random.Random) -> None:
        cookie = httpx.get(self.app.url, timeout=60).cookies[COOKIE]
        with tempfile.TemporaryDirectory() as folder:
            headers = {"cookie": f"{COOKIE}={cookie}"}
            client = Client(self.app.url, headers=headers, download_files=folder, verbose=False)
            stay = Stay(client, choice)
            for _ in range(choice.randint(2, 6)):
                if time.monotonic() > self.until:
                    break
                act = choice.choices((self._draw, self._leave, self._train), (6, 2, 1))[0]
                act(stay)
                self.done[act.__name__.strip("_")] += 1
            client.close()
        self.done["stay"] += 1

    def _draw(self, stay: Stay) -> None:
        choice = stay.choice
        mix = {choice.choice(stay.names): choice.choice((0.5, 1.0))}
        settings = PictureSettings(
            choice.choice(_PROMPTS),
            adapters=choice.choice((mix, {})),
            steps=choice.choice((4, 8)),
            seed=choice.randrange(100),
        )
        gallery, *_ = stay.client.predict(**_arguments(settings), api_name="/generate")
        with Image.open(gallery[0]["image"]) as picture:
            drawn = np.asarray(picture.convert("RGB"), int)
        alone = np.asarray(self._alone.draw(settings), int)
        difference = int(np.abs(drawn - alone).max())
        self.worst = max(self.worst, difference)
        if difference > _LEVELS:
            self.errors.append(f"{settings} differs by {difference} levels from what it is alone")

    def _leave(self, stay: Stay) -> None:
        """Ask for much, and go once it has begun."""
        prompt, seed = stay.choice.choice(_PROMPTS), stay.choice.randrange(100)
        settings = PictureSettings(prompt, steps=60, seed=seed)
        job = stay.client.submit(**_arguments(settings) | {"count": 4}, api_name="/generate")
        while not job.outputs() and not job.done():
            time.sleep(0.05)
        job.cancel()

    def _train(self, stay: Stay) -> None:
        training = stay.client.predict(
            photos=[handle_file(path) for path in self.photos],
            name=f"subject {stay.choice.randrange(3)}",
            instance_prompt="a photo of sks car",
            steps=stay.choice.choice((4, 8)),
            prior_preservation=False,
            watched_steps=4,
            api_name="/train",
        )
        if stay.choice.random() < _STAYS_AWAY:
            stay.client.predict(training["run"], api_name="/cancel_training")
        while not Stage(training["stage"]).is_over:
            time.sleep(0.2)
            training = stay.client.predict(training["run"], api_name="/training_status")
        if training["stage"] == Stage.FAILED.value:
            self.errors.append(training["message"])
        if training["kept"]:
            stay.names.append(training["adapter"])
        self._draw(stay)

    def watch(self) -> None:
        """Sample the memory until the end."""
        while time.monotonic() < self.until:
            time.sleep(2)
            self.memory.append(self.app.memory())

    @property
    def growth(self) -> float:
        """Megabytes between the second quarter, when all is warm, and the last."""
        quarter = len(self.memory) // 4
        warm, last = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return statistics.median(last) - statistics.median(warm) if quarter else 0.0


def _arguments(settings: PictureSettings) -> dict[str, Any]:
    return {**vars(settings), "adapters": dict(settings.adapters), "new_seed": False, "count": 1}


def _photos(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(path)
    return paths


def main() -> None:
    """Soak, and say what came of it; the exit status is 1 if anything should not have been."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=20)
    minutes = parser.parse_args().minutes
    logging.basicConfig(level=logging.ERROR)
    # By another name than this machine's, everyone has things of their own.
    with running(Path(), "--base", _BASE, "--allowed-host", "visitors.example") as app:
        soak = Soak(app, time.monotonic() + 60 * minutes, _photos(app.folder))
        threads = [threading.Thread(target=soak.visit, args=(n,)) for n in range(_VISITORS)]
        for thread in threads:
            thread.start()
        soak.watch()
        for thread in threads:
            thread.join()
        print(f"{minutes:g} minutes, {_VISITORS} visitors: {dict(soak.done)}")
        print(f"largest difference from a picture drawn alone: {soak.worst} of 255 levels")
        print(f"memory: {soak.memory[-1]:.0f} MB, grown by {soak.growth:.0f} MB since warm")
        print("megabytes, by tenths of the time:", *_tenths(soak.memory))
        print(f"errors: {len(soak.errors)}", *soak.errors[:10], sep="\n  ")
    sys.exit(bool(soak.errors) or soak.growth > _GROWTH)


def _tenths(samples: list[float]) -> list[int]:
    return [round(samples[len(samples) * tenth // 10]) for tenth in range(10)]


if __name__ == "__main__":
    main()
