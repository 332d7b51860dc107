"""What an exported file says of itself, for the programs that sort files by it.

safetensors headers hold strings. Keys of ours begin with `svfit.`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.interchange.slots import is_sdxl
from svfit_diffusion.version import __version__

_SD2_TEXT_WIDTH = 1024  # SD 1.x: 768


def header_of(
    pipe: Any, denoiser: Any, metadata: AdapterMetadata, title: str, error: float
) -> dict[str, str]:
    """What a file says of its base, its adapter and itself.

    Args:
        pipe: a pipeline of the base.
        denoiser: of the pipeline.
        metadata: of the adapter.
        title: of the file.
        error: relative error of the whole change.
    """
    own = {"ss_output_name": title, "svfit.error": f"{error:.6g}"}
    return _lora_header(pipe, denoiser) | _adapter_header(metadata, title) | own


def checkpoint_header(
    pipe: Any, denoiser: Any, metadata: AdapterMetadata, title: str
) -> dict[str, str]:
    """What a checkpoint with adapters merged into it says of its architecture and its adapters.

    Args:
        pipe: a pipeline of the base, of a family that A1111 and Forge know.
        denoiser: of the pipeline.
        metadata: of the adapters together.
        title: of the file.
    """
    return _adapter_header(metadata, title) | {
        "modelspec.architecture": _base_names(pipe, denoiser)[1],
        "modelspec.prediction_type": "v" if _predicts_v(pipe) else "epsilon",
    }


def _lora_header(pipe: Any, denoiser: Any) -> dict[str, str]:
    """How A1111 and Forge tell a LoRA's base; nothing for families that they do not know."""
    version, architecture = _base_names(pipe, denoiser)
    if not version:
        return {}
    header = {
        "ss_base_model_version": version,
        "modelspec.architecture": f"{architecture}/lora",
    }
    if version == "flux1":
        header["modelspec.implementation"] = "https://github.com/black-forest-labs/flux"
    elif version != "sd3m":
        header["ss_v2"] = str(version == "sd_v2")
    return header


def _base_names(pipe: Any, denoiser: Any) -> tuple[str, str]:
    """A base model's name in kohya's programs and in ModelSpec; empty for unknown families."""
    kind = type(denoiser).__name__
    if kind == "UNet2DConditionModel":
        if is_sdxl(denoiser):
            return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
        if denoiser.config["cross_attention_dim"] == _SD2_TEXT_WIDTH:
            return "sd_v2", f"stable-diffusion-v2-{'768-v' if _predicts_v(pipe) else '512'}"
        return "sd_v1", "stable-diffusion-v1"
    if kind == "SD3Transformer2DModel":
        return "sd3m", "stable-diffusion-3"
    return ("flux1", "flux-1-dev") if kind == "FluxTransformer2DModel" else ("", "")


def _predicts_v(pipe: Any) -> bool:
    return bool(pipe.scheduler.config.get("prediction_type") == "v_prediction")


def _adapter_header(metadata: AdapterMetadata, title: str) -> dict[str, str]:
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.trigger_phrase": trigger(metadata),
        "svfit.version": __version__,
        "svfit.base_model": metadata.base_model,
        "svfit.base_revision": metadata.base_revision,
        "svfit.instance_prompt": metadata.instance_prompt,
        "svfit.class_prompt": metadata.class_prompt,
    }
    return {key: value for key, value in header.items() if value}


def trigger(metadata: AdapterMetadata) -> str:
    """The words of the instance prompt that the class prompt lacks, such as `sks`; all of them
    where there is no class prompt.
    """
    known = metadata.class_prompt.split()
    words = metadata.instance_prompt.split()
    return " ".join(word for word in words if word not in known) or metadata.instance_prompt


def network_header(rank: int, alpha: int) -> dict[str, str]:
    """What kohya's files say of the network: its largest rank, and every layer's alpha."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
    }


def peft_header(ranks: Mapping[str, int]) -> dict[str, str]:
    """The ranks of a file without alphas, where they differ.

    diffusers before August 2026 takes the first layer's rank for everyone's alpha unless it is
    told. Layers are found by the ends of their paths, so text encoders' go without `text_model.`.

    Args:
        ranks: by `<component>.<module path>`.
    """
    if len(set(ranks.values())) < 2:
        return {}
    settings: dict[str, Any] = {}
    components = dict.fromkeys(name.partition(".")[0] for name in ranks)
    for component in components:
        own = {
            name.partition(".")[2].removeprefix("text_model."): rank
            for name, rank in ranks.items()
            if name.startswith(f"{component}.")
        }
        rank = max(own.values())
        settings |= {
            f"{component}.r": rank,
            f"{component}.lora_alpha": rank,
            f"{component}.target_modules": sorted(own),
            f"{component}.rank_pattern": own,
            f"{component}.alpha_pattern": own,
        }
    return {"lora_adapter_metadata": json.dumps(settings)}
