"""The pipeline as an oracle: what it passes to its denoiser, and on to its scheduler.

A pipeline draws a few steps; between them the latents are replaced by known ones, so that the later
steps are seen at odd times with inputs that a family can be given too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from svfit_diffusion.families import Family
from svfit_diffusion.families.flow import Flow
from svfit_diffusion.families.noise import NoiseSettings

# Two of a length, and one that is cut off.
SIMILAR_PROMPTS = ["a dog", "a cat"]
PROMPTS = ["a dog", f"a photo of a {'very ' * 150}big sks dog"]


@dataclass(frozen=True)
class Case:
    """How to ask a tiny pipeline for a step without guidance.

    Attributes:
        name: of the tiny pipeline.
        arguments: of its call.
        pack: latents `(n, c, h, w)` as its scheduler sees them.
        drawn: whether raw latents have a deviation.
        size: height and width of its images, if few will do.
    """

    name: str
    arguments: dict[str, Any]
    pack: Callable[[Any, Tensor], Tensor] = lambda pipe, latents: latents
    drawn: bool = True
    size: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Step:
    """What a pipeline did in one step.

    Attributes:
        arguments: of the denoiser, by name, defaults included.
        output: what the scheduler was handed.
        time: the step's time, as the family's noise process names it.
    """

    arguments: dict[str, Any]
    output: Tensor
    time: Tensor


def image_size(family: Family, case: Case) -> tuple[int, int]:
    """Height and width of test images: small, and not the same."""
    if case.size is not None:
        return case.size
    unit = math.lcm(8, family.size_multiple)  # some pipelines insist on eights
    return 2 * unit, 3 * unit


def random_latents(family: Family, case: Case, seed: int) -> Tensor:
    """Random latents `(2, c, h, w)` of `image_size`."""
    generator = torch.Generator().manual_seed(seed)
    raw, _ = family.encode_photo(torch.zeros(2, 3, *image_size(family, case)))
    return torch.randn(family.scale_latents(raw).shape, generator=generator)


def call(
    family: Family, case: Case, latents: Tensor, steps: int, prompts: list[str]
) -> list[tuple[Tensor, ...]]:
    """Draw `prompts`, each step ending in `latents`; what the scheduler was handed in each."""
    pipe = family.pipe
    handed: list[tuple[Tensor, ...]] = []

    def step(output: Tensor, timestep: Tensor, sample: Tensor, **_: Any) -> tuple[Tensor]:
        handed.append((output, timestep))
        return (case.pack(pipe, latents).to(sample.dtype),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", step)
        pipe(
            prompt=list(prompts),
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **family.generation_arguments(image_size(family, case), steps) | case.arguments,
        )
    return handed


def later_steps(
    family: Family, case: Case, latents: Tensor, prompts: list[str] = PROMPTS
) -> list[Step]:
    """What the pipeline does in steps from `latents`, all but the first, which has its own."""
    with recorded_calls(family.model) as calls:
        handed = call(family, case, latents, 4, prompts)
    flow = isinstance(family.noise_process(NoiseSettings()), Flow)
    times = family.pipe.scheduler.sigmas if flow else [timestep for _, timestep in handed]
    return [Step(calls[i], handed[i][0], times[i]) for i in (1, 2, 3)]


class recorded_calls:
    """Within this context, the arguments of every call of a model, by name."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._signature = inspect.signature(model.forward)
        self._calls: list[dict[str, Any]] = []

    def __enter__(self) -> list[dict[str, Any]]:
        def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self._calls.append(dict(bound.arguments))

        self._hook = self._model.register_forward_pre_hook(record, with_kwargs=True)
        return self._calls

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def assert_same(got: Any, wanted: Any, place: str) -> None:
    """Equal to the last bit, in shape and dtype, through lists and dictionaries.

    A single timestep stands for the whole batch, and no extra arguments for none at all.
    """
    if isinstance(wanted, Tensor):
        assert isinstance(got, Tensor), f"{place}: {type(got).__name__}, not a tensor"
        assert got.dtype == wanted.dtype, f"{place}: {got.dtype}, not {wanted.dtype}"
        wanted = wanted.expand_as(got) if wanted.ndim == 0 else wanted
        assert got.shape == wanted.shape, f"{place}: {got.shape}, not {wanted.shape}"
        difference = (got.float() - wanted.float()).abs().max() if got.numel() else 0
        assert torch.equal(got, wanted), f"{place}: off by {difference}"
    elif isinstance(wanted, dict) and wanted:
        assert got.keys() == wanted.keys(), place
        for name in wanted:
            assert_same(got[name], wanted[name], f"{place}.{name}")
    elif isinstance(wanted, list | tuple):
        assert len(got) == len(wanted), place
        for i, (mine, its) in enumerate(zip(got, wanted, strict=True)):
            assert_same(mine, its, f"{place}[{i}]")
    else:
        assert (got or None) == (wanted or None), f"{place}: {got!r}, not {wanted!r}"
