"""The documentation's figures of what singular values carry, after the SVFit paper's.

python -m benchmarks.figures

Figure 1 of the paper on a photo and on a weight of the base, the spectra of its attention layers
and how much energy they cover, what a weight does in the subspaces of figure 3, and which singular
values the sample adapter has shifted. The pictures go to `docs/assets`, what they say in numbers to
`results/figures.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DiffusionPipeline
from matplotlib import cbook
from PIL import Image

from app.inspection import (
    LayerShift,
    as_picture,
    image_bases,
    layer_shifts,
    split,
    weight_basis,
)
from benchmarks.report import ROOT, Row, write_report
from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.rank import select_rank

OUTPUT = ROOT / "docs" / "assets"
_PHOTO = "grace_hopper.jpg"
"""Of the U.S. Navy, in the public domain; it comes with matplotlib."""
_SIDE = 256  # pixels, as in the paper
_WEIGHT = ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_v")
_ENERGY = 0.9
_DRAWS = 2000
_DPI = 110


def photo() -> Image.Image:
    """A photo of 256 × 256 pixels."""
    with cbook.get_sample_data(_PHOTO) as file:
        whole = Image.open(file).convert("RGB")
    side = min(whole.size)
    return whole.crop((0, 0, side, side)).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def rebuilt(bases: Sequence[Basis], ranks: Sequence[int], title: str) -> tuple[Any, list[Row]]:
    """Figure 1: matrices from their r largest singular values, and from their r smallest."""
    figure, panels = plt.subplots(2, len(ranks), figsize=(2 * len(ranks), 4.6))
    rows = []
    for column, rank in enumerate(ranks):
        parts = split(bases, rank)
        trailing = parts.trailing if rank == parts.full_rank else _contrasted(parts.trailing)
        pictures = (_picture(parts.leading), _picture(trailing))
        shares = (parts.leading_share, parts.trailing_share)
        for panel, picture, share in zip(panels[:, column], pictures, shares, strict=True):
            panel.imshow(picture, cmap="gray")
            panel.set_xlabel(f"{share**2:.2%} of the energy", fontsize=8)
            panel.set(xticks=[], yticks=[])
        panels[0, column].set_title(f"r = {rank}", fontsize=10)
        rows.append(
            {
                "figure": title,
                "rank": rank,
                "energy_of_largest": shares[0] ** 2,
                "energy_of_smallest": shares[1] ** 2,
            }
        )
    panels[0, 0].set_ylabel("r largest")
    panels[1, 0].set_ylabel("r smallest\n(contrast raised)")
    figure.tight_layout()
    return figure, rows


def spectra(shifts: Sequence[LayerShift]) -> tuple[Any, list[Row]]:
    """Singular values of every layer, and the energy that the largest cover."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    shares: dict[float, list[float]] = {0.9: [], 0.99: []}
    for shift in shifts:
        where = np.arange(1, shift.sigma.size + 1) / shift.count
        colour = "tab:orange" if shift.component.startswith("text_encoder") else "tab:blue"
        left.semilogy(where, shift.sigma / shift.sigma[0], color=colour, lw=0.6, alpha=0.6)
        energy = shift.cumulative_energy
        right.plot(where, energy, color=colour, lw=0.6, alpha=0.6)
        for share, found in shares.items():
            found.append((np.searchsorted(energy, share) + 1) / shift.count)
    for share in shares:
        right.axhline(share, color="gray", ls=":", lw=1)
        right.text(1, share, f"{share:.0%} ", ha="right", va="bottom", fontsize=8, color="gray")
    left.set(ylabel="σ, relative to the largest", ylim=(1e-3, 1.2))
    right.set_ylabel("energy covered")
    for panel in (left, right):
        panel.set_xlabel("share of the singular values, the largest first")
        panel.grid(alpha=0.3)
    for name, colour in (("UNet", "tab:blue"), ("text encoder", "tab:orange")):
        left.plot([], [], color=colour, label=name)
    left.legend()
    figure.tight_layout()
    rows = [
        {"figure": "spectra", "energy": share, "mean_share_of_values": float(np.mean(found))}
        for share, found in shares.items()
    ]
    return figure, rows


def subspaces(basis: Basis, energy: float) -> tuple[Any, list[Row]]:
    """Figure 3: how much W and Wᵀ stretch vectors from the subspaces on both sides of rank r."""
    rank = select_rank(basis.sigma, energy)
    u, v = basis.u.double(), basis.v.double()
    weight = (u.T * basis.sigma.double()) @ v
    torch.manual_seed(0)
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    rows = []
    sides = (
        (panels[0], "W x", v, weight, ("x from V_r, the range of Wᵀ", "x from V_e")),
        (panels[1], "Wᵀ y", u, weight.T, ("y from U_r, the range of W", "y from U_e")),
    )
    for panel, product, vectors, matrix, labels in sides:
        for part, label in zip((vectors[:rank], vectors[rank:]), labels, strict=True):
            drawn = torch.randn(_DRAWS, len(part), dtype=torch.float64) @ part
            drawn /= drawn.norm(dim=1, keepdim=True)
            stretch = (drawn @ matrix.T).norm(dim=1)
            panel.hist(stretch.numpy(), bins=40, alpha=0.7, label=label)
            rows.append({"figure": "subspaces", "of": label, "mean": float(stretch.mean())})
        panel.set_xlabel(f"length of {product} for random vectors of length 1")
        panel.legend()
    panels[0].set_ylabel(f"of {_DRAWS:,} vectors")
    figure.suptitle(f"r = {rank} of {basis.rank}, which cover {energy:.0%} of the energy")
    figure.tight_layout()
    return figure, [row | {"rank": rank, "full_rank": basis.rank} for row in rows]


def shifted(shifts: Sequence[LayerShift]) -> tuple[Any, list[Row]]:
    """Which singular values training has changed, and by how much of themselves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    tenths = np.linspace(0, 1, 11)
    moved = np.zeros(10)
    for name, colour in (("unet", "tab:blue"), ("text_encoder", "tab:orange")):
        own = [shift for shift in shifts if shift.component == name]
        sigma = np.concatenate([shift.sigma[: shift.delta.size] for shift in own])
        delta = np.concatenate([shift.delta for shift in own])
        left.plot(sigma, delta, ".", ms=2, alpha=0.5, color=colour, label=name.replace("_", " "))
    for shift in shifts:
        where = (np.arange(shift.delta.size) + 0.5) / shift.sigma.size
        moved += np.histogram(where, tenths, weights=shift.delta.astype(np.float64) ** 2)[0]
    moved /= moved.sum()
    left.set(xlabel="σ before training", ylabel="shift δ", xscale="log", xlim=(1e-2, None))
    left.axhline(0, color="gray", lw=0.5)
    left.legend(markerscale=4)
    right.bar(tenths[:-1] + 0.05, moved, width=0.09, color="tab:gray")
    right.set_xlabel("share of the singular values, the largest first")
    right.set_ylabel("share of the change ‖δ‖²")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.tight_layout()
    rows = [
        {"figure": "shifts", "tenth": index + 1, "share_of_change": float(share)}
        for index, share in enumerate(moved)
    ]
    return figure, rows


def _picture(channels: np.ndarray) -> Any:
    """A photo's channels as a picture; a weight as grey numbers."""
    return channels[0] if len(channels) == 1 else as_picture(channels)


def _contrasted(channels: np.ndarray) -> np.ndarray:
    """Channels around zero as channels around middle grey, three standard deviations to black."""
    contrasted: np.ndarray = 0.5 + channels / (6 * channels.std())
    return contrasted


def main() -> None:
    """Draw all figures, and write what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=ROOT / "samples" / "toybox")
    parser.add_argument("--adapter", type=Path, default=ROOT / "samples" / "adapters" / "blue_car")
    parser.add_argument("--layer", nargs=2, default=_WEIGHT, metavar=("COMPONENT", "PATH"))
    arguments = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(arguments.base)
    shifts = layer_shifts(pipe, read_adapter(arguments.adapter / WEIGHTS_NAME))
    basis = weight_basis(pipe, *arguments.layer)
    channels = image_bases(photo())
    weight_ranks = [basis.rank >> halvings for halvings in (5, 4, 3, 2, 1, 0)]
    drawn = {
        "figure1_photo.jpg": rebuilt(channels, (8, 16, 32, 64, 128, 256), "photo"),
        "figure1_weight.jpg": rebuilt([basis], weight_ranks, "weight"),
        "spectra.png": spectra(shifts),
        "subspaces.png": subspaces(basis, _ENERGY),
        "shifts.png": shifted(shifts),
    }
    for name, (figure, _) in drawn.items():
        figure.savefig(OUTPUT / name, dpi=_DPI)
    rows = [row for _, found in drawn.values() for row in found]
    print(write_report("figures", rows, layer=".".join(arguments.layer)))


if __name__ == "__main__":
    main()
