"""Compiled models under PEFT: one graph, trained or not, and other strengths make no other."""

from __future__ import annotations

import pytest
import torch
from peft_kinds import KINDS, Kind, layers, output
from torch._dynamo.utils import counters

SOME = ["wide Linear", "Conv2d", "Embedding", "Conv1D of GPT-2"]


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("kind", [KINDS[name] for name in SOME], ids=SOME)
def test_output_and_gradient(kind: Kind) -> None:
    plain, other = kind.adapted(), kind.adapted()
    compiled = torch.compile(other.base_model, backend="eager", fullgraph=True)
    for model, run in ((plain, plain), (other, compiled)):
        model.train()
        for _ in range(2):
            model.zero_grad()
            found = output(run(kind.batch))
            found.square().sum().backward()
            for layer in layers(model):
                layer.svfit_delta["default"].data *= 1.5
    assert counters["stats"]["unique_graphs"] == 1
    assert torch.allclose(kind.run(compiled), kind.run(plain), atol=1e-5)
    for one, two in zip(layers(plain), layers(other), strict=True):
        gradients = one.svfit_delta["default"].grad, two.svfit_delta["default"].grad
        assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)
