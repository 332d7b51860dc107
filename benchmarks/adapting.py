"""Fine-tuning methods behind one interface: a fresh pipeline's models made trainable.

All adapt the attention projections of the denoiser and of the text encoder, except where a
method's own paper says otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from benchmarks.rules import AfterStep, Rule, Vectors
from svfit_diffusion.adapters.components import collect_adapter, without_idle_layers
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.adapters.targets import select_targets
from svfit_diffusion.files.adapter import write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.rank import Rank
from svfit_diffusion.training.subject import Subject

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


def _go_on(step: int) -> None:
    """Steps are the optimizer's alone."""


def _as_strong(strength: float) -> None:
    """All that was learned is in the weights."""


@dataclass(frozen=True)
class Own:
    """What training offers to SVFit alone.

    Attributes:
        subject: the adapter in training.
        vectors: what is trained of it.
        wants_needs: whether `vectors.needs` are to be filled.
        by_noise: whether noisy examples train the leading part of each spectrum alone.
        base_prior: weight of the loss that keeps the class as the base says.
        stratified: whether the times of the examples are spread evenly.
    """

    subject: Subject
    vectors: Vectors
    wants_needs: bool = False
    by_noise: bool = False
    base_prior: float = 0.0
    stratified: bool = False


@dataclass(frozen=True)
class Adapted:
    """A pipeline's models made trainable.

    Attributes:
        parameters: what is trained.
        save: writes what was learned into a folder, as its users would.
        merge: puts what was learned into the models' own weights; training is over then.
        after_step: what the method does after each optimizer step.
        own: if it is SVFit.
        attached: while what is beside the models' weights acts in the pipeline that they are in.
        strengthen: lets that act at a strength; weights are on a line of their own.
    """

    parameters: list[nn.Parameter]
    save: Callable[[Path], None]
    merge: Callable[[], None] = _leave
    after_step: AfterStep = _go_on
    own: Own | None = None
    attached: Callable[[Any], AbstractContextManager[None]] = nullcontext
    strengthen: Callable[[float], None] = _as_strong

    def file_bytes(self) -> int:
        """Size of what `save` writes."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            return sum(path.stat().st_size for path in Path(folder).iterdir())

    def value_count(self) -> int:
        """Number of values that were trained and kept: none that a rule left at zero."""
        if self.after_step is not _go_on:
            return sum(int(parameter.count_nonzero()) for parameter in self.parameters)
        return sum(parameter.numel() for parameter in self.parameters)


def svfit(
    rank: Rank = 1.0,
    target: str | tuple[str, ...] = "attention",
    *rules: Rule,
    wants_needs: bool = False,
    by_noise: bool = False,
    base_prior: float = 0.0,
    stratified: bool = False,
) -> Adapt:
    """Train δ, the shift of the singular values.

    Args:
        rank: as the trainer's.
        target: the same.
        rules: what else is done after each step, one after the other.
        wants_needs: as in `Own`, like the others.
        by_noise: the same.
        base_prior: the same.
        stratified: the same.
    """

    def adapt(models: Models, steps: int) -> Adapted:
        config = SVFitConfig(rank=rank, target=target)
        device = next(next(iter(models.values())).parameters()).device
        subject = Subject(models, config, device, show_progress=False, name=_NAME)
        subject.set_trainable(True)
        metadata = AdapterMetadata(
            fingerprints=subject.fingerprints,
            rank=dict.fromkeys(models, str(rank)),
            target=dict.fromkeys(models, str(target)),
        )
        vectors = Vectors(subject.parameters(), _singular_values(subject), attention_values(models))
        own = Own(subject, vectors, wants_needs, by_noise, base_prior, stratified)

        def save(folder: Path) -> None:
            adapter = collect_adapter(models, _NAME, metadata)
            if rules:
                adapter = without_idle_layers(models, _NAME, adapter)
            write_adapter(folder / "pytorch_svfit_weights.safetensors", adapter)

        def merge() -> None:
            subject.set_trainable(False)

        after_step = _one_after_the_other([rule(vectors, steps) for rule in rules])
        return Adapted(vectors.deltas, save, merge, after_step, own)

    return adapt


def attention_values(models: Models) -> int:
    """How many singular values the attention projections of the models have."""
    return sum(
        min(layer.weight.shape)
        for model in models.values()
        for layer in select_targets(model, "attention").values()
    )


def _singular_values(subject: Subject) -> list[Tensor]:
    """Of the base, beside each of the subject's parameters."""
    return [
        shifted.basis.sigma[: shifted.deltas[_NAME].numel()].float()
        for injection in subject.injections.values()
        for shifted in injection.layers.values()
        if _NAME in shifted.deltas
    ]


def _one_after_the_other(rules: Sequence[AfterStep]) -> AfterStep:
    if not rules:
        return _go_on

    def after_step(step: int) -> None:
        for rule in rules:
            rule(step)

    return after_step


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
