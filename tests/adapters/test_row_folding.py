"""Mixed batches on models that fold frames or tokens into rows: right, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter
from family_inputs import build, run
from merged import check_output, load, make_adapter, merged, put, tiny_pictures
from tiny import IMAGE_SIZE, make_tiny_pipeline, run_pipeline

from svfit_diffusion import BatchError, SVFitConfig
from svfit_diffusion.adapters.rows import RowLayout

MIXES: list[dict[str, float]] = [{"a": 1.0}, {}]


@pytest.mark.parametrize(
    "family",
    ["sd", "flux", "hidream", "hunyuan-dit", "ideogram4", "kandinsky5", "lumina", "qwen-image-2.1"],
)
def test_families_whose_rows_are_prompts(family: str) -> None:
    model = build(family)
    adapter = make_adapter({"transformer": model})
    base, adapted = run(family, model), run(family, merged(model, adapter.deltas["transformer"]))
    injection = put(model, adapter)
    before = run(family, model)
    with injection.adapters_per_prompt(MIXES, RowLayout(2), is_denoiser=True):
        mixed = run(family, model)
    check_output(mixed[:1], base[:1], adapted[:1])
    # The base's own products, in float32: kernels of some processors sum parts of a batch in
    # another order than the whole.
    torch.testing.assert_close(mixed[1:], base[1:], rtol=1e-5, atol=1e-5)
    assert torch.equal(run(family, model), before)


@pytest.mark.parametrize("family", ["animatediff", "krea2", "text-to-video"])
def test_families_that_fold_tokens_or_frames_into_rows(family: str) -> None:
    model = build(family)
    injection = put(model, make_adapter({"transformer": model}))
    before = run(family, model)
    with (
        pytest.raises(BatchError, match=r"folds frames or tokens.*with set_svfit_adapters\(\)"),
        injection.adapters_per_prompt(MIXES, RowLayout(2), is_denoiser=True),
    ):
        run(family, model)
    assert torch.equal(run(family, model), before)


def test_experts_that_get_single_tokens() -> None:
    model = build("hidream")
    config = SVFitConfig(target=r".*\.experts\..*")
    injection = put(model, make_adapter({"transformer": model}, config=config))
    with (
        pytest.raises(BatchError, match="folds frames or tokens"),
        injection.adapters_per_prompt(MIXES, RowLayout(2), is_denoiser=True),
    ):
        run("hidream", model)


def animated() -> Any:
    motion = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    pipe = AnimateDiffPipeline.from_pipe(make_tiny_pipeline(), motion_adapter=motion)
    pipe.set_progress_bar_config(disable=True)
    return load(pipe)


def draw_frames(pipe: Any, prompts: list[str], **settings: Any) -> Any:
    return pipe(
        prompts,
        num_inference_steps=1,
        num_frames=2,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        output_type="pt",
        **settings,
    ).frames


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_frames_of_an_animation_are_no_prompts(guidance_scale: float) -> None:
    pipe = animated()
    with (
        pytest.raises(BatchError, match="draw the prompts one after the other"),
        pipe.svfit_adapters_per_prompt(["a", None]),
    ):
        draw_frames(pipe, ["a dog", "a dog"], guidance_scale=guidance_scale)
    assert torch.isfinite(draw_frames(pipe, ["a dog"])).all()


def test_a_mixed_batch_in_which_all_prompts_have_the_same_adapter() -> None:
    pipe = load(make_tiny_pipeline())
    prompts = ["a photo of a dog"] * 2
    seeds = [torch.Generator().manual_seed(3) for _ in prompts]
    with pipe.svfit_adapters_per_prompt(["a", "a"]):
        pictures = run_pipeline(pipe, prompt=prompts, generator=seeds)
    for picture in pictures:
        torch.testing.assert_close(picture, tiny_pictures().adapted[0], rtol=0, atol=1e-3)
