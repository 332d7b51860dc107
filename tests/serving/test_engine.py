"""The engine of a server: every picture is its own, whoever it is drawn with."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from own_words import NAMED, worded
from serving_helpers import (
    ADAPTER_BYTES,
    NAMES,
    batches_of,
    held,
    of_another_base,
    picture,
    pixels,
)
from tiny_adapters import make_adapter

from svfit_diffusion.errors import (
    AdapterNameError,
    BaseMismatchError,
    BatchError,
    BusyError,
    CheckpointError,
    ConfigError,
    StateError,
)
from svfit_diffusion.files.adapter import state_dict, write_adapter
from svfit_diffusion.serving.line import LineLimits

# Sums in another order move a value by 2e-5 of the range, which turns a level of 255 at most.
ONE_LEVEL = 1


def alone(wanted: Any) -> Any:
    """A picture as a pipeline of one's own draws it with its adapters set."""
    pipe = tiny.make_tiny_pipeline()
    for name in wanted.adapters:
        source = state_dict(make_adapter(NAMES.index(name)))
        pipe.load_svfit_weights(source, name, activate=False, show_progress=False)
    pipe.set_svfit_adapters(list(wanted.adapters), list(wanted.adapters.values()))
    image = pipe(
        wanted.prompt,
        negative_prompt=wanted.negative_prompt,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        height=wanted.height,
        width=wanted.width,
        generator=torch.Generator().manual_seed(wanted.seed),
    ).images[0]
    return np.asarray(image, dtype=np.int16)


def test_a_word_of_its_own_is_drawn_as_alone_together_with_others(
    make_engine: Any, library_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(library_folder / "worded.safetensors", worded("unet"))
    pipe = tiny.make_tiny_pipeline()
    pipe.load_svfit_weights(library_folder / "worded.safetensors", show_progress=False)
    engine = make_engine()
    batches = batches_of(engine, monkeypatch)
    one = picture("worded", seed=3, prompt=NAMED)
    with held(engine):
        tickets = [engine.submit([p], "client")[0] for p in (one, picture("s0", seed=4))]
    found = pixels(tickets)
    assert [len(batch) for batch in batches] == [2]
    image = pipe(
        NAMED,
        num_inference_steps=one.steps,
        guidance_scale=one.guidance_scale,
        height=one.height,
        width=one.width,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert np.abs(found[0] - np.asarray(image, dtype=np.int16)).max() <= ONE_LEVEL
    assert np.abs(found[1] - alone(picture("s0", seed=4))).max() <= ONE_LEVEL
    assert engine._painter.mixes


def test_every_picture_of_a_batch_is_the_one_drawn_alone(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    batches = batches_of(engine, monkeypatch)
    wanted = [
        picture("s0", seed=3),
        picture(None, seed=4, negative_prompt="blue"),
        picture(seed=5, adapters={"s1": 0.5, "s2": -0.7}, prompt="a cat"),
        picture("s0", seed=6),
    ]
    with held(engine):
        tickets = [engine.submit([one], f"client {i}")[0] for i, one in enumerate(wanted)]
    found = pixels(tickets)
    assert [len(batch) for batch in batches] == [4]
    for own, one in zip(found, wanted, strict=True):
        assert np.abs(own - alone(one)).max() <= ONE_LEVEL
    assert np.abs(found[0] - alone(picture("s1", seed=3))).max() > 10


def test_a_picture_drawn_by_itself_is_the_pipelines_own_to_the_last_bit(make_engine: Any) -> None:
    engine = make_engine()
    pixels(engine.submit([picture("s1", seed=9)]))
    wanted = picture(seed=3, adapters={"s0": 0.8})
    assert np.array_equal(pixels(engine.submit([wanted]))[0], alone(wanted))


def test_only_pictures_of_equal_settings_share_a_batch(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    batches = batches_of(engine, monkeypatch)
    changes: list[dict[str, Any]] = [{}, {"steps": 3}, {"guidance_scale": 1.0}, {"width": 32}]
    with held(engine):
        tickets = [
            ticket
            for change in [*changes, *changes]
            for ticket in engine.submit([picture("s0", **change)])
        ]
    pixels(tickets)
    assert sorted(len(batch) for batch in batches) == [2, 2, 2, 2]
    assert all(len({p.common for p in batch}) == 1 for batch in batches)


def test_a_batch_is_no_larger_than_allowed_and_turns_go_round(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(LineLimits(batch=2, linger=0))
    batches = batches_of(engine, monkeypatch)
    with held(engine):
        tickets = engine.submit([picture("s0", seed=seed) for seed in range(4)], "greedy")
        tickets += engine.submit([picture("s1", seed=10)], "late")
        tickets += engine.submit([picture("s1", seed=20)], "later")
    pixels(tickets)
    assert [[p.seed for p in batch] for batch in batches] == [[0, 10], [20, 1], [2, 3]]


def test_a_batch_with_room_waits_for_company(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(LineLimits(batch=2, linger=60))
    batches = batches_of(engine, monkeypatch)
    first = engine.submit([picture("s0")])
    pixels([*first, *engine.submit([picture("s1")])])  # which a minute's wait would time out
    assert [len(batch) for batch in batches] == [2]


def test_who_left_is_not_drawn_for(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    batches = batches_of(engine, monkeypatch)
    with held(engine):
        gone = engine.submit([picture("s0", seed=1)], "gone")[0]
        stays = engine.submit([picture("s0", seed=2)], "stays")
        gone.leave()
    pixels(stays)
    assert [[p.seed for p in batch] for batch in batches] == [[2]]
    with pytest.raises(CancelledError):
        gone.image.result(0)


def test_drawing_stops_where_all_of_a_batch_have_left(
    make_engine: Any, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    steps, first_step, left = [], threading.Event(), threading.Event()

    def step(*_: Any, **__: Any) -> None:
        steps.append(1)
        first_step.set()
        assert left.wait(60)

    hook = tiny_pipe.unet.register_forward_pre_hook(step)
    ticket = engine.submit([picture("s0", steps=50)])[0]
    assert first_step.wait(60)
    ticket.leave()
    left.set()
    engine.between(hook.remove).result(60)
    assert len(steps) == 1
    pixels(engine.submit([picture("s0")]))


def test_a_request_that_cannot_be_drawn_fails_alone(make_engine: Any, library_folder: Path) -> None:
    engine = make_engine()
    write_adapter(library_folder / "foreign.safetensors", of_another_base())
    with held(engine):
        bad, good = engine.submit([picture("foreign")]), engine.submit([picture("s0", seed=3)])
    with pytest.raises(BaseMismatchError):
        pixels(bad)
    assert np.array_equal(pixels(good)[0], alone(picture("s0", seed=3)))


def test_what_fails_in_a_batch_is_found_by_drawing_each_alone(
    make_engine: Any, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    call = type(tiny_pipe).__call__

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "poison" in kwargs["prompt"]:
            raise ValueError("this prompt cannot be encoded")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny_pipe), "__call__", fails)
    with held(engine):
        bad = engine.submit([picture("s0", prompt="poison")])
        good = engine.submit([picture("s1", seed=3)])
    with pytest.raises(ValueError, match="cannot be encoded"):
        pixels(bad)
    monkeypatch.undo()
    assert np.array_equal(pixels(good)[0], alone(picture("s1", seed=3)))


def test_a_model_that_refuses_mixed_batches_draws_one_after_the_other(
    make_engine: Any, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def refuses(*_: Any) -> Any:
        raise BatchError("folds frames into rows")

    monkeypatch.setattr(type(tiny_pipe), "svfit_adapters_per_prompt", refuses)
    wanted = [picture("s0", seed=1), picture("s1", seed=2)]
    with held(engine):
        tickets = [ticket for one in wanted for ticket in engine.submit([one])]
    found = pixels(tickets)
    assert all(np.array_equal(own, alone(p)) for own, p in zip(found, wanted, strict=True))


def test_the_line_is_bounded_for_all_and_for_each(make_engine: Any) -> None:
    engine = make_engine(LineLimits(batch=4, waiting=5, of_a_client=3, linger=0))
    with held(engine):
        engine.submit([picture(seed=seed) for seed in range(3)], "a")
        with pytest.raises(BusyError, match="3 of your pictures"):
            engine.submit([picture()], "a")
        with pytest.raises(BusyError, match="room for 5"):
            engine.submit([picture(seed=seed) for seed in range(3)], "b")
        assert len(engine) == 3  # none of a request that is refused
        tickets = engine.submit([picture(), picture(seed=1)], "b")
    pixels(tickets)


def test_what_cannot_be_drawn_is_refused_at_once(make_engine: Any, library_folder: Path) -> None:
    engine = make_engine()
    (library_folder / "damaged.safetensors").write_bytes(b"not an adapter")
    with held(engine):
        with pytest.raises(AdapterNameError, match="no adapter 'nobody'"):
            engine.submit([picture("s0"), picture("nobody")])
        with pytest.raises(CheckpointError, match="'damaged'"):
            engine.submit([picture("damaged")])
        with pytest.raises(ConfigError, match="multiples of 8"):
            engine.submit([picture(width=20)])
        assert len(engine) == 0


def test_an_engine_that_is_closed_tells_those_who_wait(make_engine: Any) -> None:
    engine = make_engine()
    begun, go_on = threading.Event(), threading.Event()
    engine.between(lambda: (begun.set(), go_on.wait(60)))
    assert begun.wait(60)
    ticket = engine.submit([picture()])[0]
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(StateError, match="stopped"):
        ticket.image.result(60)
    go_on.set()
    closing.join(60)
    assert not engine.is_alive
    with pytest.raises(StateError):
        engine.submit([picture()])


def test_few_adapters_are_kept_and_pictures_stay_right(make_engine: Any) -> None:
    engine = make_engine(LineLimits(batch=3, linger=0), max_bytes=2 * ADAPTER_BYTES)
    for name in ("s0", "s1", "s2", "s0", "s3"):
        found = pixels(engine.submit([picture(name, seed=3)]))[0]
        assert np.array_equal(found, alone(picture(name, seed=3)))
        engine.between(lambda: None).result(60)  # room is made after the picture is handed over
        assert engine.shelf.bytes <= 2 * ADAPTER_BYTES
    assert (engine.shelf.fetched, engine.shelf.found) == (5, 0)
    pixels(engine.submit([picture("s0")]))
    assert engine.shelf.found == 1


def test_a_file_that_is_replaced_is_drawn_from_the_next_request_on(
    make_engine: Any, library_folder: Path
) -> None:
    engine = make_engine()
    before = pixels(engine.submit([picture("s0", seed=3)]))[0]
    (library_folder / "s0.safetensors").unlink()
    write_adapter(library_folder / "s0.safetensors", make_adapter(1))
    after = pixels(engine.submit([picture("s0", seed=3)]))[0]
    assert np.array_equal(after, alone(picture("s1", seed=3)))
    assert np.abs(after - before).max() > ONE_LEVEL
    engine.between(lambda: None).result(60)
    assert len(engine.shelf) == 1
