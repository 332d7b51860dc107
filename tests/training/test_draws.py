"""What chance decides in training."""

from __future__ import annotations

import torch

from svfit_diffusion.training.draws import draw_example


def test_every_photo_once_an_epoch_in_changing_order() -> None:
    epochs = [[draw_example(3, 5 * e + i, 5).index for i in range(5)] for e in range(6)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_draws_depend_on_seed_position_and_stream_alone() -> None:
    def noise(seed: int, position: int, stream: int) -> torch.Tensor:
        return torch.randn(4, generator=draw_example(seed, position, 5, stream).generator)

    assert torch.equal(noise(0, 7, 0), noise(0, 7, 0))
    keys = [(s, p, k) for s in range(3) for p in range(20) for k in range(2)]
    assert len({tuple(noise(*key).tolist()) for key in keys}) == len(keys)
    flips = sum(draw_example(0, p, 5).flip for p in range(400))
    assert 140 < flips < 260


def test_prompts_are_dropped_at_random_apart_from_all_else() -> None:
    drops = [draw_example(0, p, 5).drop for p in range(400)]
    assert 20 < sum(drop < 0.1 for drop in drops) < 65
    assert 140 < sum(drop < 0.5 for drop in drops) < 260
