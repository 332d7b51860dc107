"""The memory of a training step, from a step that is made without any."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.families import Family, NoiseSettings, PhotoSize
from svfit_diffusion.planning.hollow import Hollow
from svfit_diffusion.planning.ledger import Ledger
from svfit_diffusion.planning.methods import Method
from svfit_diffusion.planning.quantised import bytes_of, dense_bytes, model_bytes, quantised_bytes
from svfit_diffusion.training.batches import Batch
from svfit_diffusion.training.freezing import PRECISIONS
from svfit_diffusion.training.layers import PlannedLayers
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.sharding import outermost_blocks

_STATE = 3 * 4
"""Bytes of a trained value: itself and two moments of AdamW, in float32."""
_BLOCKS_HELD = 4
"""Blocks on the device at a time with group offload: FSDP2 has the one that runs and the buffer it
came in, and the next one as it comes from the host and in its buffer.
"""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device in a training step.

    What kernels need inside, what the allocator cannot use, and the CUDA context are not counted.

    Attributes:
        weights: of the models that the step runs.
        basis: singular vectors.
        state: trained values and the optimizer's moments.
        saved: what the forward pass leaves for the backward pass.
        working: the most that is needed beside all that at one time, gradients among it.
        basis_in_turn: what of `basis` a CPU reads from files while it uses it.
    """

    weights: int
    basis: int
    state: int
    saved: int
    working: int
    basis_in_turn: int = 0

    @property
    def total(self) -> int:
        """All of it, the peak."""
        return self.weights + self.basis + self.state + self.saved + self.working

    @property
    def total_on_cpu(self) -> int:
        """The peak on a CPU."""
        return self.total - self.basis_in_turn


@dataclass(frozen=True)
class StepSetting:
    """What every step is made with.

    Attributes:
        prompt: of all photos.
        noise: what is said about noise.
        precision: `no`, `fp16` or `bf16`; the family's models have it already.
        on_device: components on the device.
        encodes: whether the step encodes its prompts.
        quantization: of the denoiser, or `""`.
        checkpointing: whether activations are computed again.
        group_offload: whether the denoiser's blocks wait in the host's memory.
    """

    prompt: str
    noise: NoiseSettings
    precision: str
    on_device: Sequence[str]
    encodes: bool
    quantization: str = ""
    checkpointing: bool = False
    group_offload: bool = False


def step_memory(
    family: Family,
    setting: StepSetting,
    method: Method,
    layers: PlannedLayers,
    resolution: int,
    batch_size: int,
) -> StepMemory:
    """The memory of a training step of a method.

    Args:
        family: its models are hollow and frozen, and stay as they are.
        setting: what every step is made with.
        method: what is trained.
        layers: those that it trains.
        resolution: side of the images in pixels.
        batch_size: images.

    Raises:
        RuntimeError: a model asks for numbers that hollow tensors do not have.
    """
    with _copies(family.pipe, list(layers)) as copies:
        here = [getattr(family.pipe, name) for name in setting.on_device]
        weights = [t for model in here for t in (*model.parameters(), *model.buffers())]
        put_on = [method(copies[component], own) for component, own in layers.items()]
        trained = [parameter for part in put_on for parameter in part.trained]
        vectors = [tensor for part in put_on for tensor in part.vectors]
        with Hollow() as hollow:
            held = [hollow.counterpart(tensor) for tensor in (*weights, *trained, *vectors)]
            batch = _batch(family, setting, resolution, batch_size)
            batch.latents.requires_grad_(not trained)
            saved, peak = _measured(family, setting, batch, held)
    held_bytes, kept, again = bytes_of(weights), 0, 0
    if setting.quantization:
        model = family.model
        held_bytes += quantised_bytes(model, setting.quantization) - model_bytes(model)
        dense = dense_bytes(model, setting.quantization, checkpointing=setting.checkpointing)
        kept, again = (0, dense) if setting.checkpointing else (dense, 0)
    if setting.group_offload:
        blocks = [model_bytes(block) for block in outermost_blocks(family.model)]
        held_bytes -= max(0, sum(blocks) - _BLOCKS_HELD * max(blocks, default=0))
    return StepMemory(
        weights=held_bytes,
        basis=bytes_of(vectors),
        state=_STATE * sum(parameter.numel() for parameter in trained),
        saved=saved + kept,
        working=peak - saved + again,
        basis_in_turn=bytes_of([tensor for part in put_on for tensor in part.vectors_in_turn]),
    )


@contextlib.contextmanager
def _copies(pipe: Any, components: Sequence[str]) -> Iterator[dict[str, nn.Module]]:
    """Copies of some models, in their place for a while."""
    own = {name: getattr(pipe, name) for name in components}
    copies = {name: copy.deepcopy(model) for name, model in own.items()}
    try:
        for name, model in copies.items():
            setattr(pipe, name, model)
        yield copies
    finally:
        for name, model in own.items():
            setattr(pipe, name, model)


def _batch(family: Family, setting: StepSetting, resolution: int, count: int) -> Batch:
    """Photos without numbers, at a time and under prompts that are real."""
    config, side = family.pipe.vae.config, resolution // int(family.pipe.vae_scale_factor)
    channels = config.get("latent_channels") or config.z_dim
    raw = torch.empty(count, channels, side, side, device="meta")
    latents = family.scale_latents(raw).detach()
    generator = torch.Generator().manual_seed(0)
    _, time = family.noise_process(setting.noise).draw(torch.zeros(1, 1, 1), generator)
    with torch.no_grad():
        conditions = family.encode_prompts([setting.prompt]).select([0] * count)
    sizes = [PhotoSize.whole(resolution, resolution)] * count
    noise = torch.empty_like(latents)
    return Batch(list(range(count)), latents, noise, time.repeat(count), conditions, sizes, None)


def _measured(
    family: Family, setting: StepSetting, batch: Batch, held: Sequence[Tensor]
) -> tuple[int, int]:
    """Bytes beside those held: after the forward pass of a step, and the most of all of it."""
    objective = Objective(family, family.noise_process(setting.noise), [], 0)
    half = PRECISIONS.get(setting.precision)
    with Ledger(held) as ledger:
        with torch.autocast("cpu", half, enabled=half is not None):
            if setting.encodes:
                told = family.encode_prompts([setting.prompt])  # once, as training does
                told = told.select([0] * len(batch.rows))
                batch = dataclasses.replace(batch, conditions=told)
            loss = objective.batch_losses(batch).mean()
        saved = ledger.live
        # Given a tensor instead of an edge, PyTorch would leave `Hollow` for the whole pass.
        edge = torch.autograd.graph.get_gradient_edge(loss)
        torch.autograd.backward(edge, torch.empty_like(loss))
    return saved, ledger.peak
