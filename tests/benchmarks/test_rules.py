"""What quality's methods do after each step."""

from __future__ import annotations

import copy
from math import isqrt
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.adapting import Adapt
from benchmarks.cores import leading_core, sparse_core
from benchmarks.methods import IDEAS, METHODS, find_method
from benchmarks.rules import (
    Rule,
    Vectors,
    anchored,
    averaged,
    budget,
    careful,
    chosen,
    leading_by_noise,
    part,
    rates_by_sigma,
)

SIGMA = torch.tensor([8.0, 4.0, 2.0, 2.0])
GRADIENTS = (torch.tensor([1.0, -5.0, 2.0, 0.5]), torch.tensor([4.0, 0.1, -3.0, 0.2]))


def vectors(count: int = 3) -> Vectors:
    deltas = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    needs = [torch.tensor([0.0, 3.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])]
    return Vectors(deltas, [SIGMA, SIGMA], count, needs)


def stepped(rule: Rule, steps: int = 10, count: int = 3) -> list[Tensor]:
    """The entries after so many steps of size 1 against the same gradients."""
    own = vectors(count)
    after_step = rule(own, steps)
    for step in range(1, steps + 1):
        for delta, gradient in zip(own.deltas, GRADIENTS, strict=True):
            delta.grad = gradient.clone()
            delta.data -= gradient.sign()
        after_step(step)
    return [delta.detach() for delta in own.deltas]


@pytest.mark.parametrize(
    ("which", "trained"), [("top", [0, 1]), ("bottom", [2, 3]), ("spread", [0, 2])]
)
def test_half_a_spectrum(which: str, trained: list[int]) -> None:
    for delta, gradient in zip(stepped(part(which)), GRADIENTS, strict=True):
        wanted = torch.zeros(4)
        wanted[trained] = -10 * gradient.sign()[trained]
        assert torch.equal(delta, wanted)


def test_entries_chosen_are_those_with_the_largest_gradients() -> None:
    first, second = stepped(chosen, steps=8)
    assert first.nonzero().flatten().tolist() == [1]
    assert second.nonzero().flatten().tolist() == [0, 2]
    # Nothing moves while gradients are looked at, in the first five steps.
    assert first[1] == 3
    assert all(not delta.any() for delta in stepped(chosen, steps=5))


def test_a_budget_is_of_attentions_size_unless_it_is_given() -> None:
    for rule, kept in ((budget(), 3), (budget(2), 2)):
        assert sum(int(delta.count_nonzero()) for delta in stepped(rule, steps=20)) == kept


def test_rates_follow_singular_values() -> None:
    first, _ = stepped(rates_by_sigma(1.0), steps=1)
    torch.testing.assert_close(first.abs(), SIGMA / 4)
    first, _ = stepped(rates_by_sigma(0.0), steps=1)
    torch.testing.assert_close(first.abs(), torch.ones(4))


def test_what_the_base_needs_moves_less() -> None:
    for rule in (careful, anchored(0.1)):
        first, second = (delta.abs() for delta in stepped(rule))
        assert first[0] > first[3] > first[1]
        torch.testing.assert_close(second, second[:1].expand(4))


def test_the_mean_over_the_steps_is_what_stays() -> None:
    own, steps = vectors(), 400
    after_step = averaged(0.9)(own, steps)
    for step in range(1, steps + 1):
        own.deltas[0].data = torch.full((4,), float(step % 2))
        after_step(step)
    # Of zeros and ones in turn, the last of them zero: 0.9 / 1.9.
    torch.testing.assert_close(own.deltas[0].detach(), torch.full((4,), 0.9 / 1.9))


def test_noisy_examples_leave_the_lower_spectrum_alone() -> None:
    own = vectors()
    own.deltas[0].grad = torch.ones(4)
    leading_by_noise(own.deltas, 0.5)
    assert own.deltas[0].grad.tolist() == [1, 1, 0, 0]  # 5/8 of four, rounded to the even two
    leading_by_noise(own.deltas, 1.0)
    assert own.deltas[0].grad.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("adapt", [sparse_core, leading_core], ids=["sparse", "leading"])
def test_a_core_keeps_as_many_entries_and_merges(
    adapt: Adapt, tiny_pipe: Any, tmp_path: Path
) -> None:
    model = tiny_pipe.text_encoder.requires_grad_(False)
    before = copy.deepcopy(model)
    ids = torch.tensor([[0, 5, 7, 1]])
    adapted = adapt({"text_encoder": model}, 8)
    base = before(ids).last_hidden_state
    torch.testing.assert_close(model(ids).last_hidden_state, base, atol=1e-5, rtol=1e-5)
    optimizer = torch.optim.SGD(adapted.parameters, lr=0.1)
    for step in range(1, 9):
        optimizer.zero_grad()
        model(ids).last_hidden_state[..., 0].sum().backward()
        optimizer.step()
        adapted.after_step(step)
    trained = model(ids).last_hidden_state
    assert (trained - base).abs().max() > 1e-3
    layers = [
        layer
        for name, layer in before.named_modules()
        if isinstance(layer, nn.Linear) and "self_attn" in name
    ]
    values = sum(min(layer.weight.shape) for layer in layers)
    square = isqrt(values // len(layers)) ** 2
    assert adapted.value_count() == (values if adapt is sparse_core else square * len(layers))
    adapted.save(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "core.safetensors")
    kept = [values for name, values in stored.items() if name.endswith("values")]
    places = [places for name, places in stored.items() if name.endswith("places")]
    assert sum(each.numel() for each in kept) == adapted.value_count()
    assert [len(each) for each in places] == ([len(e) for e in kept] if places else [])
    assert bool(places) == (adapt is sparse_core)
    adapted.merge()
    # In float32, by another order of the same products.
    torch.testing.assert_close(model(ids).last_hidden_state, trained, atol=1e-5, rtol=1e-5)


def test_ideas_are_methods_of_their_own() -> None:
    names = [method.name for method in (*METHODS, *IDEAS)]
    assert len(set(names)) == len(names)
    assert all(find_method(name).name == name for name in names)
    assert len({len(method.learning_rates) for method in IDEAS}) == 1
