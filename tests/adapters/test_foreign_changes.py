"""Weights changed behind an adapter's back are found before the next change; moves are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from merged import CHANGES, CLOSE, check_switching, load, tiny_adapter, tiny_pictures
from tiny import make_tiny_pipeline, run_pipeline
from torch import nn

from svfit_diffusion import StateError
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.targets import attention_layers

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"


def weight_of(pipe: Any) -> nn.Parameter:
    weight: nn.Parameter = pipe.unet.get_submodule(LAYER).weight
    return weight


def write_in_place(pipe: Any) -> None:
    with torch.no_grad():
        weight_of(pipe).mul_(1.5)


def write_a_row(pipe: Any) -> None:
    weight_of(pipe).data[3] += 0.1


def write_a_column(pipe: Any) -> None:
    weight_of(pipe).data[:, 5] = 0.0


def write_data(pipe: Any) -> None:
    weight_of(pipe).data = torch.randn_like(weight_of(pipe))


def exchange(pipe: Any) -> None:
    other = nn.Parameter(torch.randn_like(weight_of(pipe)), requires_grad=False)
    pipe.unet.get_submodule(LAYER).weight = other


def load_checkpoint(pipe: Any) -> None:
    pipe.unet.load_state_dict(make_tiny_pipeline(9).unet.state_dict())


def assign_checkpoint(pipe: Any) -> None:
    pipe.unet.load_state_dict(make_tiny_pipeline(9).unet.state_dict(), assign=True)


def train_the_base(pipe: Any) -> None:
    weight = weight_of(pipe).requires_grad_()
    weight.square().sum().backward()
    torch.optim.SGD([weight], 0.1).step()


WRITES = [
    write_in_place,
    write_a_row,
    write_a_column,
    write_data,
    exchange,
    load_checkpoint,
    assign_checkpoint,
    train_the_base,
]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("active", [True, False], ids=["active", "idle"])
def test_a_write_is_found_and_may_be_kept(write: Callable[[Any], None], active: bool) -> None:
    pipe = load(make_tiny_pipeline(), activate=active)
    write(pipe)
    written = weight_of(pipe).detach().clone()
    with pytest.raises(StateError, match=r"attn1\.to_. .*changed by something"):
        load(pipe, "b")
    with pytest.raises(StateError, match=r"unload_svfit_weights\(keep_changed_weights=True\)"):
        pipe.unload_svfit_weights()
    assert pipe.get_list_svfit_adapters() == {"unet": ["a"], "text_encoder": ["a"]}

    pipe.unload_svfit_weights(keep_changed_weights=True)
    assert pipe.get_list_svfit_adapters() == {}
    assert torch.equal(weight_of(pipe), written)
    base = make_tiny_pipeline()
    write(base)
    for component, model in models_of(base).items():
        for path, layer in attention_layers(model).items():
            found = getattr(pipe, component).get_submodule(path).weight
            assert path == LAYER or torch.equal(found, layer.weight), (component, path)


def test_no_change_is_made_over_a_write() -> None:
    pipe = load(make_tiny_pipeline())
    before = weight_of(pipe).detach().clone()
    write_in_place(pipe)
    picture = run_pipeline(pipe)
    for change in CHANGES:
        with pytest.raises(StateError, match=LAYER.replace(".", r"\.")):
            change(pipe)
        assert pipe.get_active_svfit_adapters() == ["a"]
    assert torch.equal(run_pipeline(pipe), picture)
    weight_of(pipe).data = before  # undone as it was done
    check_switching(pipe, tiny_pictures())


def test_a_write_to_a_layer_that_no_adapter_shifts_is_nobodys_business() -> None:
    pipe = load(make_tiny_pipeline())
    pipe.unet.conv_in.weight.data.mul_(1.1)
    pipe.disable_svfit()
    base = make_tiny_pipeline()
    base.unet.conv_in.weight.data.mul_(1.1)
    assert torch.equal(run_pipeline(pipe), run_pipeline(base))


def there_and_back(*dtypes: torch.dtype) -> Callable[[Any], None]:
    def move(pipe: Any) -> None:
        for dtype in dtypes:
            pipe.to(dtype)

    return move


def exchange_storage(pipe: Any) -> None:
    for parameter in pipe.unet.parameters():
        parameter.data = parameter.data.clone()


def share_memory(pipe: Any) -> None:
    pipe.unet.share_memory()


def ask_for_gradients(pipe: Any) -> None:
    pipe.unet.requires_grad_(True)
    pipe.unet.requires_grad_(False)


MOVES: dict[str, Callable[[Any], None]] = {
    "float64 and back": there_and_back(torch.float64, torch.float32),
    "other storage": exchange_storage,
    "shared memory": share_memory,
    "thawed and frozen": ask_for_gradients,
    "own state dict": lambda pipe: pipe.unet.load_state_dict(pipe.unet.state_dict()),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_move_is_no_change(move: str) -> None:
    pipe = load(make_tiny_pipeline())
    MOVES[move](pipe)
    check_switching(pipe, tiny_pictures())


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_back_is_no_change(half: torch.dtype) -> None:
    pipe = load(make_tiny_pipeline())
    there_and_back(half, torch.float32)(pipe)
    pipe.disable_svfit()
    # The layers' own weights never were in half precision; the others of the base are rounded.
    base = make_tiny_pipeline()
    for component, deltas in tiny_adapter().deltas.items():
        for path in deltas:
            own = getattr(base, component).get_submodule(path).weight
            assert torch.equal(getattr(pipe, component).get_submodule(path).weight, own)
    there_and_back(half, torch.float32)(base)
    rounding = (tiny_pictures().base - run_pipeline(base)).abs().max().item()
    torch.testing.assert_close(run_pipeline(pipe), tiny_pictures().base, rtol=0, atol=2 * rounding)
    pipe.enable_svfit()
    torch.testing.assert_close(
        run_pipeline(pipe), tiny_pictures().adapted, rtol=0, atol=4 * rounding + CLOSE["atol"]
    )
    pipe.unload_svfit_weights()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_a_write_after_a_cast_is_found(half: torch.dtype) -> None:
    pipe = load(make_tiny_pipeline())
    pipe.to(half)
    weight_of(pipe).data *= 1.05
    with pytest.raises(StateError, match=LAYER.replace(".", r"\.")):
        pipe.disable_svfit()
