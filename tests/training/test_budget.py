"""The global budget, against an oracle that goes entry by entry."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.training.budget import (
    PRUNING_ENDS,
    PRUNING_STARTS,
    Pruner,
    largest,
    live_entries,
)

SIZES = (5, 1, 8, 6)


def make_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size)) for size in SIZES]


def flat(tensors: list[nn.Parameter]) -> Tensor:
    return torch.cat([tensor.detach() for tensor in tensors])


def take_step(parameters: list[nn.Parameter], generator: torch.Generator) -> None:
    """What an optimizer does to them, and the gradients it did it with."""
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        parameter.data += torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 200, 1000])
@pytest.mark.parametrize(("everything", "budget"), [(1, 1), (20, 20), (20, 19), (93_696, 1)])
def test_the_schedule_falls_from_all_to_the_budget(
    total: int, everything: int, budget: int
) -> None:
    counts = [live_entries(step, total, everything, budget) for step in range(total + 1)]
    assert all(before >= after for before, after in itertools.pairwise(counts))
    assert counts[0] == everything
    for step, count in enumerate(counts):
        if step <= PRUNING_STARTS * total:
            assert count == everything
        if step >= PRUNING_ENDS * total:
            assert count == budget


def test_the_schedule_is_cubic() -> None:
    assert live_entries(35, 100, 1000, 200) == 200 + 800 * 0.5**3
    assert live_entries(20, 100, 1000, 200) == round(200 + 800 * 0.8**3)


def test_of_equals_the_first_are_largest() -> None:
    assert largest(torch.ones(6), 2).tolist() == [True, True, False, False, False, False]
    assert largest(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3).tolist() == [0, 1, 1, 1, 0]
    assert not largest(torch.ones(3), 0).any()


@pytest.mark.parametrize("budget", [1, 4, 19, 20])
def test_the_most_important_entries_live(budget: int) -> None:
    """Step by step: a mean in float64 of each entry, all of them sorted by Python."""
    total = 30
    parameters = make_parameters()
    pruner = Pruner(parameters, budget, total)
    generator = torch.Generator().manual_seed(budget)
    means = [0.0] * sum(SIZES)
    alive = set(range(sum(SIZES)))
    for step in range(1, total + 1):
        take_step(parameters, generator)
        moved, gradient = flat(parameters), torch.cat([p.grad for p in parameters])
        means = [
            0.95 * mean + 0.05 * abs(float(d) * float(g))
            for mean, d, g in zip(means, moved, gradient, strict=True)
        ]
        wanted = live_entries(step, total, sum(SIZES), budget)
        alive = set(sorted(alive, key=lambda entry: -means[entry])[:wanted])
        pruner.weigh()
        pruner.prune(step)
        assert set(pruner.live.nonzero().flatten().tolist()) == alive
        # Survivors are untouched, the others exactly zero.
        expected = [float(d) if i in alive else 0.0 for i, d in enumerate(moved)]
        assert flat(parameters).tolist() == expected
    assert flat(parameters).count_nonzero() == budget
    torch.testing.assert_close(pruner.importance, torch.tensor(means), rtol=1e-5, atol=1e-7)


def test_what_is_pruned_does_not_come_back() -> None:
    parameters = make_parameters()
    pruner = Pruner(parameters, 3, 10)
    generator = torch.Generator().manual_seed(0)
    seen = pruner.live.clone()
    for step in range(1, 11):
        take_step(parameters, generator)
        for parameter, live in zip(parameters, pruner.live.split(SIZES), strict=True):
            parameter.grad[~live] = 1e6
        pruner.weigh()
        pruner.prune(step)
        assert not (pruner.live & ~seen).any()
        seen = pruner.live.clone()
    assert seen.sum() == 3


def test_a_parameter_without_a_gradient_is_unimportant() -> None:
    parameters = make_parameters()
    pruner = Pruner(parameters, 6, 1)
    take_step(parameters, torch.Generator().manual_seed(0))
    parameters[2].grad = None
    pruner.weigh()
    pruner.prune(1)
    assert not parameters[2].any()
    assert flat(parameters).count_nonzero() == 6


def test_values_that_are_not_finite_are_zeroed_like_others() -> None:
    parameters = [nn.Parameter(torch.tensor([1.0, torch.inf, -1.0]))]
    pruner = Pruner(parameters, 1, 1)
    pruner.importance.copy_(torch.tensor([2.0, 1.0, 1.0]))
    pruner.prune(1)
    assert parameters[0].tolist() == [1.0, 0.0, 0.0]
    assert not parameters[0].signbit().any()


def test_a_budget_beyond_all_is_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"budget 21 exceeds the 20 trainable"):
        Pruner(make_parameters(), 21, 10)


def test_a_restored_pruner_goes_on_alike() -> None:
    runs = [make_parameters(), make_parameters()]
    first = Pruner(runs[0], 3, 20)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 7):
        take_step(runs[0], generator)
        first.weigh()
        first.prune(step)
    second = Pruner(runs[1], 3, 20)
    second.load_state_dict(first.state_dict())
    for theirs, own in zip(*runs, strict=True):
        own.data.copy_(theirs.detach())
    for step in range(7, 21):
        state = generator.get_state()
        for parameters, pruner in zip(runs, (first, second), strict=True):
            take_step(parameters, generator.set_state(state))
            pruner.weigh()
            pruner.prune(step)
        assert torch.equal(flat(runs[0]), flat(runs[1]))
        assert torch.equal(first.importance, second.importance)


@pytest.mark.parametrize("total", [4, 10, 400])
def test_another_length_when_resumed_still_ends_at_the_budget(total: int) -> None:
    """The schedule may jump: down to the budget at once, or up, where nothing comes back."""
    parameters = make_parameters()
    first = Pruner(parameters, 3, 10)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        take_step(parameters, generator)
        first.weigh()
        first.prune(step)
    before = first.live.clone()
    assert before.sum() == 7
    second = Pruner(parameters, 3, total)
    second.load_state_dict(first.state_dict())
    for step in range(4, total + 1):
        take_step(parameters, generator)
        second.weigh()
        second.prune(step)
        assert not (second.live & ~before).any()
    assert flat(parameters).count_nonzero() == 3


def test_a_state_of_other_parameters_is_refused() -> None:
    pruner = Pruner(make_parameters(), 3, 10)
    other = Pruner(make_parameters()[1:], 3, 10)
    other.importance += 1
    with pytest.raises(ValueError, match="another number"):
        pruner.load_state_dict(other.state_dict())
    assert not pruner.importance.any()
