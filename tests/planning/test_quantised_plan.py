"""What a quantised denoiser takes, as planned and as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_models import quantise
from torch import nn

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.planning import make_plan
from svfit_diffusion.planning.quantised import dense_bytes, quantised_bytes
from svfit_diffusion.training import TrainingConfig

KINDS = {
    "nf4": "bitsandbytes nf4",
    "int8": "bitsandbytes int8",
    "torchao_int8": "torchao int8",
    "torchao_float8": "torchao float8_e4m3fn",
    "fp8": "float8_e4m3fn",
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(128, 192, bias=False), nn.Linear(192, 64, bias=False))
    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([block, nn.LayerNorm(64)])
    return model.requires_grad_(False)


def stored_bytes(model: nn.Module) -> int:
    """Of what layers and their weights hold, however it is called there."""
    total = 0
    for layer in model.modules():
        weight: Any = layer._parameters.get("weight")
        if weight is None:
            continue
        state, parts = getattr(weight, "quant_state", None), [weight]
        if hasattr(weight, "qdata"):
            parts = [weight.qdata, weight.scale]
        elif state is not None:
            parts.append(state.absmax)
        elif getattr(weight, "SCB", None) is not None:
            parts.append(weight.SCB)
        bias = layer._parameters.get("bias")
        total += sum(part.nbytes for part in parts) + (0 if bias is None else bias.nbytes)
    return total


@pytest.mark.parametrize("quantization", KINDS)
def test_bytes_are_those_of_the_layers(quantization: str) -> None:
    planned = quantised_bytes(make_model(), quantization)
    assert planned == stored_bytes(quantise(make_model(), KINDS[quantization]))


@pytest.mark.parametrize("quantization", KINDS)
def test_dense_weights_that_wait_for_the_backward_pass(quantization: str) -> None:
    model = quantise(make_model(), KINDS[quantization])
    kept: list[int] = []
    x = torch.randn(5, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.nbytes) if t.dim() == 2 and 5 not in t.shape else None, lambda t: t
    ):
        for layer in model.transformer_blocks[0]:  # type: ignore[index,union-attr]
            x = layer(x)
    assert sum(kept) == dense_bytes(make_model(), quantization, checkpointing=False)
    assert dense_bytes(make_model(), quantization, checkpointing=True) == sum(kept)  # one block


def test_a_plan_knows_it(saved_pipe: Path, tmp_path: Path) -> None:
    def steps(**settings: Any) -> Any:
        config = TrainingConfig(str(saved_pipe), "photos", "a photo of sks dog", **settings)
        plan = make_plan(config, (16,), (1,), show_progress=False)
        return plan, plan.steps[0].memory["SVFit"]

    whole, full = steps(train_text_encoder=False)
    (tmp_path / "b.json").write_text('{"load_in_4bit": true}')
    by_file = {"bnb_quantization_config_path": str(tmp_path / "b.json")}
    for settings in ({"quantization": "nf4"}, by_file):
        plan, memory = steps(train_text_encoder=False, **settings)
        assert plan.quantization == "nf4"
        less = full.weights - memory.weights
        assert whole.whole_bytes - plan.whole_bytes == less > 0.2 * full.weights
        assert memory.saved < 1.5 * full.saved
        assert memory.total_on_cpu == memory.total  # its vectors stay in memory
    _, fp8 = steps(train_text_encoder=False, quantization="fp8")
    assert fp8.weights < full.weights
    assert fp8.saved > memory.saved  # float8 weights are cast, and the casts kept
    with pytest.raises(ConfigError, match="did you mean"):
        steps(quantization="nf44")
