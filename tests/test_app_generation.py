"""Drawing for many visitors at once: each gets what they would get alone."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from app_server import ADAPTERS, write_random_adapter

from app.base_model import BaseModel
from app.errors import LibraryError, SettingError
from app.generation import ImageGenerator, Picture, Progress, Waiting
from app.library import AdapterLibrary
from app.picture import SCHEDULERS, PictureSettings
from app.settings import Limits

PLAIN = PictureSettings("a photo of sks dog", steps=3, width=16, height=16)


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


@pytest.fixture
def library(tmp_path: Path, base: BaseModel) -> AdapterLibrary:
    for seed, name in enumerate(ADAPTERS):
        write_random_adapter(tmp_path / f"{name}.safetensors", seed)
    return AdapterLibrary(tmp_path, base, 2**20)


@pytest.fixture
def generator(base: BaseModel, library: AdapterLibrary) -> ImageGenerator:
    return ImageGenerator(base, library, Limits())


class Gate:
    """Holds every forward pass of a model until it is let through."""

    def __init__(self, model: Any) -> None:
        self.passes = 0
        self._held: Queue[threading.Event] = Queue()
        model.register_forward_pre_hook(self._hold)

    def _hold(self, *_: Any) -> None:
        let_through = threading.Event()
        self._held.put(let_through)
        assert let_through.wait(60)
        self.passes += 1

    def next_pass(self) -> threading.Event:
        """Wait for a forward pass to begin; it runs once the event is set."""
        return self._held.get(timeout=60)

    def let_through(self, passes: int) -> None:
        """Wait for so many forward passes to begin, one after another, and let them run."""
        for _ in range(passes):
            self.next_pass().set()


@pytest.fixture
def gate(generator: ImageGenerator) -> Gate:
    return Gate(generator._pipe.unet)


def draw(generator: ImageGenerator, *wanted: PictureSettings) -> list[bytes]:
    """Pixels of the pictures, in the order asked for."""
    pictures = [event for event in generator.run(wanted) if isinstance(event, Picture)]
    return [picture.image.tobytes() for picture in sorted(pictures, key=lambda p: p.index)]


def with_adapters(**adapters: float) -> PictureSettings:
    return dataclasses.replace(PLAIN, adapters=adapters)


def test_the_same_settings_give_the_same_bits_whatever_came_between(
    generator: ImageGenerator,
) -> None:
    wanted = [PLAIN, with_adapters(rex=1), with_adapters(rex=0.5, tom=-1), with_adapters(tom=1)]
    first = [draw(generator, settings) for settings in wanted]
    again = [draw(generator, settings) for settings in reversed(wanted)]
    assert again == first[::-1]
    assert len({pixels for (pixels,) in first}) == len(wanted)


def test_strength_zero_is_the_base_model(generator: ImageGenerator) -> None:
    assert draw(generator, with_adapters(rex=0, tom=0)) == draw(generator, PLAIN)


def test_visitors_at_once_get_what_each_gets_alone(
    base: BaseModel, library: AdapterLibrary, generator: ImageGenerator
) -> None:
    wanted = [
        dataclasses.replace(PLAIN, adapters=adapters, seed=seed)
        for adapters, seed in product(({"rex": 1.0}, {"tom": 1.0}, {}, {"rex": -0.5}), (1, 2))
    ]
    alone = [draw(ImageGenerator(base, library, Limits()), settings) for settings in wanted]
    together = threading.Barrier(len(wanted))

    def visit(settings: PictureSettings) -> list[bytes]:
        together.wait(60)
        return draw(generator, settings)

    with ThreadPoolExecutor(len(wanted)) as visitors:
        for _ in range(3):
            assert list(visitors.map(visit, wanted)) == alone


def test_an_adapter_of_higher_rank_loaded_before_changes_nothing(
    base: BaseModel, library: AdapterLibrary, generator: ImageGenerator
) -> None:
    from svfit_diffusion.checkpoint import Adapter, read_adapter, write_adapter

    whole = read_adapter(library.path("rex"))
    short = {
        component: {path: delta[:5] for path, delta in deltas.items()}
        for component, deltas in whole.deltas.items()
    }
    write_adapter(library.folder / "short.safetensors", Adapter(short, whole.metadata))
    alone = draw(ImageGenerator(base, library, Limits()), with_adapters(short=1))
    draw(generator, with_adapters(rex=1))
    assert draw(generator, with_adapters(short=1)) == alone


def test_pictures_that_can_share_a_batch_do_and_come_back_in_place(
    generator: ImageGenerator,
) -> None:
    wanted = [
        dataclasses.replace(PLAIN, seed=seed, adapters=adapters)
        for seed, adapters in product((1, 2), ({}, {"rex": 1.0}))
    ]
    events = list(generator.run(wanted))
    assert {(e.batch, e.batches) for e in events if isinstance(e, Progress)} == {(1, 2), (2, 2)}
    pictures = {e.index: e for e in events if isinstance(e, Picture)}
    for index, settings in enumerate(wanted):
        assert pictures[index].settings == settings
        assert pictures[index].image.size == (16, 16)


def test_progress_counts_every_step_and_shows_forming_pictures(generator: ImageGenerator) -> None:
    wanted = [dataclasses.replace(PLAIN, steps=12, seed=seed) for seed in (1, 2)]
    progress = [e for e in generator.run(wanted) if isinstance(e, Progress)]
    assert [e.step for e in progress] == list(range(13))
    assert {e.steps for e in progress} == {12}
    shown = [e.previews for e in progress if e.previews]
    assert 3 <= len(shown) <= 6
    assert {len(previews) for previews in shown} == {2}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_the_same_picture_twice(
    generator: ImageGenerator, scheduler: str
) -> None:
    settings = dataclasses.replace(PLAIN, scheduler=scheduler, steps=4)
    (first,) = draw(generator, settings)
    assert draw(generator, settings) == [first]
    assert len(set(first)) > 8


def test_closing_stops_after_the_current_step(generator: ImageGenerator, gate: Gate) -> None:
    events = generator.run([dataclasses.replace(PLAIN, steps=50)])
    next(events)
    gate.let_through(1)
    under_way = gate.next_pass()
    events.close()  # does not wait for it
    following = generator.run([PLAIN])
    assert isinstance(next(following), Waiting)
    under_way.set()
    gate.let_through(PLAIN.steps)
    assert sum(isinstance(event, Picture) for event in following) == 1
    assert gate.passes == 2 + PLAIN.steps


def test_a_visitor_who_leaves_the_queue_gets_nothing_drawn(
    generator: ImageGenerator, gate: Gate
) -> None:
    first = generator.run([PLAIN])
    next(first)
    second = generator.run([dataclasses.replace(PLAIN, seed=9)])
    assert isinstance(next(second), Waiting)
    second.close()
    gate.let_through(PLAIN.steps)
    assert sum(isinstance(event, Picture) for event in first) == 1
    assert gate.passes == PLAIN.steps


def test_bad_requests_draw_nothing_and_harm_nobody(
    generator: ImageGenerator, library: AdapterLibrary
) -> None:
    before = draw(generator, with_adapters(rex=1))
    with pytest.raises(SettingError):
        draw(generator, dataclasses.replace(PLAIN, steps=0))
    with pytest.raises(LibraryError):
        draw(generator, with_adapters(nobody=1))
    (library.folder / "broken.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(LibraryError, match="damaged"):
        draw(generator, with_adapters(broken=1))
    assert draw(generator, with_adapters(rex=1)) == before


def test_a_file_put_in_an_adapters_place_is_used(
    generator: ImageGenerator, library: AdapterLibrary
) -> None:
    rex, tom = draw(generator, with_adapters(rex=1)), draw(generator, with_adapters(tom=1))
    library.delete("rex")
    with pytest.raises(LibraryError):
        draw(generator, with_adapters(rex=1))
    library.rename("tom", "rex")
    assert draw(generator, with_adapters(rex=1)) == tom != rex
