"""Models that use attention past its processor, or ask what kind it is: live is as set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import (
    QwenImage21AttnProcessor,
    QwenImage21FlexAttnProcessor,
)
from family_inputs import build, run
from merged import check_output, make_adapter, merged, put

from svfit_diffusion import SVFitConfig
from svfit_diffusion.adapters.attention import SVFitAttnProcessor


@pytest.mark.parametrize(
    ("family", "target"),
    [
        ("lumina", "attention"),
        ("lumina", "attn2.to_out.0"),  # which the block calls by itself
        ("qwen-image-2.1", "attention"),
        ("qwen-image-2.1", "to_q"),
    ],
)
def test_a_live_adapter_gives_what_it_gives_set(family: str, target: str) -> None:
    model = build(family)
    base = run(family, model)
    adapter = make_adapter({"transformer": model}, config=SVFitConfig(target=target))
    expected = run(family, merged(model, adapter.deltas["transformer"]))
    injection = put(model, adapter)
    check_output(run(family, model), base, expected)
    injection.set_trainable("a", True)
    check_output(run(family, model), base, expected)
    injection.eject()
    assert torch.equal(run(family, model), base)


def test_gradients_reach_the_projection_that_the_block_calls() -> None:
    model = build("lumina")
    config = SVFitConfig(target="attn2.to_out.0")
    injection = put(model, make_adapter({"transformer": model}, config=config))
    injection.set_trainable("a", True)
    with torch.enable_grad():
        run_with_gradients(model).square().sum().backward()
    for path, shift in injection.sigma_parameters("a"):
        assert shift.grad is not None and shift.grad.any(), path


def run_with_gradients(model: Any) -> torch.Tensor:
    from family_inputs import INPUTS

    return model(**INPUTS["lumina"](2), return_dict=False)[0]


@pytest.mark.parametrize("kind", [QwenImage21AttnProcessor, QwenImage21FlexAttnProcessor])
def test_a_wrapped_processor_is_of_the_inner_kind(kind: type) -> None:
    model: Any = build("qwen-image-2.1")
    for block in model.transformer_blocks:
        block.attn.set_processor(kind())
    injection = put(model, make_adapter({"transformer": model}))
    injection.set_trainable("a", True)
    for block in model.transformer_blocks:
        processor = block.attn.processor
        assert isinstance(processor, SVFitAttnProcessor)
        assert isinstance(processor, kind)
        assert type(type(processor)()) is kind  # diffusers makes others so
    injection.eject()
    assert {type(block.attn.processor) for block in model.transformer_blocks} == {kind}
