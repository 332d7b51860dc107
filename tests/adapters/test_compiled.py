"""Compiled models: one graph, and switching adapters makes no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_inputs import build, run
from merged import check_output, load, make_adapter, merged, put, tiny_pictures
from tiny import make_one_block_unet, make_tiny_pipeline, run_pipeline, run_unet
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from svfit_diffusion import inject

FAMILIES = [
    "flux",
    "hidream",
    "krea2",
    "lumina",
    "qwen-image",
    "qwen-image-2.1",
    "sd3",
]


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, fullgraph=True, backend="eager")


def compiled_base(family: str) -> tuple[Any, Tensor]:
    """A compiled model and its output; the test is skipped where it does not compile without us."""
    model = compiled(build(family))
    try:
        return model, run(family, model)
    except TorchDynamoException as error:
        pytest.skip(f"{family} does not compile as one graph without us: {type(error).__name__}")


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_switches_make_no_graph(family: str) -> None:
    model, base = compiled_base(family)
    plain = model._orig_mod
    adapter = make_adapter({"transformer": plain})
    expected = run(family, merged(plain, adapter.deltas["transformer"]))
    before = graphs()
    injection = put(plain, adapter)
    check_output(run(family, model), base, expected)
    for switch in range(10):
        injection.set_active({"a": 0.3 * switch})
        run(family, model)
    injection.set_active({"a": 1.0})
    check_output(run(family, model), base, expected)
    injection.eject()
    assert torch.equal(run(family, model), base)
    assert graphs() == before


def test_a_compiled_pipeline_switches_without_recompiling() -> None:
    pipe, expected = make_tiny_pipeline(), tiny_pictures()
    pipe.unet = compiled(pipe.unet)
    assert torch.equal(run_pipeline(pipe), expected.base)
    before = graphs()
    load(pipe)
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, rtol=0, atol=1e-3)
    for switch in range(5):
        pipe.set_svfit_adapters("a", 0.2 * switch)
        run_pipeline(pipe)
    pipe.unload_svfit_weights()
    assert torch.equal(run_pipeline(pipe), expected.base)
    assert graphs() == before


def test_a_live_adapter_compiles_and_follows_its_shifts() -> None:
    unet = make_one_block_unet()
    base, deltas = run_unet(unet), make_adapter({"unet": unet}).deltas["unet"]
    expected = run_unet(merged(unet, deltas))
    injection, model = inject(unet, show_progress=False), compiled(unet)
    assert torch.equal(run_unet(model), base)
    before = graphs()
    with torch.no_grad():
        for path, shift in injection.sigma_parameters("default"):
            shift.copy_(deltas[path])
    check_output(run_unet(model), base, expected)
    assert graphs() == before
