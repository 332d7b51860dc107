"""Layerwise casting and adapters: pictures are those of the merged model, cast likewise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from merged import Expected, check_switching, load, merge_pipeline, tiny_adapter, tiny_pictures
from tiny import make_tiny_pipeline, run_pipeline

from svfit_diffusion import BaseMismatchError, StateError
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.loading import put_adapter

FLOAT8 = torch.float8_e4m3fn
# A shift rounded by 3e-4 of itself tips some weights to the next float8, an eighth away at most.
CLOSE_IN_FLOAT8 = {"rtol": 0, "atol": 1e-2}


def cast(pipe: Any, storage: torch.dtype = FLOAT8) -> Any:
    pipe.unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    return pipe


def cast_to_half(pipe: Any) -> Any:
    return cast(pipe, torch.float16)


def test_float8_after_loading_is_the_merged_model_in_float8() -> None:
    pipe, expected = cast(load(make_tiny_pipeline())), tiny_pictures(cast)
    own = dict(make_tiny_pipeline().unet.named_parameters())
    adapted = run_pipeline(pipe)
    torch.testing.assert_close(adapted, expected.adapted, **CLOSE_IN_FLOAT8)
    for strength in (0.3, -2.0, 0.0):  # none of which leaves a trace
        pipe.set_svfit_adapters("a", strength)
    assert torch.equal(run_pipeline(pipe), expected.base)
    pipe.set_svfit_adapters("a")
    assert torch.equal(run_pipeline(pipe), adapted)
    pipe.unload_svfit_weights()
    assert torch.equal(run_pipeline(pipe), expected.base)
    for name, parameter in pipe.unet.named_parameters():
        assert torch.equal(parameter.float(), own[name].to(parameter.dtype).float()), name


def test_strengths_in_float8() -> None:
    pipe = cast(load(make_tiny_pipeline()))
    pipe.set_svfit_adapters("a", 0.5)
    whole = cast(merge_pipeline(make_tiny_pipeline(), tiny_adapter(), 0.5))
    expected = Expected(tiny_pictures(cast).base, run_pipeline(whole))
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, **CLOSE_IN_FLOAT8)


def test_a_second_adapter_comes_after_casting() -> None:
    pipe, expected = cast(load(make_tiny_pipeline())), tiny_pictures(cast)
    load(pipe, "b")
    pipe.set_svfit_adapters(["a", "b"], [0.5, 0.5])
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, **CLOSE_IN_FLOAT8)
    pipe.delete_svfit_adapters(["a", "b"])
    assert torch.equal(run_pipeline(pipe), expected.base)


@pytest.mark.parametrize("order", ["before", "after"])
def test_float16_storage_in_either_order(order: str) -> None:
    pipe = make_tiny_pipeline()
    pipe = load(cast_to_half(pipe)) if order == "before" else cast_to_half(load(pipe))
    pipe.disable_svfit()  # rounds the own weights, once
    pipe.enable_svfit()
    check_switching(pipe, tiny_pictures(cast_to_half))


def test_a_base_in_float8_is_another_base() -> None:
    pipe, expected = cast(make_tiny_pipeline()), tiny_pictures(cast)
    before = dict(pipe.unet.named_parameters())
    with pytest.raises(BaseMismatchError, match="here is quantised as float8_e4m3fn"):
        put_adapter(models_of(pipe), tiny_adapter(), "a", show_progress=False)
    assert pipe.get_list_svfit_adapters() == {}
    assert all(p is before[name] for name, p in pipe.unet.named_parameters())
    assert torch.equal(run_pipeline(pipe), expected.base)


def test_layers_that_are_cast_are_neither_trained_nor_mixed() -> None:
    pipe = cast(load(make_tiny_pipeline()))
    before = run_pipeline(pipe)
    with (
        pytest.raises(StateError, match="layerwise casting"),
        pipe.svfit_adapters_per_prompt(["a", None]),
    ):
        pass
    with pytest.raises(StateError, match="layerwise casting"):
        Injection.of(pipe.unet).set_trainable("a", True)
    assert torch.equal(run_pipeline(pipe), before)
    pipe.disable_svfit()  # which training still wished for would refuse
    assert torch.equal(run_pipeline(pipe), tiny_pictures(cast).base)
