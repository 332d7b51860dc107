"""Copies of adapted models: pickled, deep-copied, in other processes and in other pipelines."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    MotionAdapter,
    StableDiffusionImg2ImgPipeline,
)
from merged import (
    CHANGES,
    CLOSE,
    check_output,
    check_switching,
    load,
    merge_pipeline,
    merged,
    tiny_adapter,
    tiny_pictures,
)
from tiny import IMAGE_SIZE, make_tiny_pipeline, run_pipeline, run_unet, unet_inputs
from torch import Tensor

from svfit_diffusion import StateError, inject
from svfit_diffusion.adapters.injection import Injection

# Another number of threads may sum in another order.
OTHER_THREADS: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


def saved(thing: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "torch.save": saved,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_pipeline_switches_by_itself(way: str) -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures()
    other = WAYS[way](pipe)
    other.disable_svfit()
    assert torch.equal(run_pipeline(other), expected.base)
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, **CLOSE)
    other.enable_svfit()
    check_switching(other, expected)
    check_switching(pipe, expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_model_in_another_pipeline(way: str) -> None:
    pipe, other = load(make_tiny_pipeline()), load(make_tiny_pipeline())
    other.unet = WAYS[way](pipe.unet)
    pipe.unload_svfit_weights()
    check_switching(other, tiny_pictures())


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_live_and_of_switched_off_adapters(way: str) -> None:
    unet = make_tiny_pipeline().unet
    deltas, base = tiny_adapter().deltas["unet"], run_unet(unet)
    expected = run_unet(merged(unet, deltas))
    injection = inject(unet, show_progress=False)
    with torch.no_grad():
        for path, shift in injection.sigma_parameters("default"):
            shift.copy_(deltas[path])
    other = WAYS[way](unet)
    check_output(run_unet(other), base, expected)
    for _, shift in Injection.of(other).sigma_parameters("default"):
        shift.detach().zero_()
    assert torch.equal(run_unet(other), base)
    check_output(run_unet(unet), base, expected)  # whose shifts are its own
    injection.set_enabled(False)
    off = WAYS[way](unet)
    Injection.of(off).set_enabled(True)
    check_output(run_unet(off), base, expected)
    Injection.of(off).eject()
    assert torch.equal(run_unet(off), base)


def test_an_adapted_model_in_a_process_that_imported_nothing() -> None:
    pipe = load(make_tiny_pipeline())
    unet, context = pipe.unet, multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(unet, kwds=unet_inputs()).sample
        torch.testing.assert_close(found, run_unet(unet), **OTHER_THREADS)
        # What the child had is a copy: here it still switches.
        pipe.disable_svfit()
        found = pool.apply(unet, kwds=unet_inputs()).sample
    torch.testing.assert_close(found, run_unet(make_tiny_pipeline().unet), **OTHER_THREADS)
    pipe.enable_svfit()
    check_switching(pipe, tiny_pictures())


def test_another_pipeline_of_the_same_models_shares_their_adapters() -> None:
    pipe = load(make_tiny_pipeline())
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert other.get_active_svfit_adapters() == ["a"]
    torch.testing.assert_close(run_pipeline(pipe), tiny_pictures().adapted, **CLOSE)
    other.disable_svfit()
    assert torch.equal(run_pipeline(pipe), tiny_pictures().base)
    other.unload_svfit_weights()
    assert pipe.get_list_svfit_adapters() == {}


def animated(pipe: Any) -> Any:
    torch.manual_seed(4)
    motion = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    return AnimateDiffPipeline.from_pipe(pipe, motion_adapter=motion)


def draw_frames(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    frames: Tensor = pipe(
        "a photo of a dog",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        num_frames=2,
    ).frames
    return frames


def test_animatediff_copies_the_weights_and_says_so() -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures(animated, draw_frames)
    other = animated(pipe)
    torch.testing.assert_close(draw_frames(other), expected.adapted, **CLOSE)
    for change in CHANGES:
        with pytest.raises(StateError, match=r"not on its unet, a copy .* from a base without"):
            change(other)
    torch.testing.assert_close(draw_frames(other), expected.adapted, **CLOSE)
    check_switching(pipe, tiny_pictures())  # the pipeline that it came from


def test_animatediff_made_of_a_base_takes_adapters() -> None:
    expected = tiny_pictures(animated, draw_frames)
    check_switching(load(animated(make_tiny_pipeline())), expected, draw_frames)


def test_animatediff_made_of_an_unloaded_pipeline_is_the_bases() -> None:
    pipe = load(make_tiny_pipeline())
    pipe.unload_svfit_weights()
    assert torch.equal(draw_frames(animated(pipe)), tiny_pictures(animated, draw_frames).base)


def test_a_saved_pipeline_is_the_merged_model(tmp_path: Any) -> None:
    pipe = load(make_tiny_pipeline())
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.get_list_svfit_adapters() == {}
    assert torch.equal(run_pipeline(again), run_pipeline(pipe))
    whole = merge_pipeline(make_tiny_pipeline(), tiny_adapter())
    assert again.unet.state_dict().keys() == whole.unet.state_dict().keys()
