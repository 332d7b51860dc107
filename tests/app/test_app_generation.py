"""Drawing for many visitors at once: each gets what they would get alone.

To the last bit where they are alone; in a batch shared with others float32 sums may round
otherwise, which 8-bit pixels show as a level or two at most.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from app_server import ADAPTERS, write_random_adapter

from app.base_model import BaseModel
from app.errors import LibraryError, SettingError
from app.generation import ImageGenerator
from app.library import AdapterLibrary
from app.picture import SCHEDULERS, PictureSettings
from app.settings import Limits
from app.visits import Event, Picture, Progress, Waiting

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


def assert_alike(pictures: list[bytes], expected: list[bytes]) -> None:
    """Compare pixels, of which company in a batch may change the last bits before rounding."""
    for picture, other in zip(pictures, expected, strict=True):
        levels = [np.frombuffer(pixels, np.uint8).astype(int) for pixels in (picture, other)]
        assert np.abs(levels[0] - levels[1]).max() <= 2


def pixels_of(events: Iterable[Event]) -> list[bytes]:
    return [event.image.tobytes() for event in events if isinstance(event, Picture)]


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
            for pictures, expected in zip(visitors.map(visit, wanted), alone, strict=True):
                assert_alike(pictures, expected)


def test_an_adapter_of_higher_rank_loaded_before_changes_nothing(
    base: BaseModel, library: AdapterLibrary, generator: ImageGenerator
) -> None:
    from svfit_diffusion.files.adapter import Adapter, read_adapter, write_adapter

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
        dataclasses.replace(PLAIN, seed=seed, adapters=adapters, steps=steps)
        for seed, adapters, steps in product((1, 2), ({}, {"rex": 1.0}), (2, 3))
    ]
    events = list(generator.run(wanted))
    assert {(e.batch, e.batches) for e in events if isinstance(e, Progress)} == {(1, 2), (2, 2)}
    pictures = {e.index: e for e in events if isinstance(e, Picture)}
    for index, settings in enumerate(wanted):
        assert pictures[index].settings == settings
        assert pictures[index].image.size == (16, 16)
        assert_alike([pictures[index].image.tobytes()], draw(generator, settings))


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


# --- batches shared by visitors ---------------------------------------------------------------


def queue_behind_one(
    generator: ImageGenerator, gate: Gate, *requests: list[PictureSettings]
) -> list[Iterator[Event]]:
    """Streams of visitors who came while another's picture was drawn, the batch of the first next.

    None of their forward passes has begun.
    """
    first = generator.run([dataclasses.replace(PLAIN, seed=99)])
    next(first)
    visits = [generator.run(wanted) for wanted in requests]
    for visit in visits:
        assert isinstance(next(visit), Waiting)
    gate.let_through(PLAIN.steps)
    assert len(pixels_of(first)) == 1
    gate.passes = 0
    return visits


def alone(generator: ImageGenerator, gate: Gate, *wanted: PictureSettings) -> list[bytes]:
    """What a visitor alone gets of pictures that share a batch."""
    visit = generator.run(wanted)
    next(visit)
    gate.let_through(wanted[0].steps)
    return pixels_of(visit)


def test_waiting_visitors_share_a_batch_and_get_their_own(
    generator: ImageGenerator, gate: Gate
) -> None:
    requests = [
        [dataclasses.replace(with_adapters(rex=1.0), seed=1, prompt="a cat", steps=12)],
        [dataclasses.replace(PLAIN, seed=2, steps=12)],
        [dataclasses.replace(with_adapters(tom=0.7, rex=s), seed=3, steps=12) for s in (1, -1)],
    ]
    expected = [alone(generator, gate, *wanted) for wanted in requests]
    visits = queue_behind_one(generator, gate, *requests)
    gate.let_through(12)
    for visit, wanted, pictures in zip(visits, requests, expected, strict=True):
        events = list(visit)
        progress = [event for event in events if isinstance(event, Progress)]
        assert [(e.step, e.steps, e.batch, e.batches) for e in progress] == [
            (step, 12, 1, 1) for step in range(13)
        ]
        assert {len(e.previews) for e in progress} == {0, len(wanted)}
        assert [e.settings for e in events if isinstance(e, Picture)] == wanted
        assert_alike(pixels_of(events), pictures)
    assert gate.passes == 12
    assert len({pixels for pictures in expected for pixels in pictures}) == 4


def test_previews_are_the_visitors_own(generator: ImageGenerator, gate: Gate) -> None:
    settings = [dataclasses.replace(PLAIN, seed=seed, steps=2) for seed in (1, 2)]

    def shown(visit: Iterator[Event]) -> bytes:
        return b"".join(i.tobytes() for e in visit if isinstance(e, Progress) for i in e.previews)

    expected = []
    for wanted in settings:
        visit = generator.run([wanted])
        next(visit)
        gate.let_through(2)
        expected.append(shown(visit))
    visits = queue_behind_one(generator, gate, *([wanted] for wanted in settings))
    gate.let_through(2)
    assert_alike([shown(visit) for visit in visits], expected)
    assert expected[0] != expected[1]


def test_a_batch_holds_no_more_than_the_limit(base: BaseModel, library: AdapterLibrary) -> None:
    generator = ImageGenerator(base, library, Limits(max_images=3))
    gate = Gate(generator._pipe.unet)
    requests = [
        [dataclasses.replace(PLAIN, seed=seed) for seed in range(count)] for count in (2, 2, 1)
    ]
    visits = queue_behind_one(generator, gate, *requests)
    sizes: list[int] = []
    generator._pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    gate.let_through(2 * PLAIN.steps)
    assert [len(pixels_of(visit)) for visit in visits] == [2, 2, 1]
    # Twice the pictures, for guidance: the third visitor's goes along with the first one's.
    assert sizes == [6] * PLAIN.steps + [4] * PLAIN.steps


def test_an_adapter_that_cannot_be_loaded_fails_its_visitor_alone(
    generator: ImageGenerator, library: AdapterLibrary, gate: Gate
) -> None:
    (expected,) = alone(generator, gate, with_adapters(rex=1))
    (library.folder / "broken.safetensors").write_bytes(b"not a safetensors file")
    later = [dataclasses.replace(with_adapters(broken=1), steps=1), PLAIN]
    good, bad, gone = queue_behind_one(
        generator, gate, [with_adapters(rex=1)], [with_adapters(broken=1)], later
    )
    gate.let_through(PLAIN.steps)
    assert_alike(pixels_of(good), [expected])
    for visit in (bad, gone):
        with pytest.raises(LibraryError, match="damaged"):
            list(visit)
    # The next visitor is served, and nobody else's picture is drawn on the way.
    assert_alike(alone(generator, gate, with_adapters(rex=1)), [expected])
    assert gate.passes == 2 * PLAIN.steps


def test_stopping_leaves_the_others_of_the_batch_alone(
    generator: ImageGenerator, gate: Gate
) -> None:
    (expected,) = alone(generator, gate, with_adapters(tom=1))
    leaving, staying = queue_behind_one(
        generator, gate, [with_adapters(rex=1)], [with_adapters(tom=1)]
    )
    gate.let_through(1)
    under_way = gate.next_pass()
    leaving.close()
    under_way.set()
    gate.let_through(PLAIN.steps - 2)
    assert_alike(pixels_of(staying), [expected])
    assert gate.passes == PLAIN.steps


def test_a_batch_that_all_have_left_stops(generator: ImageGenerator, gate: Gate) -> None:
    long = dataclasses.replace(PLAIN, steps=50)
    visits = queue_behind_one(generator, gate, [long], [long])
    gate.let_through(1)
    under_way = gate.next_pass()
    for visit in visits:
        visit.close()
    under_way.set()
    assert len(alone(generator, gate, PLAIN)) == 1
    assert gate.passes == 2 + PLAIN.steps


def test_an_unforeseen_error_reaches_everyone_in_the_batch_and_nobody_else(
    generator: ImageGenerator, gate: Gate
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    visits = queue_behind_one(generator, gate, [PLAIN], [with_adapters(rex=1)])
    under_way = gate.next_pass()
    hook = generator._pipe.unet.register_forward_hook(fail)
    under_way.set()
    for visit in visits:
        with pytest.raises(MemoryError):
            list(visit)
    hook.remove()
    assert len(alone(generator, gate, PLAIN)) == 1


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


def test_of_very_many_adapters_those_last_asked_for_stay_loaded(
    base: BaseModel, library: AdapterLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_adapter(library.folder / "zoe.safetensors", 2)
    size = library.path("rex").stat().st_size
    monkeypatch.setattr("app.generation._LOADED_BYTES", 2 * size)
    generator = ImageGenerator(base, library, Limits())

    def loaded_after(*wanted: PictureSettings) -> set[str]:
        draw(generator, *wanted)
        return set(generator._pipe.get_list_svfit_adapters()["unet"])

    first = draw(generator, with_adapters(rex=1))
    draw(generator, with_adapters(tom=1))
    draw(generator, with_adapters(rex=1))
    # Those of a batch are there, however many, until the next.
    assert loaded_after(with_adapters(zoe=1)) == {"rex", "tom", "zoe"}
    assert loaded_after(PLAIN) == {"rex", "zoe"}
    assert loaded_after(with_adapters(tom=1, zoe=1)) == {"rex", "zoe", "tom"}
    assert loaded_after(PLAIN) == {"tom", "zoe"}
    assert draw(generator, with_adapters(rex=1)) == first
