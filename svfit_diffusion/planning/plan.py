"""What training an adapter on a base takes, from the base's configuration alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from svfit_diffusion.families import Family, family_of
from svfit_diffusion.planning import sizes
from svfit_diffusion.planning.duration import first_load_seconds
from svfit_diffusion.planning.hollow import recompute_unchecked
from svfit_diffusion.planning.methods import (
    Method,
    can_lora,
    frozen,
    lora,
    svfit,
    svfit_on_quantised,
)
from svfit_diffusion.planning.quantised import model_bytes, quantised_bytes
from svfit_diffusion.planning.step import StepMemory, StepSetting, step_memory
from svfit_diffusion.spectrum.rank import parse_rank, triplets_known
from svfit_diffusion.training import checks
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.freezing import PRECISIONS, freeze
from svfit_diffusion.training.layers import (
    PlannedLayers,
    layers_to_train,
    models_to_train,
    rank_to_train,
    value_count,
)
from svfit_diffusion.training.own_word import new_word
from svfit_diffusion.training.quantization import quantization_named
from svfit_diffusion.training.skeleton import skeleton

LORA_RANKS = (8, 16)
_ANY_PROMPT = "a photo of sks dog"


@dataclass(frozen=True)
class LoRASize:
    """A LoRA on the same layers.

    Attributes:
        values: that it trains.
        file_bytes: as diffusers writes it, in float32.
    """

    values: int
    file_bytes: int


@dataclass(frozen=True)
class PlannedStep:
    """A training step.

    Attributes:
        resolution: side of the images in pixels.
        batch_size: images.
        memory: by method: `frozen` trains nothing, `SVFit`, and `LoRA r=…` if PEFT is installed.
        unknown: why there is none, or `""`.
    """

    resolution: int
    batch_size: int
    memory: dict[str, StepMemory]
    unknown: str = ""


@dataclass(frozen=True)
class Plan:
    """What training takes.

    Attributes:
        base: folder or hub id of the base.
        pipeline: its class.
        weights: numbers in each of its models.
        layers: how many are trained, per component.
        rank: as asked for, or what is trained if nothing is asked for.
        at_most: whether values, sizes and memory are upper bounds: how many values a share of the
            energy means, the weights alone tell.
        values: trained singular values.
        budget: how many of them are kept in the end, if not all.
        adapter_bytes: of the adapter's file.
        basis_bytes: of all bases in the cache, of this rank.
        first_load_seconds: an estimate of how long they take, once per base.
        cores: on which.
        lora: by rank.
        precision: of the frozen base: `no`, `fp16` or `bf16`.
        quantization: of its denoiser, or `""`.
        gradient_checkpointing: whether activations are computed again.
        group_offload: whether its blocks wait in the host's memory.
        whole_bytes: weights of all models in that precision: what the host holds once they are
            loaded, and the device while class images and validation are drawn.
        largest_bytes: those of the largest model: the same on the device with `offload`.
        encoders_bytes: those of the text encoders, on the device while prompts are encoded.
        steps: for each resolution and batch size.
    """

    base: str
    pipeline: str
    weights: dict[str, int]
    layers: dict[str, int]
    rank: str
    at_most: bool
    values: int
    budget: int | None
    adapter_bytes: int
    basis_bytes: int
    first_load_seconds: float
    cores: int
    lora: dict[int, LoRASize]
    precision: str
    quantization: str
    gradient_checkpointing: bool
    group_offload: bool
    whole_bytes: int
    largest_bytes: int
    encoders_bytes: int
    steps: list[PlannedStep]

    def facts(self) -> dict[str, Any]:
        """As JSON has it, totals added."""
        facts = dataclasses.asdict(self)
        for told, step in zip(facts["steps"], self.steps, strict=True):
            for name, memory in step.memory.items():
                told["memory"][name]["total"] = memory.total
                told["memory"][name]["total_on_cpu"] = memory.total_on_cpu
        return facts


def make_plan(
    config: TrainingConfig,
    resolutions: Sequence[int] = (),
    batch_sizes: Sequence[int] = (),
    *,
    show_progress: bool = True,
) -> Plan:
    """What training takes with these settings; no weights are read.

    Args:
        config: settings of the training; what concerns photos and steps plays no role.
        resolutions: sides of images for which memory is told; the configured one by default.
        batch_sizes: images in a step; the configured number by default.
        show_progress: show a progress bar.

    Raises:
        ConfigError: the base is no pipeline that can be trained, or settings do not fit it.
        TargetError: a target matches nothing.
    """
    family = family_of(skeleton(config.source))
    precision = config.mixed_precision or "no"
    encoders = checks.check_fit(family, config, precision)
    wanted = resolutions or (config.resolution,)
    sides = [checks.training_resolution(family, side) for side in wanted]
    parts = family.pipe.components
    models = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    layers = layers_to_train(family, encoders, config)
    rank = rank_to_train(config.rank, models_to_train(family, encoders), config.target)
    identifier = config.train_identifier
    words = {} if identifier is None else {family.denoiser: new_word(family, identifier)[0]}
    counts = {name: _count(model) for name, model in models.items()}
    cores = torch.get_num_threads()
    quantization = config.quantization or ""
    if config.bnb_quantization_config_path:
        quantization = quantization_named(Path(config.bnb_quantization_config_path))
    freeze(family, encoders, precision, config.gradient_checkpointing)
    if config.gradient_checkpointing:
        recompute_unchecked(family.model, [models[name] for name in encoders])
    held = {name: model_bytes(model) for name, model in models.items()}
    if quantization:
        held[family.denoiser] = quantised_bytes(family.model, quantization)
    return Plan(
        base=config.pretrained_model_name_or_path,
        pipeline=type(family.pipe).__name__,
        weights=counts,
        layers={component: len(own) for component, own in layers.items()},
        rank=rank,
        at_most=triplets_known(parse_rank(rank)) == 0,
        values=value_count(layers),
        budget=config.budget,
        adapter_bytes=sizes.adapter_bytes(config, rank, layers, words),
        basis_bytes=sizes.bases_bytes(layers),
        first_load_seconds=first_load_seconds(layers, cores),
        cores=cores,
        lora={
            rank: LoRASize(sizes.lora_values(layers, rank), sizes.lora_bytes(layers, rank))
            for rank in LORA_RANKS
        },
        precision=precision,
        quantization=quantization,
        gradient_checkpointing=config.gradient_checkpointing,
        group_offload=config.group_offload,
        whole_bytes=sum(held.values()),
        largest_bytes=max(held.values()),
        encoders_bytes=sum(held[name] for name in family.encoders),
        steps=_steps(
            family,
            _step_setting(config, family, encoders, quantization),
            layers,
            [(side, size) for side in sides for size in batch_sizes or [config.train_batch_size]],
            show_progress=show_progress,
        ),
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _step_setting(
    config: TrainingConfig, family: Family, trained_encoders: Sequence[str], quantization: str
) -> StepSetting:
    """What a step has on its device, and whether it encodes prompts, as training has it."""
    encodes = bool(trained_encoders) or not config.pre_compute_text_embeddings
    on_device = [family.denoiser]
    if not config.cache_latents:
        on_device.append("vae")
    if encodes:
        on_device.extend(family.encoders)
    return StepSetting(
        config.instance_prompt or _ANY_PROMPT,
        config.noise,
        config.mixed_precision or "no",
        on_device,
        encodes,
        quantization,
        config.gradient_checkpointing,
        config.group_offload,
    )


def _methods(setting: StepSetting) -> dict[str, Method]:
    loras = {f"LoRA r={rank}": lora(rank) for rank in LORA_RANKS} if can_lora() else {}
    precise = PRECISIONS.get(setting.precision, torch.float32)
    own: Method = svfit_on_quantised(precise) if setting.quantization else svfit
    return {"frozen": frozen, "SVFit": own, **loras}


def _steps(
    family: Family,
    setting: StepSetting,
    layers: PlannedLayers,
    wanted: Sequence[tuple[int, int]],
    *,
    show_progress: bool,
) -> list[PlannedStep]:
    methods = _methods(setting)
    steps = []
    with tqdm(
        total=len(wanted) * len(methods), desc="Steps without weights", disable=not show_progress
    ) as bar:
        for resolution, batch_size in wanted:
            memory: dict[str, StepMemory] = {}
            unknown = ""
            try:
                for name, method in methods.items():
                    memory[name] = step_memory(
                        family, setting, method, layers, resolution, batch_size
                    )
                    bar.update()
            except (RuntimeError, IndexError) as error:
                # PyTorch's: a model asks for values that only its weights have.
                memory, unknown = {}, str(error).splitlines()[0]
            steps.append(PlannedStep(resolution, batch_size, memory, unknown))
    return steps
