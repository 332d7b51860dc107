"""Two threads: what one draws is of one set of adapters, whatever the other attempts meanwhile."""

from __future__ import annotations

import copy
import inspect
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from merged import CHANGES, CLOSE, check_switching, load, tiny_pictures
from tiny import make_tiny_pipeline, run_pipeline
from tiny_adapters import make_variant
from torch import Tensor

from svfit_diffusion import StateError
from svfit_diffusion.adapters.applied import Applied

SECONDS = 30
"""More than any of this takes."""


@contextmanager
def drawing(pipe: Any, **settings: Any) -> Iterator[list[Tensor]]:
    """While a thread is in the midst of a picture, which is there afterwards."""
    started, go_on = threading.Event(), threading.Event()
    pictures: list[Tensor] = []

    def wait(_pipe: Any, _step: int, _time: Any, kwargs: Any) -> Any:
        started.set()
        go_on.wait(SECONDS)
        return kwargs

    def draw() -> None:
        pictures.append(run_pipeline(pipe, callback_on_step_end=wait, **settings))

    thread = threading.Thread(target=draw)
    thread.start()
    assert started.wait(SECONDS)
    try:
        yield pictures
    finally:
        go_on.set()
        thread.join(SECONDS)


def test_changes_in_the_midst_of_a_picture_are_refused() -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures()
    with drawing(pipe) as pictures:
        for change in CHANGES:
            with pytest.raises(StateError, match="another thread is drawing"):
                change(pipe)
            assert pipe.get_list_svfit_adapters() == {"unet": ["a"], "text_encoder": ["a"]}
            assert pipe.get_active_svfit_adapters() == ["a"]
    torch.testing.assert_close(pictures[0], expected.adapted, **CLOSE)
    check_switching(pipe, expected)


def test_the_first_load_in_the_midst_of_a_picture_is_refused() -> None:
    pipe, expected = make_tiny_pipeline(), tiny_pictures()
    with drawing(pipe) as pictures, pytest.raises(StateError, match="another thread"):
        load(pipe)
    assert pipe.get_list_svfit_adapters() == {}
    assert torch.equal(pictures[0], expected.base)
    check_switching(load(pipe), expected)


def test_adding_without_setting_disturbs_nobody() -> None:
    pipe = load(make_tiny_pipeline())
    with drawing(pipe) as pictures:
        load(pipe, "b", activate=False)
    torch.testing.assert_close(pictures[0], tiny_pictures().adapted, **CLOSE)
    assert pipe.get_active_svfit_adapters() == ["a"]


def test_another_pipeline_is_not_concerned() -> None:
    pipe, other = load(make_tiny_pipeline()), load(make_tiny_pipeline())
    with drawing(pipe) as pictures:
        check_switching(other, tiny_pictures())
    torch.testing.assert_close(pictures[0], tiny_pictures().adapted, **CLOSE)


def test_a_picture_that_would_begin_during_a_change_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(make_tiny_pipeline())
    entered = threading.Event()
    finish = Applied.finish
    threads: list[threading.Thread] = []
    pictures: list[Tensor] = []

    def draw() -> None:
        entered.set()
        pictures.append(run_pipeline(pipe))

    def slow(applied: Applied, change: Any) -> None:
        if not threads:
            threads.append(threading.Thread(target=draw))
            threads[0].start()
            assert entered.wait(SECONDS)
            threads[0].join(0.5)
            assert not pictures
            assert threads[0].is_alive()
        finish(applied, change)

    monkeypatch.setattr(Applied, "finish", slow)
    pipe.disable_svfit()
    threads[0].join(SECONDS)
    assert torch.equal(pictures[0], tiny_pictures().base)


def test_a_call_that_failed_is_over() -> None:
    pipe = load(make_tiny_pipeline())

    def fail(*_: Any) -> None:
        raise RuntimeError("no more")

    def draw() -> None:
        with pytest.raises(RuntimeError, match="no more"):
            run_pipeline(pipe, callback_on_step_end=fail)

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join(SECONDS)
    check_switching(pipe, tiny_pictures())


def test_a_class_of_ones_own_that_calls_its_parent_twice() -> None:
    between, go_on = threading.Event(), threading.Event()

    class Own(StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Mine."""
            super().__call__(*args, **kwargs)
            between.set()
            go_on.wait(SECONDS)
            return super().__call__(*args, **kwargs)

    pipe = load(Own(**make_tiny_pipeline().components))
    assert pipe.__call__.__doc__ == "Mine."
    thread = threading.Thread(target=run_pipeline, args=(pipe,))
    thread.start()
    assert between.wait(SECONDS)
    with pytest.raises(StateError, match="another thread is drawing"):
        pipe.disable_svfit()
    go_on.set()
    thread.join(SECONDS)
    pipe.disable_svfit()


def test_a_call_that_a_mixin_brings_is_noted() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Calling:
        def __call__(self) -> None:
            begun.set()
            go_on.wait(SECONDS)

    class Mixed(Calling, StableDiffusionPipeline):
        pass

    pipe = load(Mixed(**make_tiny_pipeline().components))
    thread = threading.Thread(target=pipe)
    thread.start()
    assert begun.wait(SECONDS)
    with pytest.raises(StateError, match="another thread is drawing"):
        pipe.disable_svfit()
    go_on.set()
    thread.join(SECONDS)
    assert not hasattr(Calling.__call__, "__svfit_watched__"), "others may use it elsewhere"


def test_a_pipeline_that_shares_models_is_concerned() -> None:
    pipe = load(make_tiny_pipeline())
    variant, settings = make_variant(pipe, "image")
    with drawing(variant, **settings), pytest.raises(StateError, match="another thread is drawing"):
        pipe.set_svfit_adapters("a", 0.5)
    check_switching(pipe, tiny_pictures())


def test_a_model_that_is_wrapped_is_concerned() -> None:
    pipe = load(make_tiny_pipeline())
    parts = {**pipe.components, "unet": torch.nn.DataParallel(pipe.unet)}
    begun, go_on = threading.Event(), threading.Event()

    class Wrapped(StableDiffusionPipeline):
        components = parts

        def __init__(self) -> None:
            pass

        def __call__(self) -> None:
            begun.set()
            go_on.wait(SECONDS)

    thread = threading.Thread(target=Wrapped())
    thread.start()
    assert begun.wait(SECONDS)
    with pytest.raises(StateError, match="another thread is drawing"):
        pipe.set_svfit_adapters("a", 0.5)
    go_on.set()
    thread.join(SECONDS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_forked_meanwhile_has_threads_of_its_own() -> None:
    """Of the threads that draw, none is in the child; the lock that one holds is nobody's there."""
    pipe = load(make_tiny_pipeline())
    with drawing(pipe), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                pipe.disable_svfit()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pipe.disable_svfit()


def test_the_signature_of_a_call_is_the_pipelines_own() -> None:
    drawing = inspect.signature(make_tiny_pipeline().__call__).parameters
    assert {"prompt", "guidance_scale", "num_inference_steps"} <= set(drawing)


def test_other_calls_are_not_held_up_by_one() -> None:
    """Two threads draw at the same time: neither waits for the other's end."""
    pipe, other = load(make_tiny_pipeline()), make_tiny_pipeline()
    with drawing(pipe):
        thread = threading.Thread(target=run_pipeline, args=(other,))
        thread.start()
        thread.join(SECONDS)
        assert not thread.is_alive()


def test_the_mix_of_one_thread_is_not_drawn_by_another() -> None:
    pipe = load(make_tiny_pipeline())
    errors: list[Exception] = []

    def draw() -> None:
        try:
            run_pipeline(pipe)
        except StateError as error:
            errors.append(error)

    with pipe.svfit_adapters_per_prompt(["a"]):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join(SECONDS)
    assert "another thread has given adapters per prompt" in str(errors[0])
    check_switching(pipe, tiny_pictures())


def test_a_picture_does_not_begin_within_the_mix_of_another_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else its text would be of the base, and the rest, after the mix has ended, of the adapter."""
    pipe = load(make_tiny_pipeline())
    encoded: list[bool] = []
    monkeypatch.setattr(pipe, "encode_prompt", lambda *_, **__: encoded.append(True))

    def draw() -> None:
        with pytest.raises(StateError, match="another thread has given adapters per prompt"):
            run_pipeline(pipe)

    with pipe.svfit_adapters_per_prompt([None]):
        thread = threading.Thread(target=draw)
        thread.start()
        thread.join(SECONDS)
    assert not encoded


def test_pictures_while_another_thread_keeps_switching() -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures()
    adapted = run_pipeline(pipe)
    twin = copy.copy(pipe)  # the same models
    twin.scheduler, twin.tokenizer = copy.deepcopy((pipe.scheduler, pipe.tokenizer))
    done = threading.Event()
    outcomes = {"switched": 0, "refused": 0}
    pictures: list[Tensor] = []

    def draw(own: Any) -> None:
        for _ in range(8):
            pictures.append(run_pipeline(own))
            done.wait(0.01)

    def switch() -> None:
        while not done.is_set():
            try:
                pipe.set_svfit_adapters("a", (outcomes["switched"] + 1) % 2)
                outcomes["switched"] += 1
            except StateError:
                outcomes["refused"] += 1
            # Else it would hardly ever find a moment between two pictures.
            done.wait(0.001)

    threads = [threading.Thread(target=draw, args=(own,)) for own in (pipe, twin)]
    threads.append(threading.Thread(target=switch))
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join(SECONDS)
    done.set()
    threads[2].join(SECONDS)
    assert len(pictures) == 16
    for picture in pictures:
        assert torch.equal(picture, adapted) or torch.equal(picture, expected.base)
    assert outcomes["refused"]
    assert outcomes["switched"]
