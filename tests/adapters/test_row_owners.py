"""Whose rows are whose, while several adapters are trained in one pass."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch.utils.checkpoint import checkpoint

from svfit_diffusion import BatchError, StateError
from svfit_diffusion.adapters.inject import eject, inject, inject_beside
from svfit_diffusion.adapters.rows import RowOwners


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("a", "a"),
        ("aab", "aab"),
        ("aabb", "ab"),
        ("aabbbb", "abb"),
        ("aaabbb", "ab"),
        ("abab", "abab"),
    ],
)
def test_parts_are_as_large_as_can_be(rows: str, parts: str) -> None:
    owners = RowOwners()
    with owners.given(rows):
        assert "".join(owners.parts(len(rows))) == parts


def test_a_layer_with_other_rows_is_named_unless_all_are_of_one() -> None:
    owners = RowOwners()
    with owners.given("aab"), pytest.raises(BatchError, match="3 rows and one of its layers 6"):
        owners.parts(6)
    with owners.given("aaa"):
        assert owners.parts(6) == ["a"]


def test_nobody_has_said_whose_rows_they_are() -> None:
    owners = RowOwners()
    with pytest.raises(StateError, match="whose rows these are"):
        owners.parts(2)
    with owners.given("ab"):
        with owners.given("bb"):
            assert owners.parts(2) == ["b"]
        assert owners.parts(2) == ["a", "b"]
    with pytest.raises(StateError):
        owners.parts(2)


def test_what_is_computed_again_is_of_the_rows_it_was_of() -> None:
    owners, seen = RowOwners(), []

    def layer(x: torch.Tensor) -> torch.Tensor:
        seen.append(owners.parts(2))
        return x.exp()

    x = torch.ones(2, requires_grad=True)
    with owners.given("ab"):
        y: Any = checkpoint(layer, x, use_reentrant=False, context_fn=owners.again)
    with owners.given("ba"):
        y.sum().backward()
    assert seen == [["a", "b"], ["a", "b"]]


def test_adapters_side_by_side_share_layers_and_leave_the_model_as_it_was() -> None:
    unet, owners = tiny.make_tiny_unet(), RowOwners()
    before = tiny.run_unet(unet)
    injection = inject(unet, adapter_name="a", show_progress=False)
    inject_beside(unet, "a", "b")
    with torch.no_grad():
        for name, value in (("a", 0.1), ("b", -0.1)):
            for _, delta in injection.sigma_parameters(name):
                delta.fill_(value)
    alone = {}
    for name in "ab":
        injection.set_active({name: 1.0})
        alone[name] = tiny.run_unet(unet)
    injection.set_active({"a": 1.0, "b": 1.0}, owners)
    with owners.given("ba"):
        both = tiny.run_unet(unet)
    # Sums in another order, in float32.
    torch.testing.assert_close(both[0], alone["b"][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1], alone["a"][1], rtol=0, atol=1e-5)
    assert (alone["a"] - alone["b"]).abs().max() > 1e-2
    injection.remove_adapter("a")
    with owners.given("bb"):
        torch.testing.assert_close(tiny.run_unet(unet), alone["b"], rtol=0, atol=1e-5)
    eject(unet)
    assert torch.equal(tiny.run_unet(unet), before)
