"""What a training run says of its adapter."""

from __future__ import annotations

from collections.abc import Mapping

from svfit_diffusion.files.metadata import AdapterMetadata, package_versions
from svfit_diffusion.training.config import TrainingConfig


def adapter_metadata(
    config: TrainingConfig,
    rank: str,
    fingerprints: Mapping[str, str],
    quantization: Mapping[str, str],
    seed: int,
    instance_prompt: str,
) -> AdapterMetadata:
    """The metadata of an adapter.

    Args:
        config: settings of its training.
        rank: of what was trained, as users write it.
        fingerprints: of the base's weights under its layers, per component.
        quantization: of the same weights, of components that are quantised.
        seed: of the run.
        instance_prompt: of the photos.
    """
    return AdapterMetadata(
        base_model=config.pretrained_model_name_or_path,
        base_revision=config.revision or "",
        fingerprints=dict(fingerprints),
        quantization=dict(quantization),
        rank=dict.fromkeys(fingerprints, rank),
        target=dict.fromkeys(fingerprints, " ".join(config.target)),
        instance_prompt=instance_prompt,
        class_prompt=config.class_prompt or "",
        training={**config.binding_settings(), "seed": seed},
        versions=package_versions(),
    )
