"""Tiny pipelines of every family that trains, of random weights: `build("flux")`.

Each is made in well under a second, draws 16×16 images or a little more, and is the same for the
same seed. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiny_pipelines import (
    aura_flow,
    flux,
    flux2,
    gemma,
    hidream,
    ideogram4,
    pixart,
    qwen_image,
    stable_diffusion,
    z_image,
)

BUILDERS: dict[str, Callable[[int], Any]] = {
    "sd": stable_diffusion.sd,
    "sd_v": stable_diffusion.sd_v,
    "sdxl": stable_diffusion.sdxl,
    "flux": flux.flux,
    "flux_schnell": flux.flux_schnell,
    "flux_kontext": flux.flux_kontext,
    "sd3": stable_diffusion.sd3,
    "sd3_without_t5": stable_diffusion.sd3_without_t5,
    "qwen_image": qwen_image.qwen_image,
    "z_image": z_image.z_image,
    "flux2": flux2.flux2,
    "flux2_klein": flux2.flux2_klein,
    "sana": gemma.sana,
    "lumina2": gemma.lumina2,
    "pixart_sigma": pixart.pixart_sigma,
    "pixart_alpha": pixart.pixart_alpha,
    "chroma": flux.chroma,
    "ovis_image": flux.ovis_image,
    "hidream": hidream.hidream,
    "krea2": qwen_image.krea2,
    "aura_flow": aura_flow.aura_flow,
    "ideogram4": ideogram4.ideogram4,
}


def build(name: str, seed: int = 0) -> Any:
    """The tiny pipeline of this name, without progress bars."""
    pipe = BUILDERS[name](seed)
    pipe.set_progress_bar_config(disable=True)
    return pipe
