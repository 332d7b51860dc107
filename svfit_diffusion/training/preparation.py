"""A pipeline made ready to be trained: checked, frozen, an adapter on it, its photos encoded."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from PIL import Image, ImageOps

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.training import checks
from svfit_diffusion.training.accelerators import make_accelerator
from svfit_diffusion.training.agreement import rate_advice
from svfit_diffusion.training.budget import Pruner
from svfit_diffusion.training.class_images import (
    class_photos,
    generate_class_images,
    missing_class_images,
)
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.launch import check_accelerator
from svfit_diffusion.training.machine import check_machine
from svfit_diffusion.training.objective import BasePrior, Objective
from svfit_diffusion.training.own_word import check_said
from svfit_diffusion.training.photo_set import photo_sets
from svfit_diffusion.training.photos import Photo, find_photos
from svfit_diffusion.training.preview import Preview
from svfit_diffusion.training.processes import together, wait_for_all
from svfit_diffusion.training.stage import Stage
from svfit_diffusion.training.timing import timed

DEFAULT_STEPS = 400


class Preparation:
    """Does all that comes before the first step, and undoes it on an error.

    Args:
        config: the run's settings.
        accelerator: where it runs; made from the settings if not given.
        pipe: the base pipeline; loaded from the settings if not given.
        show_progress: show progress bars.
        stage: in place of a pipeline, one with other subjects in training.
        name: of the adapter.

    Raises:
        ConfigError, DataError, TargetError, AdapterNameError: as `Trainer`.

    Attributes:
        accelerator: where the run computes.
        seed: of everything random.
        stage: the pipeline.
        total_steps: optimizer steps of the whole run.
        subject: the adapter in training.
        pruner: brings it down to its budget; None without one.
        average: running mean of the shifts; None unless it is wanted.
        preview: draws with the pipeline.
        photo_sets: the subject's photos, and the class images if there are any.
        objective: what a step minimises.
        seconds: duration of each stage, by name.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator | None,
        pipe: Any,
        show_progress: bool,
        stage: Stage | None,
        name: str,
    ) -> None:
        self._config = config
        check_machine(config)
        found = find_photos(Path(config.instance_data_dir), config.instance_prompt)
        photos = found.photos
        if config.train_identifier is not None:
            check_said(config.train_identifier, photos, config.class_prompt)
        self.accelerator = accelerator or make_accelerator(config)
        check_accelerator(self.accelerator)
        self._show_progress = show_progress and self.accelerator.is_local_main_process
        self._whose = f"{name}: " if stage else ""
        self._say(str(found))
        if advice := rate_advice(config.optimizer, config.learning_rate):
            self._say(f"Note: {advice}")
        self.seed = self._shared_seed()
        self._reference = photos[0].reference
        edits = self._reference is not None
        if stage:
            checks.check_references(stage.family, edits, config.with_prior_preservation)
        self.stage = stage or Stage(
            config, self.accelerator, pipe, edits=edits, show_progress=self._show_progress
        )
        self.seconds = {} if stage else self.stage.seconds
        self.total_steps = self._total_steps(sum(photo.repeats for photo in photos))
        with contextlib.ExitStack() as undo:
            self.subject = self.stage.put_on(
                name, config.train_identifier, config.output_strength, undo
            )
            parameters, shifts = self.subject.parameters(), self.subject.shifts()
            self.pruner = Pruner(shifts, config.budget, self.total_steps) if config.budget else None
            self.average = EMAModel(parameters, decay=config.ema_decay) if config.use_ema else None
            self.preview = Preview(
                self.stage.family,
                self.subject,
                self.stage.placement,
                self.average,
                show_progress=self._show_progress,
            )
            self.stage.freeze()
            self.subject.set_trainable(True)
            self.objective = self._objective(photos)
            undo.pop_all()

    def _shared_seed(self) -> int:
        """The configured seed, or one that the main process draws for all."""
        drawn = [secrets.randbits(31) if self._config.seed is None else self._config.seed]
        with together(self.accelerator):
            return int(broadcast_object_list(drawn)[0])

    def _say(self, what: str) -> None:
        if self._show_progress:
            print(f"{self._whose}{what}", flush=True)

    @property
    def global_batch(self) -> int:
        """Photos of one optimizer step, over all processes."""
        per_process = self._config.train_batch_size * self._config.gradient_accumulation_steps
        return per_process * self.accelerator.num_processes

    def _total_steps(self, photo_count: int) -> int:
        config = self._config
        if config.max_train_steps is not None:
            return config.max_train_steps
        if config.num_train_epochs is not None:
            return max(1, -(-photo_count * config.num_train_epochs // self.global_batch))
        return DEFAULT_STEPS

    def _objective(self, photos: list[Photo]) -> Objective:
        """Photos encoded, and what is to be minimised on them."""
        config, stage, sets = self._config, self.stage, [photos]
        if config.with_prior_preservation:
            sets.append(self._class_images())
        self.photo_sets = photo_sets(
            stage.family,
            sets,
            stage.resolution,
            aspect_buckets=config.aspect_buckets,
            center_crop=config.center_crop,
            random_flip=config.random_flip,
            proportion_empty_prompts=config.proportion_empty_prompts,
            scratch=Scratch(Path(config.output_dir) if config.cache_to_disk else None),
        )
        with timed(self.seconds, "encoding"):
            prior = self._encode()
        stage.settle()
        return Objective(
            stage.family,
            stage.process,
            self.photo_sets,
            self.seed,
            config.mask_background_weight,
            prior,
            self.subject,
        )

    def _class_images(self) -> list[Photo]:
        """The class images, those that are missing drawn first."""
        config, folder = self._config, self._config.class_folder
        prompt, base, wanted = (
            config.class_prompt or "",
            config.source.identity,
            config.num_class_images,
        )
        if missing := missing_class_images(folder, prompt, base, wanted):
            if config.in_parts:
                raise ConfigError(
                    f"{missing} of {wanted} class images are missing in {folder}, and a denoiser "
                    f"in parts (shard_base, group_offload) draws none: put them there, or let a "
                    f"run of one step without it draw them"
                )
            self._say(f"Class images: {wanted - missing} are in {folder}, {missing} are drawn now")
            with timed(self.seconds, "class images"), self.preview.generating() as pipe:
                generate_class_images(
                    pipe,
                    folder,
                    prompt,
                    wanted,
                    self.generation_arguments,
                    batch_size=config.sample_batch_size,
                    seed=self.seed,
                    base=base,
                    process_index=self.accelerator.process_index,
                    num_processes=self.accelerator.num_processes,
                    show_progress=self._show_progress,
                )
        wait_for_all(self.accelerator)
        return class_photos(folder, prompt, base, wanted)

    @property
    def generation_arguments(self) -> dict[str, Any]:
        """Of the pipeline's call, as the settings or else the family say."""
        size = (self.stage.resolution, self.stage.resolution)
        config = self._config
        arguments = self.stage.family.generation_arguments(
            size, config.num_inference_steps, config.guidance_scale
        )
        if self._reference is None:
            return arguments
        # The first photo's image to edit, at the size of training.
        shown = ImageOps.fit(self._reference, size, Image.Resampling.LANCZOS)
        return arguments | {"image": shown, "_auto_resize": False}

    def _encode(self) -> BasePrior | None:
        """Encode what does not change, each kind of model on the device in its turn; the prior
        that the base gives, if it is wanted.
        """
        config, stage, kept = self._config, self.stage, None
        if config.cache_latents:
            stage.placement.bring(["vae"])
            for photo_set in self.photo_sets:
                photo_set.cache_latents(show_progress=self._show_progress)
        if stage.keeps_conditions:
            stage.placement.bring(list(stage.family.encoders))
            for photo_set in self.photo_sets:
                photo_set.cache_conditions(show_progress=self._show_progress)
            if config.with_base_prior:
                with torch.no_grad():
                    kept = stage.family.encode_prompts([config.class_prompt or ""])
        return BasePrior(config.class_prompt or "", kept) if config.with_base_prior else None
