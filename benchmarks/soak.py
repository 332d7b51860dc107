"""Visitors who draw, switch, train and leave: no error, no growth, and everyone's own picture.

python -m benchmarks.soak --minutes 20

The app runs in this process; visitors draw over HTTP, each with a cookie of their own. Every
picture is compared with the one that its visitor gets alone, from a generator beside the app's.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import logging
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from gradio_client import Client
from PIL import Image

from app.entrance.recognition import COOKIE
from app.errors import AppError
from app.generation import ImageGenerator
from app.pages.layout import build_app, launch_settings
from app.picture import PictureSettings
from app.services import Services, build_services
from app.settings import AppSettings
from app.visitors import Visitor, acting_as
from app.visits import Picture
from svfit_diffusion.training import TrainingConfig

_VISITORS = 4
_LEVELS = 2  # of 255, by which float32 sums differ in company
_GROWTH = 40.0  # megabytes between the second and the last quarter
_PROMPTS = ("a photo of sks car in the snow", "a cartoon of a cat", "a photo of a teapot")


@dataclass
class Soak:
    """What goes on, and what came of it.

    Attributes:
        services: the app's.
        url: its address.
        until: when to end, by the monotonic clock.
        done: how often what was done.
        errors: what should not have been.
        worst: largest difference of a picture from the one drawn alone, in levels.
        memory: resident megabytes, a sample every few seconds.
    """

    services: Services
    url: str
    until: float
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    worst: int = 0
    memory: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        services = self.services
        self._alone = ImageGenerator(services.base, services.library, services.limits)
        self._one_at_a_time = threading.Lock()

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
        cookie = httpx.get(self.url, timeout=60).cookies[COOKIE]
        owner = hashlib.sha256(cookie.encode()).hexdigest()[:32]
        visitor = Visitor(owner, "127.0.0.1", owner)
        with tempfile.TemporaryDirectory() as folder:
            headers = {"cookie": f"{COOKIE}={cookie}"}
            client = Client(self.url, headers=headers, download_files=folder, verbose=False)
            for _ in range(choice.randint(2, 6)):
                if time.monotonic() > self.until:
                    break
                act = choice.choices((self._draw, self._leave, self._train), (6, 2, 1))[0]
                act(client, visitor, choice)
                self.done[act.__name__.strip("_")] += 1
            client.close()
        with acting_as(visitor):
            for name in self.services.library.names():
                with contextlib.suppress(AppError):
                    self.services.library.delete(name)  # one's own alone

    def _draw(self, client: Client, visitor: Visitor, choice: random.Random) -> None:
        with acting_as(visitor):
            names = self.services.library.names()
        mix = {name: choice.choice((0.5, 1.0)) for name in choice.sample(names, min(1, len(names)))}
        settings = PictureSettings(
            choice.choice(_PROMPTS),
            adapters=choice.choice((mix, {})),
            steps=choice.choice((4, 8)),
            seed=choice.randrange(100),
        )
        gallery, *_ = client.predict(**_arguments(settings), api_name="/generate")
        with Image.open(gallery[0]["image"]) as picture:
            drawn = np.asarray(picture.convert("RGB"), int)
        with self._one_at_a_time, acting_as(replace(visitor, id="house")):
            events = list(self._alone.run([settings]))
        (alone,) = (event.image for event in events if isinstance(event, Picture))
        difference = int(np.abs(drawn - np.asarray(alone, int)).max())
        self.worst = max(self.worst, difference)
        if difference > _LEVELS:
            self.errors.append(f"{settings} differs by {difference} levels from what it is alone")

    def _leave(self, client: Client, visitor: Visitor, choice: random.Random) -> None:
        """Ask for much, and go once it has begun."""
        settings = PictureSettings(choice.choice(_PROMPTS), steps=60, seed=choice.randrange(100))
        job = client.submit(**_arguments(settings) | {"count": 4}, api_name="/generate")
        while not job.outputs() and not job.done():
            time.sleep(0.05)
        job.cancel()

    def _train(self, client: Client, visitor: Visitor, choice: random.Random) -> None:
        jobs = self.services.jobs
        squares = [Image.effect_noise((64, 64), 40 + n).convert("RGB") for n in range(3)]
        config = TrainingConfig(
            instance_prompt="a photo of sks car",
            max_train_steps=choice.choice((4, 8)),
            lr_warmup_steps=0,
            num_validation_images=1,
            num_inference_steps=4,
        )
        with acting_as(visitor):
            try:
                jobs.start(f"subject {choice.randrange(3)}", squares, config)
            except AppError:
                self.done["found another's training"] += 1
                return
            if choice.random() < 0.3:
                jobs.stop()
            while (status := jobs.status()) is None or not status.stage.is_over:
                time.sleep(0.1)
            if status.stage.value == "failed":
                self.errors.append(status.message)
        self._draw(client, visitor, choice)

    def watch(self) -> None:
        """Sample the memory until the end."""
        process = psutil.Process()
        while time.monotonic() < self.until:
            time.sleep(2)
            gc.collect()
            self.memory.append(process.memory_info().rss / 2**20)

    @property
    def growth(self) -> float:
        """Megabytes between the second quarter, when all is warm, and the last."""
        quarter = len(self.memory) // 4
        warm, last = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return statistics.median(last) - statistics.median(warm) if quarter else 0.0


def _arguments(settings: PictureSettings) -> dict[str, Any]:
    return {**vars(settings), "adapters": dict(settings.adapters), "new_seed": False, "count": 1}


@contextlib.contextmanager
def _serving(minutes: float) -> Iterator[Soak]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/gradio"
        services = build_services(
            AppSettings(
                adapters=Path(folder, "adapters"),
                outputs=Path(folder, "outputs"),
                port=port,
                allowed_host=["visitors.example"],  # so that everyone has things of their own
            )
        )
        app = build_app(services)
        _, url, _ = app.launch(prevent_thread_lock=True, **launch_settings(services))
        yield Soak(services, url, time.monotonic() + 60 * minutes)
        app.close()
        services.close()


def main() -> None:
    """Soak, and say what came of it; the exit status is 1 if anything should not have been."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=20)
    minutes = parser.parse_args().minutes
    logging.basicConfig(level=logging.ERROR)
    with _serving(minutes) as soak:
        threads = [threading.Thread(target=soak.visit, args=(n,)) for n in range(_VISITORS)]
        for thread in threads:
            thread.start()
        soak.watch()
        for thread in threads:
            thread.join()
        print(f"{minutes:g} minutes, {_VISITORS} visitors: {dict(soak.done)}")
        print(f"largest difference from a picture drawn alone: {soak.worst} of 255 levels")
        print(f"memory: {soak.memory[-1]:.0f} MB, grown by {soak.growth:.0f} MB since warm")
        print(f"errors: {len(soak.errors)}", *soak.errors[:10], sep="\n  ")
    sys.exit(bool(soak.errors) or soak.growth > _GROWTH)


if __name__ == "__main__":
    main()
