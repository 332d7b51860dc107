"""Adapters per prompt, on pipelines: each image is the one that its prompt gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny
import torch
from tiny_adapters import PipelineSnapshot, load, load_two, make_adapter, make_variant
from torch import Tensor

from svfit_diffusion import AdapterNameError, BatchError, ConfigError, StateError
from svfit_diffusion.files.adapter import state_dict

PROMPTS = ["a photo of a dog", "a cat", "a very red bicycle"]
# Two steps of the tiny pipeline in float32: sums in another order, in pixels from 0 to 1.
SAME = {"rtol": 0, "atol": 2e-5}


def batch_of(
    rows: Sequence[int], images: int = 1, negative: bool = True, **kwargs: Any
) -> dict[str, Any]:
    """Arguments that draw some of `PROMPTS`, each image with a noise of its own."""
    seeds = [10 * row + image for row in rows for image in range(images)]
    # One for each: a picture that all share takes its noise from the first one's generator.
    for name in kwargs.keys() & {"image", "mask_image"}:
        kwargs[name] = [kwargs[name]] * len(seeds)
    if negative:
        kwargs["negative_prompt"] = [f"bad {row}" for row in rows]
    return kwargs | {
        "prompt": [PROMPTS[row] for row in rows],
        "num_images_per_prompt": images,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
    }


def draw_alone(pipe: Any, row: int, names: list[str], weights: Any, **kwargs: Any) -> Tensor:
    pipe.set_svfit_adapters(names, weights)
    images = tiny.run_pipeline(pipe, **batch_of([row], **kwargs))
    pipe.set_svfit_adapters("b", -1.0)
    return images


@pytest.mark.parametrize("kind", ["text", "image", "inpaint"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_mixed_batch_is_each_prompt_alone(
    guidance: float, images: int, kind: str, tiny_pipe: Any
) -> None:
    load_two(tiny_pipe)
    pipe, kwargs = make_variant(tiny_pipe, kind)
    kwargs = kwargs | {"guidance_scale": guidance, "images": images}
    alone = [
        draw_alone(pipe, 0, ["a"], 0.8, **kwargs),
        draw_alone(pipe, 1, [], None, **kwargs),
        draw_alone(pipe, 2, ["a", "b"], [0.5, {"unet": 1.0, "text_encoder": -0.5}], **kwargs),
    ]
    base = draw_alone(pipe, 0, [], None, **kwargs)
    snapshot = PipelineSnapshot(tiny_pipe)
    mix = {"a": 1.0, "b": {"unet": 2.0, "text_encoder": -1.0}}
    with pipe.svfit_adapters_per_prompt(
        ["a", None, mix], [0.8, 1.0, 0.5], num_images_per_prompt=images
    ):
        mixed = tiny.run_pipeline(pipe, **batch_of(range(3), **kwargs))
    torch.testing.assert_close(mixed, torch.cat(alone), **SAME)
    assert (mixed[:images] - base).abs().max() > 1e-2
    snapshot.check()


def test_a_mixed_batch_without_negative_prompts(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    alone = [
        draw_alone(tiny_pipe, row, [name], 1.0, negative=False) for row, name in enumerate("ab")
    ]
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        mixed = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1], negative=False))
    torch.testing.assert_close(mixed, torch.cat(alone), **SAME)


def test_adapters_on_different_models_mix(tiny_pipe: Any) -> None:
    load(tiny_pipe, state_dict(make_adapter(0, parts=("unet",))), "a")
    load(tiny_pipe, state_dict(make_adapter(1, parts=("text_encoder",))), "b")
    alone = [draw_alone(tiny_pipe, row, [name], 1.0) for row, name in enumerate("ab")]
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        mixed = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
    torch.testing.assert_close(mixed, torch.cat(alone), **SAME)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_mixed_batch_in_half_precision(dtype: torch.dtype, tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    tiny_pipe.to(dtype)
    alone = [draw_alone(tiny_pipe, row, [name], 1.0) for row, name in enumerate("ab")]
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        mixed = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
    assert mixed.dtype == dtype
    # Rounding of that precision, grown by two steps of two networks.
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=0, atol=40 * torch.finfo(dtype).eps)


def test_the_same_adapter_for_all_is_that_adapter_set_to_the_last_bit(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters("a", 0.7)
    expected = tiny.run_pipeline(tiny_pipe, **batch_of(range(3)))
    tiny_pipe.set_svfit_adapters("b")
    with tiny_pipe.svfit_adapters_per_prompt(["a"] * 3, 0.7):
        assert torch.equal(tiny.run_pipeline(tiny_pipe, **batch_of(range(3))), expected)


@pytest.mark.parametrize("adapters", [[None, None], ["a", "b"], [{}, {"a": 1.0}]])
def test_prompts_of_weight_zero_are_the_base_bit_for_bit(adapters: Any, tiny_pipe: Any) -> None:
    base = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
    load_two(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt(adapters, 0.0):
        assert torch.equal(tiny.run_pipeline(tiny_pipe, **batch_of([0, 1])), base)


def test_a_pipeline_without_adapters_takes_base_prompts_only(tiny_pipe: Any) -> None:
    base = tiny.run_pipeline(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt([None]):
        assert torch.equal(tiny.run_pipeline(tiny_pipe), base)
    with pytest.raises(AdapterNameError), tiny_pipe.svfit_adapters_per_prompt(["a"]):
        pass


def test_an_error_inside_leaves_the_pipeline_as_it_was(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(ZeroDivisionError), tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        raise ZeroDivisionError
    snapshot.check()


WRONG_BATCHES: dict[str, dict[str, Any]] = {
    "one prompt": {"prompt": "a dog", "generator": None},
    "too many prompts": batch_of([0, 1, 2]),
    "other images": batch_of([0, 1], images=2),
    "images of one prompt": batch_of([0], images=2),
}


@pytest.mark.parametrize("kind", WRONG_BATCHES)
def test_a_batch_of_other_prompts_is_refused(kind: str, tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    snapshot = PipelineSnapshot(tiny_pipe)
    with (
        tiny_pipe.svfit_adapters_per_prompt(["a", "b"]),
        pytest.raises(BatchError, match="call the pipeline with a list of 2 prompts"),
    ):
        tiny.run_pipeline(tiny_pipe, **WRONG_BATCHES[kind])
    snapshot.check()


BAD_MIXES: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "unknown": ((["a", "nobody"],), {}, AdapterNameError, "nobody"),
    "unknown in a mix": ((["a", {"nobody": 1.0}],), {}, AdapterNameError, "nobody"),
    "none": (([],), {}, ConfigError, "each prompt"),
    "text": (("ab",), {}, ConfigError, "each prompt"),
    "mapping": (({"a": 1.0},), {}, ConfigError, "each prompt"),
    "number": (([1],), {}, ConfigError, "mapping of names"),
    "few": ((["a", "b"], [1.0]), {}, ConfigError, "2 adapters and 1 weights"),
    "many": ((["a"], [1.0, 1.0]), {}, ConfigError, "1 adapters and 2 weights"),
    "nan": ((["a"], [float("nan")]), {}, ConfigError, "finite"),
    "nan in a mix": (([{"a": float("nan")}],), {}, ConfigError, "finite"),
    "component": (([{"a": {"vae": 1.0}}],), {}, ConfigError, "vae"),
    "no images": ((["a"],), {"num_images_per_prompt": 0}, ConfigError, "at least 1"),
    "half an image": ((["a"],), {"num_images_per_prompt": 1.5}, ConfigError, "at least 1"),
}


@pytest.mark.parametrize("kind", BAD_MIXES)
def test_a_bad_mix_changes_nothing(kind: str, tiny_pipe: Any) -> None:
    args, kwargs, error, reason = BAD_MIXES[kind]
    load_two(tiny_pipe)
    snapshot = PipelineSnapshot(tiny_pipe)
    with (
        pytest.raises(error, match=reason),
        tiny_pipe.svfit_adapters_per_prompt(*args, **kwargs),
    ):
        pytest.fail("entered")
    snapshot.check()


@pytest.mark.parametrize("state", ["fused", "disabled"])
def test_a_mix_of_fused_or_disabled_adapters_is_refused(state: str, tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    (tiny_pipe.fuse_svfit if state == "fused" else tiny_pipe.disable_svfit)()
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(StateError, match=state), tiny_pipe.svfit_adapters_per_prompt(["a"]):
        pytest.fail("entered")
    snapshot.check()


def nest(pipe: Any) -> None:
    with pipe.svfit_adapters_per_prompt(["a"]):
        pytest.fail("entered")


@pytest.mark.parametrize(
    "call",
    [
        nest,
        lambda pipe: pipe.set_svfit_adapters("a"),
        lambda pipe: pipe.delete_svfit_adapters("a"),
        lambda pipe: pipe.disable_svfit(),
        lambda pipe: pipe.enable_svfit(),
        lambda pipe: pipe.fuse_svfit(),
        lambda pipe: load(pipe, state_dict(make_adapter(7))),
        lambda pipe: pipe.unet._svfit_injection.set_trainable("a", True),
    ],
)
def test_changes_inside_a_mix_are_refused(call: Callable[[Any], object], tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    snapshot = PipelineSnapshot(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        first = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
        with pytest.raises(StateError, match=r"inside svfit_adapters_per_prompt\(\)"):
            call(tiny_pipe)
        assert torch.equal(tiny.run_pipeline(tiny_pipe, **batch_of([0, 1])), first)
    snapshot.check()


def test_unloading_inside_a_mix_restores_the_base(tiny_pipe: Any) -> None:
    snapshot = PipelineSnapshot(tiny_pipe)
    load_two(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        tiny_pipe.unload_svfit_weights()
        snapshot.check()
    snapshot.check()
