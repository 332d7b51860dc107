"""Where memory is short, the layers' own weights wait on the CPU while an adapter is set."""

from __future__ import annotations

import pytest
import torch
from merged import make_adapter, put
from tiny import make_tiny_unet, run_unet
from torch import Tensor

from svfit_diffusion.adapters import weights


def test_own_weights_are_taken_to_the_cpu_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_memory_is_short", lambda device: True)
    unet = make_tiny_unet()
    adapter = make_adapter({"unet": unet})
    own = {name: (p, p.detach().clone()) for name, p in unet.named_parameters()}
    base, moved, cpu = run_unet(unet), set(), Tensor.cpu

    def seen(tensor: Tensor) -> Tensor:
        moved.add(tensor.data_ptr())
        return cpu(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "cpu", seen)
        injection = put(unet, adapter)
    shifted = [own[f"{path}.weight"][0] for path in adapter.deltas["unet"]]
    assert {weight.data_ptr() for weight in shifted} <= moved
    assert not torch.equal(run_unet(unet), base)
    with monkeypatch.context() as patch:  # a strength more: those that wait there stay there
        patch.setattr(Tensor, "cpu", seen)
        moved.clear()
        injection.set_active({"a": 0.5})
    assert not moved & {weight.data_ptr() for weight in shifted}
    injection.eject()
    for name, parameter in unet.named_parameters():
        assert parameter is own[name][0]
        assert torch.equal(parameter, own[name][1])
    assert torch.equal(run_unet(unet), base)
