"""The DreamBooth loop over singular values, on accelerate.

    trainer = Trainer(config)              # checks, loads, computes the basis; nothing trained yet
    for record in trainer.steps():         # one optimizer step each; stop whenever you like
        print(record.step, record.loss)
    trainer.save(Path(config.output_dir))

Of everything in the models only the shifts δ are trained, and only their gradients travel between
processes. What chance decides in a step depends on seed and step alone (`draws.draw_example`), so a
resumed run and one on several processes follow the run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image
from torch import nn

from svfit_diffusion.adapters.components import collect_adapter, without_idle_layers
from svfit_diffusion.errors import StateError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, Adapter, scaled, write_adapter
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.metadata import adapter_metadata
from svfit_diffusion.training.optimization import make_optimizer
from svfit_diffusion.training.preparation import Preparation
from svfit_diffusion.training.stage import Stage
from svfit_diffusion.training.step import Stepper, StepRecord, StepSettings
from svfit_diffusion.training.subject import ADAPTER_NAME

_CHECKPOINT_STEPS = 100  # between checkpoints, unless it is said how many,
_CHECKPOINTS = 20  # or more, so that a long run has no more than these


class Trainer:
    """One training run, ready to step.

    Args:
        config: its settings.
        accelerator: where it runs; made from the settings if not given.
        pipe: the base pipeline, float32, loaded from the settings if not given. Training puts an
            adapter on it, freezes it, and moves and casts it as configured.
        show_progress: show progress bars of the preparation.
        stage: in place of a pipeline, one on which others are trained in the same pass
            (`shared_pass.SharedPass`); then its steps are made by that, and not by `steps`.
        name: of the adapter on the pipeline.

    Raises:
        ConfigError: settings that do not fit this machine or this base model, such as a budget of
            more values than it has.
        DataError: photos that cannot be used.
        TargetError: targets that match nothing.
        AdapterNameError: the pipeline given carries an adapter of that name already.

    Attributes:
        config: as given.
        accelerator: where it runs.
        seed: of everything random.
        run: names this run; a resumed one has the name of the run it continues.
        family: of the pipeline.
        pipe: the pipeline in training, adapter included.
        resolution: side of training images in pixels, of a square.
        total_steps: optimizer steps of the whole run.
        subject: the adapter in training.
        photo_sets: the subject's photos, and the class images if there are any.
        pruner: brings the adapter down to its budget, by the share `budget.PRUNING_ENDS` of the
            run; None without a budget. A run stopped before holds more.
        average: running mean of the shifts; None unless it is wanted.
        objective: what a step minimises.
        stepper: makes the steps.
        seconds: duration of each stage of the preparation, by name.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator | None = None,
        pipe: Any = None,
        *,
        show_progress: bool = True,
        stage: Stage | None = None,
        name: str = ADAPTER_NAME,
    ) -> None:
        self.config = config
        self._preparation = ready = Preparation(
            config, accelerator, pipe, show_progress, stage, name
        )
        self.accelerator = ready.accelerator
        self.seed = ready.seed
        self.run = uuid.uuid4().hex
        self.family = ready.stage.family
        self.pipe = ready.stage.family.pipe
        self.resolution = ready.stage.resolution
        self.subject = ready.subject
        self.photo_sets = ready.photo_sets
        self.average = ready.average
        self.objective = ready.objective
        self.seconds = ready.seconds
        self.total_steps = ready.total_steps
        self.pruner = ready.pruner
        groups = [
            {"params": self.subject.parameters(name), "lr": self._rate(name)}
            for name in ready.stage.components
        ]
        self.optimizer: Any = self.accelerator.prepare(
            make_optimizer(config.optimizer_settings, groups)
        )
        self.lr_scheduler = config.schedule_settings.over(self.optimizer, self.total_steps)
        self.stepper = Stepper(
            StepSettings(
                self.total_steps,
                config.train_batch_size,
                config.gradient_accumulation_steps,
                config.prior_loss_weight,
                config.max_grad_norm,
            ),
            self.accelerator,
            self.objective,
            self.subject,
            self.optimizer,
            self.lr_scheduler,
        )

    def is_checkpoint_due(self) -> bool:
        """Whether this step is to be kept; the last one is too, unless it is said which are."""
        every = self._checkpointing_steps
        is_last = self.config.checkpointing_steps is None and self.step == self.total_steps
        return self.step % every == 0 or is_last

    @property
    def _checkpointing_steps(self) -> int:
        often = max(_CHECKPOINT_STEPS, math.ceil(self.total_steps / _CHECKPOINTS))
        return self.config.checkpointing_steps or often

    def chosen_settings(self) -> dict[str, Any]:
        """What a setting that was left open is in this run, by name."""
        arguments = self._preparation.generation_arguments
        chosen: dict[str, Any] = {
            "rank": self._preparation.stage.rank,
            "resolution": self.resolution,
            "max_train_steps": self.total_steps,
            "train_text_encoder": len(self.subject.models) > 1,
            "text_encoder_lr": self.config.learning_rate,
            "mixed_precision": str(self.accelerator.mixed_precision),
            "checkpointing_steps": self._checkpointing_steps,
            "class_data_dir": str(self.config.class_folder),
            **{
                k: arguments[k] for k in ("num_inference_steps", "guidance_scale") if k in arguments
            },
        }
        return {k: value for k, value in chosen.items() if getattr(self.config, k) is None}

    def _rate(self, component: str) -> float:
        """Learning rate of a component's shifts."""
        config, rate = self.config, self.config.learning_rate
        if component != self.family.denoiser:
            rate = config.text_encoder_lr or rate
        return rate * (self._preparation.global_batch if config.scale_lr else 1)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.stepper.step

    def sigma_parameters(self) -> list[nn.Parameter]:
        """Every trained shift, `(r,)` float32, and the vectors of a word of the subject's own."""
        return self.subject.parameters()

    def steps(self) -> Iterator[StepRecord]:
        """Train, one optimizer step per record, to `total_steps`.

        Between two records the pipeline is consistent: draw with it (`generating`), save, stop.

        Raises:
            DivergedError: the loss is no longer finite; the shifts are those of the step before.
        """
        while self.step < self.total_steps:
            yield self.stepper.next(self.pruner, self.average)

    # Using what was learned

    @contextlib.contextmanager
    def generating(self) -> Iterator[Any]:
        """The pipeline on the device, drawing at the base's cost; training resumes after.

        Raises:
            StateError: the denoiser is in parts.
        """
        if self.config.in_parts:
            raise StateError(
                "a denoiser in parts (shard_base, group_offload) draws nothing: save the adapter, "
                "and draw with it on a pipeline of its own"
            )
        try:
            with self._preparation.preview.generating() as pipe:
                yield pipe
        finally:
            self._preparation.stage.settle()

    def generate(
        self, prompts: list[str], images_per_prompt: int, *, base: bool = False
    ) -> list[list[Image.Image]]:
        """Images of the subject as learned so far, per prompt; the same seeds every time.

        Args:
            prompts: what to draw.
            images_per_prompt: how many of each.
            base: draw with the base model instead.
        """
        arguments = self._preparation.generation_arguments
        with self.generating() as pipe:
            if base:
                pipe.disable_svfit()
            return self._preparation.preview.draw(prompts, images_per_prompt, arguments, self.seed)

    def adapter(self) -> Adapter:
        """The adapter as learned so far, without the layers of which the budget kept nothing."""
        config, models = self.config, self.subject.models
        prompt = config.instance_prompt or self._common_prompt()
        metadata = adapter_metadata(
            config,
            self._preparation.stage.rank,
            self.subject.fingerprints,
            self.subject.quantization,
            self.seed,
            prompt,
        )
        with self._preparation.preview.averaged():
            whole = collect_adapter(models, self.subject.name, metadata)
        whole = scaled(whole, self.subject.strength)
        if self.pruner is None:
            return whole
        return without_idle_layers(models, self.subject.name, whole)

    def _common_prompt(self) -> str:
        """The prompt of all photos, as the name of their folder says it, if they have one."""
        prompts = {photo.prompt for photo in self.photo_sets[0].photos}
        return prompts.pop() if len(prompts) == 1 else ""

    def save(self, folder: Path) -> Path:
        """Write the adapter as learned so far into a folder, whole or not at all.

        Raises:
            StorageError: there is no room or no permission; a file that was there is untouched.
        """
        path = folder / WEIGHTS_NAME
        write_adapter(path, self.adapter())
        return path
