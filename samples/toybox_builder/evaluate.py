"""Measured figures of a finished pipeline: reconstruction, speed, and what judges recognise."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from .captions import with_article
from .concepts import CONCEPTS
from .export import SAMPLING, picture_grid, sample
from .judges import Judges, reconstruct
from .pool import Pool
from .scenes import SCENES
from .vae import HELD_BACK, psnr

PROMPT_COUNT = 200
GRID_COUNT = 100
_SEED = 5
_THING_STRIDE = 67
"""Shares no factor with the number of things, so that neighbours in the list are unlike."""

_THINGS = [concept.name for concept in CONCEPTS]
_PLACES = [scene.name for scene in SCENES]


@dataclass(frozen=True)
class Request:
    """A prompt, and what should be recognised in its picture."""

    prompt: str
    thing: str
    scene: str


@dataclass(frozen=True)
class Metrics:
    """Accuracies are shares in [0, 1]; "real" is held back and reconstructed."""

    vae_psnr: float
    things: int
    scenes: int
    thing_accuracy_real: float
    scene_accuracy_real: float
    thing_accuracy_generated: float
    scene_accuracy_generated: float
    generated_images: int
    seconds_one_image: float
    seconds_per_image_in_batch: float
    not_recognised: list[str]


def requests() -> list[Request]:
    """The fixed list of prompts: every thing once, some twice, over all scenes."""
    assert len(CONCEPTS) <= PROMPT_COUNT
    chosen = []
    for index in range(PROMPT_COUNT):
        concept = CONCEPTS[index * _THING_STRIDE % len(CONCEPTS)]
        scene = SCENES[(index + index // len(SCENES)) % len(SCENES)]
        prompt = f"a photo of {with_article(concept.name)} {scene.phrases[0]}"
        chosen.append(Request(prompt, concept.name, scene.name))
    return chosen


def _hits(chances: Tensor, wanted: list[str], names: list[str]) -> Tensor:
    return chances.argmax(1) == torch.tensor([names.index(name) for name in wanted])


def _stacked(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def evaluate(
    pool: Pool, pipeline: DiffusionPipeline, judges: Judges, settings: Mapping[str, Any]
) -> tuple[Metrics, list[Image.Image]]:
    """Read real and generated pictures with the judges; returns the generated ones too."""
    wanted = requests()
    prompts = [request.prompt for request in wanted]
    start = time.perf_counter()
    images = sample(pipeline, prompts, _SEED, settings)
    per_image = (time.perf_counter() - start) / len(images)
    start = time.perf_counter()
    sample(pipeline, prompts[:1], _SEED, settings)
    one_image = time.perf_counter() - start

    real = judges.features(reconstruct(pipeline.vae, pool.images[-HELD_BACK:]))
    labels = pool.labels[-HELD_BACK:]
    generated = judges.features(_stacked(images))
    thing_hits = _hits(judges.thing_chances(generated), [r.thing for r in wanted], _THINGS)
    scene_hits = _hits(judges.scene_chances(generated), [r.scene for r in wanted], _PLACES)
    real_things = _hits(judges.thing_chances(real), [thing for thing, _, _ in labels], _THINGS)
    real_scenes = _hits(judges.scene_chances(real), [scene for _, _, scene in labels], _PLACES)
    missed = {r.thing for r, hit in zip(wanted, thing_hits.tolist(), strict=True) if not hit}
    metrics = Metrics(
        vae_psnr=psnr(pipeline.vae, pool, torch.device("cpu")),
        things=len(CONCEPTS),
        scenes=len(SCENES),
        thing_accuracy_real=float(real_things.float().mean()),
        scene_accuracy_real=float(real_scenes.float().mean()),
        thing_accuracy_generated=float(thing_hits.float().mean()),
        scene_accuracy_generated=float(scene_hits.float().mean()),
        generated_images=len(images),
        seconds_one_image=one_image,
        seconds_per_image_in_batch=per_image,
        not_recognised=sorted(missed),
    )
    return metrics, images


def write_metrics(
    pool: Pool, folder: Path, judges_folder: Path, settings: Mapping[str, Any] = SAMPLING
) -> None:
    """Measure the pipeline in a folder; leave ``metrics.json``, ``prompts.json``, ``grid.jpg``."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    judges = Judges.load(judges_folder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    metrics, images = evaluate(pool, pipeline, judges, settings)
    rounded = {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in asdict(metrics).items()
    }
    (folder / "metrics.json").write_text(json.dumps(rounded, indent=2) + "\n")
    listed = [asdict(request) for request in requests()]
    (folder / "prompts.json").write_text(json.dumps(listed, indent=1) + "\n")
    picture_grid(images[:GRID_COUNT], columns=10).save(folder / "grid.jpg", quality=92)
    print(json.dumps(rounded, indent=2), flush=True)
