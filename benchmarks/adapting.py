"""Fine-tuning methods behind one interface: a fresh pipeline's models made trainable.

All adapt the attention projections of the denoiser and of the text encoder, except where a
method's own paper says otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from svfit_diffusion.adapters.components import collect_adapter, without_idle_layers
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.inject import inject
from svfit_diffusion.files.adapter import write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.rank import Rank
from svfit_diffusion.training.budget import Pruner

_NAME = "subject"
ATTENTION = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "transformer": [
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ],
}
"""The attention projections' names, by component."""

Models = dict[str, nn.Module]
"""The models that learn, by component of the pipeline."""

Adapt = Callable[[Models, int], "Adapted"]
"""Makes frozen models trainable; the second argument is the number of steps to come."""


def _leave() -> None:
    """The weights are what was learned."""


@dataclass(frozen=True)
class Adapted:
    """A pipeline's models made trainable.

    Attributes:
        parameters: what is trained.
        save: writes what was learned into a folder, as its users would.
        merge: puts what was learned into the models' own weights; training is over then.
        pruner: prunes the parameters while they are trained, if the method does.
    """

    parameters: list[nn.Parameter]
    save: Callable[[Path], None]
    merge: Callable[[], None] = _leave
    pruner: Pruner | None = None

    def file_bytes(self) -> int:
        """Size of what `save` writes."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            return sum(path.stat().st_size for path in Path(folder).iterdir())

    def value_count(self) -> int:
        """Number of values that were trained and kept."""
        if self.pruner is not None:
            return int(self.pruner.live.sum())
        return sum(parameter.numel() for parameter in self.parameters)


def svfit(rank: Rank = 1.0, target: str = "attention", budget: int | None = None) -> Adapt:
    """Train δ, the shift of the singular values."""

    def adapt(models: Models, steps: int) -> Adapted:
        config = SVFitConfig(rank=rank, target=target)
        injections = {
            name: inject(model, config, _NAME, show_progress=False)
            for name, model in models.items()
        }
        for injection in injections.values():
            injection.set_trainable(_NAME, True)
        parameters = [p for i in injections.values() for _, p in i.sigma_parameters(_NAME)]
        metadata = AdapterMetadata(
            fingerprints={name: i.fingerprint(_NAME) for name, i in injections.items()},
            rank=dict.fromkeys(models, str(rank)),
            target=dict.fromkeys(models, target),
        )

        pruner = Pruner(parameters, budget, steps) if budget else None

        def save(folder: Path) -> None:
            adapter = collect_adapter(models, _NAME, metadata)
            if pruner is not None:
                adapter = without_idle_layers(models, _NAME, adapter)
            write_adapter(folder / "pytorch_svfit_weights.safetensors", adapter)

        def merge() -> None:
            for injection in injections.values():
                injection.set_trainable(_NAME, False)

        return Adapted(parameters, save, merge, pruner)

    return adapt


def peft(configure: Callable[[str], PeftConfig]) -> Adapt:
    """Train what PEFT adds for a configuration, one per component."""

    def adapt(models: Models, steps: int) -> Adapted:
        # It changes the models in place; what is around them is for saving.
        wrapped = {
            component: get_peft_model(model, configure(component))
            for component, model in models.items()
        }

        def save(folder: Path) -> None:
            tensors = {
                f"{component}.{key}": value.contiguous()
                for component, model in wrapped.items()
                for key, value in get_peft_model_state_dict(model).items()
            }
            safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")

        def merge() -> None:
            for model in models.values():
                for layer in model.modules():
                    if isinstance(layer, BaseTunerLayer):
                        layer.merge()

        return Adapted(_trainable(wrapped.values()), save, merge)

    return adapt


def lora(rank: int, init: bool | str = "gaussian") -> Adapt:
    """PEFT's LoRA on the attention projections, in one of its initialisations."""
    return peft(
        lambda component: LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights=init, target_modules=ATTENTION[component]
        )
    )


def full(models: Models, steps: int) -> Adapted:
    """Train every weight."""
    for model in models.values():
        model.requires_grad_(True)

    def save(folder: Path) -> None:
        for component, model in models.items():
            path = folder / f"{component}.safetensors"
            safetensors.torch.save_model(model, str(path))

    return Adapted(_trainable(models.values()), save)


def nothing(models: Models, steps: int) -> Adapted:
    """Train nothing: the base."""
    return Adapted([], lambda folder: None)


def _trainable(models: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [p for model in models for p in model.parameters() if p.requires_grad]
