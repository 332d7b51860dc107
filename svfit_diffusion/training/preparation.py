"""A pipeline made ready to be trained: checked, frozen, an adapter on it, its photos encoded."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from PIL import Image, ImageOps

from svfit_diffusion.families import family_of
from svfit_diffusion.files.scratch import Scratch
from svfit_diffusion.training import checks
from svfit_diffusion.training.accelerators import make_accelerator
from svfit_diffusion.training.agreement import rate_advice
from svfit_diffusion.training.base import load_base
from svfit_diffusion.training.budget import Pruner
from svfit_diffusion.training.class_images import (
    class_photos,
    generate_class_images,
    missing_class_images,
)
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.freezing import freeze
from svfit_diffusion.training.machine import check_machine
from svfit_diffusion.training.objective import BasePrior, Objective
from svfit_diffusion.training.photo_set import photo_sets
from svfit_diffusion.training.photos import Photo, find_photos
from svfit_diffusion.training.placement import Placement
from svfit_diffusion.training.preview import Preview
from svfit_diffusion.training.processes import main_first, together, wait_for_all
from svfit_diffusion.training.subject import Subject

DEFAULT_STEPS = 400


class Preparation:
    """Does all that comes before the first step, and undoes it on an error.

    Args:
        config: the run's settings.
        accelerator: where it runs; made from the settings if not given.
        pipe: the base pipeline; loaded from the settings if not given.
        show_progress: show progress bars.

    Raises:
        ConfigError, DataError, TargetError, AdapterNameError: as `Trainer`.

    Attributes:
        accelerator: where the run computes.
        seed: of everything random.
        family: of the pipeline.
        resolution: side of training images in pixels, of a square.
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
    ) -> None:
        self._config = config
        check_machine(config)
        found = find_photos(Path(config.instance_data_dir), config.instance_prompt)
        photos = found.photos
        self.seconds: dict[str, float] = {}
        self.accelerator = accelerator or make_accelerator(config)
        self._show_progress = show_progress and self.accelerator.is_local_main_process
        self._say(str(found))
        if advice := rate_advice(config.optimizer, config.learning_rate):
            self._say(f"Note: {advice}")
        self.seed = self._shared_seed()
        with self._timed("loading"):
            if pipe is None:
                self._say(f"Loading {config.source.name}")
            self.family = family_of(pipe if pipe is not None else load_base(config.source))
        self._reference = photos[0].reference
        self._check()
        self.resolution = checks.training_resolution(self.family, config.resolution)
        self._placement = Placement(
            self.family.pipe, self.accelerator.device, offload=config.offload
        )
        self.total_steps = self._total_steps(sum(photo.repeats for photo in photos))
        with contextlib.ExitStack() as undo:
            self.subject = self._put_on(undo)
            parameters = self.subject.parameters()
            self.pruner = (
                Pruner(parameters, config.budget, self.total_steps) if config.budget else None
            )
            self.average = EMAModel(parameters, decay=config.ema_decay) if config.use_ema else None
            self.preview = Preview(
                self.family,
                self.subject,
                self._placement,
                self.average,
                show_progress=self._show_progress,
            )
            self._freeze()
            self.objective = self._objective(photos)
            undo.pop_all()

    def _shared_seed(self) -> int:
        """The configured seed, or one that the main process draws for all."""
        drawn = [secrets.randbits(31) if self._config.seed is None else self._config.seed]
        with together(self.accelerator):
            return int(broadcast_object_list(drawn)[0])

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started

    def _say(self, what: str) -> None:
        if self._show_progress:
            print(what, flush=True)

    def _check(self) -> None:
        """Name what does not fit before any work."""
        family, config = self.family, self._config
        family.check()
        checks.check_precision(family, self.accelerator.mixed_precision)
        checks.check_checkpointing(family, config.gradient_checkpointing)
        edits = self._reference is not None
        checks.check_references(family, edits, config.with_prior_preservation)
        self._trained = checks.trained_text_encoders(family, config.train_text_encoder)
        self._process = family.noise_process(config.noise)

    @property
    def components(self) -> list[str]:
        """The pipeline's components in training, the denoiser first."""
        return [self.family.denoiser, *self._trained]

    def _put_on(self, undo: contextlib.ExitStack) -> Subject:
        """The adapter in training; `undo` takes it off again."""
        self._placement.bring(self.components)  # where weights are, vectors are computed
        with self._timed("singular vectors"), main_first(self.accelerator):
            # The main process fills the cache; the others find the basis there.
            models = {name: getattr(self.family.pipe, name) for name in self.components}
            subject = Subject(models, self._config.svfit, show_progress=self._show_progress)
        undo.callback(subject.withdraw)
        return subject

    def _freeze(self) -> None:
        """Freeze and cast the pipeline, once the basis has seen it in full precision."""
        config, family = self._config, self.family
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        if config.enable_xformers_memory_efficient_attention:
            family.pipe.enable_xformers_memory_efficient_attention()
        freeze(
            family, self._trained, self.accelerator.mixed_precision, config.gradient_checkpointing
        )
        self.subject.set_trainable(True)

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
        config, sets = self._config, [photos]
        if config.with_prior_preservation:
            sets.append(self._class_images())
        self.photo_sets = photo_sets(
            self.family,
            sets,
            self.resolution,
            aspect_buckets=config.aspect_buckets,
            center_crop=config.center_crop,
            random_flip=config.random_flip,
            proportion_empty_prompts=config.proportion_empty_prompts,
            scratch=Scratch(Path(config.output_dir) if config.cache_to_disk else None),
        )
        with self._timed("encoding"):
            prior = self._encode()
        self.settle()
        outside = config.mask_background_weight
        return Objective(self.family, self._process, self.photo_sets, self.seed, outside, prior)

    def _class_images(self) -> list[Photo]:
        """The class images, those that are missing drawn first."""
        config, folder = self._config, self._config.class_folder
        prompt, base, wanted = (
            config.class_prompt or "",
            config.source.identity,
            config.num_class_images,
        )
        if missing := missing_class_images(folder, prompt, base, wanted):
            self._say(f"Class images: {wanted - missing} are in {folder}, {missing} are drawn now")
            with self._timed("class images"), self.preview.generating() as pipe:
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
        size = (self.resolution, self.resolution)
        config = self._config
        arguments = self.family.generation_arguments(
            size, config.num_inference_steps, config.guidance_scale
        )
        if self._reference is None:
            return arguments
        # The first photo's image to edit, at the size of training.
        shown = ImageOps.fit(self._reference, size, Image.Resampling.LANCZOS)
        return arguments | {"image": shown, "_auto_resize": False}

    @property
    def _keeps_conditions(self) -> bool:
        return self._config.pre_compute_text_embeddings and not self._trained

    def _encode(self) -> BasePrior | None:
        """Encode what does not change, each kind of model on the device in its turn; the prior
        that the base gives, if it is wanted.
        """
        config, kept = self._config, None
        if config.cache_latents:
            self._placement.bring(["vae"])
            for photo_set in self.photo_sets:
                photo_set.cache_latents(show_progress=self._show_progress)
        if self._keeps_conditions:
            self._placement.bring(list(self.family.encoders))
            for photo_set in self.photo_sets:
                photo_set.cache_conditions(show_progress=self._show_progress)
            if config.with_base_prior:
                with torch.no_grad():
                    kept = self.family.encode_prompts([config.class_prompt or ""])
        if not config.with_base_prior:
            return None
        return BasePrior(self.subject, config.class_prompt or "", kept)

    def settle(self) -> None:
        """Have on the device what training needs, and nothing else."""
        needed = [self.family.denoiser]
        idle: list[str] = []
        (idle if self._config.cache_latents else needed).append("vae")
        (idle if self._keeps_conditions else needed).extend(self.family.encoders)
        self._placement.bring(needed)
        self._placement.park(idle)
