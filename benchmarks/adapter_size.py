"""Trained values and file size of SVFit against LoRA of rank 8 on the same projections.

    python -m benchmarks.adapter_size [--text_encoder]

The models have the shapes of Stable Diffusion 1.5 and random weights. SVFit trains every singular
value of the attention projections. Both adapters are written by what users write them with: this
package, and diffusers with PEFT. Injecting is timed with an empty basis cache and a full one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn

from benchmarks.architectures import sd15_models
from benchmarks.report import Row, print_table, write_report
from svfit_diffusion.adapters.components import collect_adapter
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.inject import eject, inject
from svfit_diffusion.files.adapter import write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata, package_versions

REQUIRED_RATIO = 16
LORA_RANK = 8
_LORA_TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
_NAME = "subject"


def measure_svfit(models: dict[str, nn.Module], folder: Path) -> Row:
    """Inject twice, with an empty cache and a full one, and write the adapter."""
    seconds = []
    for _ in range(2):
        for model in models.values():
            eject(model)
        start = time.perf_counter()
        injections = {
            component: inject(model, SVFitConfig(), _NAME) for component, model in models.items()
        }
        seconds.append(time.perf_counter() - start)
    for injection in injections.values():
        for _, delta in injection.sigma_parameters(_NAME):
            nn.init.normal_(delta)  # a file keeps no zeros
    metadata = AdapterMetadata(
        base_model="stable-diffusion-v1-5/stable-diffusion-v1-5",
        fingerprints={
            component: injection.fingerprint(_NAME) for component, injection in injections.items()
        },
        rank=dict.fromkeys(models, "1.0"),
        target=dict.fromkeys(models, "attention"),
        instance_prompt="a photo of sks dog",
        versions=package_versions(),
    )
    path = folder / "svfit.safetensors"
    write_adapter(path, collect_adapter(models, _NAME, metadata))
    trained = sum(trainable_values(model) for model in models.values())
    trained += sum(
        parameter.numel()
        for injection in injections.values()
        for _, parameter in injection.sigma_parameters(_NAME)
    )
    for model in models.values():
        eject(model)
    return {
        "method": "SVFit, full rank",
        "trained_values": trained,
        "file_bytes": path.stat().st_size,
        "inject_seconds_cold": seconds[0],
        "inject_seconds_cached": seconds[1],
    }


def measure_lora(models: dict[str, nn.Module], folder: Path) -> Row:
    """Add PEFT's LoRA as diffusers does, and write it as diffusers does."""
    start = time.perf_counter()
    layers: dict[str, dict[str, Tensor]] = {}
    for component, model in models.items():
        config = LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=_LORA_TARGETS[component]
        )
        inject_adapter_in_model(config, model)
        layers[component] = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    seconds = time.perf_counter() - start
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers.get("text_encoder"),
        weight_name="lora.safetensors",
    )
    return {
        "method": f"LoRA, rank {LORA_RANK} (PEFT)",
        "trained_values": sum(trainable_values(model) for model in models.values()),
        "file_bytes": (folder / "lora.safetensors").stat().st_size,
        "inject_seconds_cold": seconds,
    }


def trainable_values(model: nn.Module) -> int:
    """Number of a model's own values that training would change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def main() -> None:
    """Measure, print, write; fail if the ratio is not met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text_encoder", action="store_true", help="the text encoder as well")
    options = parser.parse_args()
    models = sd15_models(options.text_encoder)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with patch.dict(os.environ, SVFIT_CACHE=str(folder / "bases")):
            svfit = measure_svfit(models, folder)
        lora = measure_lora(models, folder)
    ratios = {key: lora[key] / svfit[key] for key in ("trained_values", "file_bytes")}
    for row in (svfit, lora):
        row["models"] = ", ".join(models)
    print_table(
        [svfit, lora],
        ["method", "trained_values", "file_bytes", "inject_seconds_cold", "inject_seconds_cached"],
    )
    print("LoRA / SVFit:", ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()))
    name = "adapter_size_text_encoder" if options.text_encoder else "adapter_size"
    print(write_report(name, [svfit, lora], lora_over_svfit=ratios, required=REQUIRED_RATIO))
    if min(ratios.values()) < REQUIRED_RATIO:
        raise SystemExit(f"SVFit should be at least {REQUIRED_RATIO} times smaller")


if __name__ == "__main__":
    main()
