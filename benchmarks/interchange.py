"""What other programs' files keep of an adapter, and what singular values can say of a LoRA.

python -m benchmarks.interchange

Draws `results/interchange_rank.png`, the error of a LoRA and its size by rank, and
`results/interchange_pictures.jpg`, the same pictures by adapter, LoRA, merged folder and single
file; writes the figures to `results/interchange.json`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageChops

import svfit_diffusion  # noqa: F401  (gives pipelines the adapter methods)
from benchmarks.adapting import lora
from benchmarks.finetune import OtherPhotos, Recipe, train
from benchmarks.report import RESULTS, print_table, write_report
from benchmarks.subjects import read_subject
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.interchange import (
    export_checkpoint,
    export_dense,
    export_lora,
    export_pipeline,
    import_lora,
)
from svfit_diffusion.training.grid import labelled_grid

_SAMPLES = Path(__file__).resolve().parent.parent / "samples"
_TOYBOX = _SAMPLES / "toybox"
_RANKS = (1, 4, 8, 16, 32, 64, 96, 128, 160, 192)
_PROMPTS = ("a photo of sks car on the beach", "a photo of sks car in the snow")
_LORAS = (("blue_car", 8), ("blue_car", 1), ("pug", 8), ("pug", 1), ("teal_robot", 8))
_LORA_RATE = 1e-3


def pipeline(source: Path = _TOYBOX, **arguments: Any) -> Any:
    """A pipeline that draws quietly."""
    pipe = StableDiffusionPipeline.from_pretrained(source, **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rank_rows(name: str, file: Path) -> list[dict[str, Any]]:
    """Error and size of an adapter's LoRA by rank, and of its dense changes."""
    pipe, rows = pipeline(), []
    with tempfile.TemporaryDirectory() as folder:
        for rank in _RANKS:
            written = export_lora(pipe, file, Path(folder) / f"{rank}.safetensors", rank=rank)
            rows.append(
                {"adapter": name, "rank": rank, "error": written.error, "bytes": written.size}
            )
        dense = export_dense(pipe, file, Path(folder) / "dense.safetensors")
    rows.append({"adapter": name, "rank": "dense", "error": dense.error, "bytes": dense.size})
    return [*rows, {"adapter": name, "rank": "adapter", "error": 0.0, "bytes": file.stat().st_size}]


def draw(pipe: Any) -> list[Image.Image]:
    """Two seeds of each prompt."""
    images: list[Image.Image] = []
    for prompt in _PROMPTS:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        called = pipe([prompt] * 2, generator=generators, guidance_scale=2, num_inference_steps=20)
        images += called.images
    return images


def pictures(file: Path) -> dict[str, list[Image.Image]]:
    """The same pictures by every way that an adapter can reach a program."""
    found = {"base": draw(pipeline())}
    pipe = pipeline()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_lora(pipe, file, folder / "lora.safetensors")
        export_pipeline(pipe, {str(file): 1.0}, folder / "merged", dtype=torch.float16)
        single = folder / "single.safetensors"
        export_checkpoint(pipe, {str(file): 1.0}, single, dtype=torch.float16)
        pipe.load_svfit_weights(file)
        found["adapter"] = draw(pipe)
        pipe.unload_svfit_weights()
        pipe.load_lora_weights(folder / "lora.safetensors")
        found["LoRA, exact"] = draw(pipe)
        found["merged folder"] = draw(pipeline(folder / "merged"))
        from_file: Any = StableDiffusionPipeline.from_single_file(
            str(single), config=str(_TOYBOX), scheduler=pipe.scheduler, local_files_only=True
        )
        from_file.set_progress_bar_config(disable=True)
        found["single file"] = draw(from_file)
    return found


def greatest_difference(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> int:
    """Largest difference of two rows of pictures, in levels of 255."""
    pairs = zip(one, other, strict=True)
    return max(int(np.asarray(ImageChops.difference(a, b)).max()) for a, b in pairs)


def share_row(subject: str, rank: int, steps: int) -> dict[str, Any]:
    """Train a LoRA on Toybox, and project it onto the singular directions."""
    pipe = pipeline()
    models = models_of(pipe)
    for model in models.values():
        model.requires_grad_(False)
    adapted = lora(rank)(models, steps)
    for _ in train(
        pipe,
        adapted,
        read_subject(_SAMPLES / "subjects" / subject),
        OtherPhotos(),
        Recipe(steps),
        _LORA_RATE,
        0,
    ):
        pass
    with tempfile.TemporaryDirectory() as folder:
        adapted.save(Path(folder))
        (file,) = Path(folder).iterdir()
        found = import_lora(pipeline(), file)
    shares = sorted(found.shares.values())
    return {
        "subject": subject,
        "LoRA rank": rank,
        "share": found.share,
        "smallest": shares[0],
        "median": shares[len(shares) // 2],
        "largest": shares[-1],
    }


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Error and size by rank."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in dict.fromkeys(row["adapter"] for row in rows):
        own = [row for row in rows if row["adapter"] == name and isinstance(row["rank"], int)]
        ranks = [row["rank"] for row in own]
        left.plot(ranks, [row["error"] for row in own], marker="o", label=name)
        right.plot(ranks, [row["bytes"] / 1e6 for row in own], marker="o", label=name)
        for kind, style in (("dense", "--"), ("adapter", ":")):
            size = next(r["bytes"] for r in rows if r["adapter"] == name and r["rank"] == kind)
            right.axhline(size / 1e6, linestyle=style, color="grey", label=f"{name}, {kind}")
    left.set(xlabel="rank of the LoRA", ylabel="error of the change", ylim=(0, 1))
    right.set(xlabel="rank of the LoRA", ylabel="file in MB")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="training steps of each LoRA")
    options = parser.parse_args()
    files = {path.parent.name: path for path in (_SAMPLES / "adapters").glob(f"*/{WEIGHTS_NAME}")}
    ranks = [row for name, file in sorted(files.items()) for row in rank_rows(name, file)]
    plot(ranks, RESULTS / "interchange_rank.png")
    found = pictures(files["blue_car"])
    labelled_grid(list(found.values()), list(found), [], tile=160).save(
        RESULTS / "interchange_pictures.jpg", quality=90
    )
    differences = [
        {"way": name, "levels of 255": greatest_difference(found["adapter"], own)}
        for name, own in found.items()
    ]
    shares = [share_row(subject, rank, options.steps) for subject, rank in _LORAS]
    for rows in (ranks, differences, shares):
        print_table(rows, list(rows[0]))
    print(write_report("interchange", ranks, pictures=differences, shares=shares))


if __name__ == "__main__":
    main()
