"""Measured figures of a finished pipeline: reconstruction, speed, and what a probe recognises."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn

from .captions import with_article
from .concepts import CONCEPTS
from .export import sample
from .features import EfficientNetLite0
from .pool import Pool
from .scenes import SCENES
from .vae import HELD_BACK, psnr, to_tensor

_PROBE_IMAGES = 4000
_PROBE_EPOCHS = 300
_PER_CONCEPT = 5


@dataclass(frozen=True)
class Metrics:
    """Accuracies are shares in [0, 1]; "real" is held back and reconstructed."""

    vae_psnr: float
    object_accuracy_real: float
    scene_accuracy_real: float
    object_accuracy_generated: float
    scene_accuracy_generated: float
    object_accuracy_bare_prompt: float
    generated_images: int
    seconds_one_image: float
    seconds_per_image_in_batch: float
    per_concept: dict[str, float]


@torch.inference_mode()
def probe_features(network: EfficientNetLite0, images: np.ndarray) -> Tensor:
    """Probe features of 8-bit pictures, enlarged twice for the network's receptive fields."""
    parts = [
        network(F.interpolate(to_tensor(images[start : start + 100]), scale_factor=2.0))
        for start in range(0, len(images), 100)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Pass 8-bit pictures through the autoencoder, so that a probe sees its softness."""
    parts = []
    for start in range(0, len(images), 32):
        latents = vae.encode(to_tensor(images[start : start + 32])).latent_dist.mean
        output = vae.decode(latents).sample.clamp(-1, 1)
        parts.append(((output + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def fit_probe(features: Tensor, labels: Tensor, classes: int) -> nn.Module:
    """A linear classifier on standardised features."""
    mean, std = features.mean(0), features.std(0) + 1e-3
    linear = nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=3e-3, weight_decay=0.3)
    inputs = ((features - mean) / std).clone()
    for _ in range(_PROBE_EPOCHS):
        loss = F.cross_entropy(linear(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        linear.weight.div_(std)
        linear.bias.sub_(linear.weight @ mean)
    return linear


@torch.inference_mode()
def _hits(probe: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    return (probe(features).argmax(1) == labels).float()


def evaluate(pool: Pool, pipeline: StableDiffusionPipeline, seed: int) -> Metrics:
    """Fit the probe on reconstructed real pictures and read generated ones with it."""
    torch.manual_seed(seed)
    network = EfficientNetLite0()
    concepts = [concept.name for concept in CONCEPTS]
    scenes = [scene.name for scene in SCENES]
    chosen = [*range(_PROBE_IMAGES), *range(len(pool.images) - HELD_BACK, len(pool.images))]
    features = probe_features(network, reconstruct(pipeline.vae, pool.images[chosen]))
    objects = torch.tensor([concepts.index(pool.labels[index][0]) for index in chosen])
    places = torch.tensor([scenes.index(pool.labels[index][2]) for index in chosen])
    object_probe = fit_probe(features[:_PROBE_IMAGES], objects[:_PROBE_IMAGES], len(concepts))
    scene_probe = fit_probe(features[:_PROBE_IMAGES], places[:_PROBE_IMAGES], len(scenes))

    wanted = torch.arange(len(concepts)).repeat(_PER_CONCEPT)
    where = (torch.arange(len(wanted)) * 7 + wanted) % len(scenes)
    bare = [f"a photo of {with_article(name)}" for name in concepts]
    placed = [
        f"{bare[concept]} {SCENES[scene].phrases[0]}"
        for concept, scene in zip(wanted.tolist(), where.tolist(), strict=True)
    ]
    start = time.perf_counter()
    images = sample(pipeline, placed, seed * 1000)
    per_image = (time.perf_counter() - start) / len(placed)
    start = time.perf_counter()
    sample(pipeline, placed[:1], seed)
    one_image = time.perf_counter() - start
    generated = probe_features(network, np.stack([np.asarray(image) for image in images]))
    plain = probe_features(
        network, np.stack([np.asarray(image) for image in sample(pipeline, bare * 2, seed + 1)])
    )
    object_hits = _hits(object_probe, generated, wanted)
    by_concept = object_hits.view(_PER_CONCEPT, -1).mean(0)
    held_features = features[_PROBE_IMAGES:]
    return Metrics(
        vae_psnr=psnr(pipeline.vae, pool, torch.device("cpu")),
        object_accuracy_real=float(
            _hits(object_probe, held_features, objects[_PROBE_IMAGES:]).mean()
        ),
        scene_accuracy_real=float(_hits(scene_probe, held_features, places[_PROBE_IMAGES:]).mean()),
        object_accuracy_generated=float(object_hits.mean()),
        scene_accuracy_generated=float(_hits(scene_probe, generated, where).mean()),
        object_accuracy_bare_prompt=float(
            _hits(object_probe, plain, torch.arange(len(concepts)).repeat(2)).mean()
        ),
        generated_images=len(placed),
        seconds_one_image=one_image,
        seconds_per_image_in_batch=per_image,
        per_concept={
            name: round(share, 2) for name, share in zip(concepts, by_concept.tolist(), strict=True)
        },
    )


def write_metrics(pool: Pool, folder: Path, seed: int) -> None:
    """Measure the pipeline in a folder and leave ``metrics.json`` beside it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    metrics = asdict(evaluate(pool, pipeline, seed))
    metrics = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in metrics.items()
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2), flush=True)
