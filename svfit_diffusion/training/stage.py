"""A base pipeline as training has it: checked, in place, frozen, with adapters on it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from accelerate import Accelerator

from svfit_diffusion.adapters.rows import RowOwners
from svfit_diffusion.families import family_of
from svfit_diffusion.training import checks
from svfit_diffusion.training.base import load_base, load_quantised_base
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.freezing import PRECISIONS, freeze
from svfit_diffusion.training.layers import layers_to_train, models_to_train, rank_to_train
from svfit_diffusion.training.own_word import new_word
from svfit_diffusion.training.placement import Placement
from svfit_diffusion.training.processes import main_first
from svfit_diffusion.training.sharding import check_in_parts, put_in_parts
from svfit_diffusion.training.skeleton import skeleton_if_told
from svfit_diffusion.training.subject import Subject
from svfit_diffusion.training.timing import timed


class Stage:
    """What one training, or several in one pass, need of a base pipeline.

    Args:
        config: of the training; of several, what they have in common counts
            (`fields.COMMON_TO_A_PASS`).
        accelerator: where training runs.
        pipe: the pipeline; loaded from the settings if not given.
        several: whether subjects are trained in one pass, each with rows of its own.
        edits: whether photos have images to edit beside them, as far as is known.
        show_progress: show progress bars.

    Raises:
        ConfigError: settings that do not fit the base model.

    Attributes:
        family: of the pipeline.
        process: its noise process.
        rank: of what is trained, as users write it.
        resolution: side of training images in pixels, of a square.
        placement: of the pipeline's models.
        owners: whose rows of a batch are whose, if there are several subjects.
        seconds: duration of each stage of the work, by name.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        pipe: Any,
        *,
        several: bool = False,
        edits: bool = False,
        show_progress: bool = True,
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._show_progress = show_progress
        self.seconds: dict[str, float] = {}
        if config.in_parts:
            check_in_parts(accelerator, config.shard_base, config.group_offload, several=several)
        trained = self._told_by_configurations(edits) if pipe is None else None
        with timed(self.seconds, "loading"):
            self.family = family_of(self._loaded() if pipe is None else pipe)
        if trained is None:
            trained = checks.check_fit(self.family, config, self._precision, edits=edits)
        self._trained = trained
        models = models_to_train(self.family, trained)
        self.rank = rank_to_train(config.rank, models, config.target)
        self.process = self.family.noise_process(config.noise)
        self.resolution = checks.training_resolution(self.family, config.resolution)
        self.placement = Placement(
            self.family.pipe, accelerator.device, offload=config.offload or config.in_parts
        )
        self.owners = RowOwners() if several else None
        self._is_frozen = False
        self._parts: Any = None

    def _told_by_configurations(self, edits: bool) -> list[str] | None:
        """Text encoders to train, once settings are known to fit the base, before it is loaded;
        None where it has no configurations to tell.
        """
        bare = skeleton_if_told(self._config.source)
        if bare is None:
            return None
        family = family_of(bare)
        trained = checks.check_fit(family, self._config, self._precision, edits=edits)
        layers_to_train(family, trained, self._config)
        return trained

    def _loaded(self) -> Any:
        config = self._config
        if self._show_progress:
            print(f"Loading {config.source.name}", flush=True)
        asked = (config.quantization, config.bnb_quantization_config_path)
        dtype = PRECISIONS.get(self._precision, torch.float32)
        if asked == (None, None):
            return load_base(config.source, dtype)
        return load_quantised_base(config.source, *asked, dtype)

    @property
    def _precision(self) -> str:
        return str(self._accelerator.mixed_precision)

    @property
    def components(self) -> list[str]:
        """The pipeline's components in training, the denoiser first."""
        return [self.family.denoiser, *self._trained]

    @property
    def keeps_conditions(self) -> bool:
        """Whether prompts are encoded once for all."""
        return self._config.pre_compute_text_embeddings and not self._trained

    def put_on(
        self, name: str, identifier: str | None, strength: float | None, undo: contextlib.ExitStack
    ) -> Subject:
        """An adapter to train.

        Args:
            name: of it.
            identifier: where prompts say this, it learns a word of its own.
            strength: to draw with it; 1 if not given.
            undo: takes it off again.
        """
        with timed(self.seconds, "singular vectors"), main_first(self._accelerator):
            # The main process fills the cache; the others find the basis there.
            subject = Subject(
                models_to_train(self.family, self._trained),
                self._config.svfit_of(self.rank),
                self._accelerator.device,
                show_progress=self._show_progress,
                name=name,
                owners=self.owners,
                strength=1.0 if strength is None else strength,
                word=new_word(self.family, identifier) if identifier is not None else None,
            )
        undo.callback(subject.withdraw)
        return subject

    def freeze(self) -> None:
        """Freeze and cast the pipeline, once the bases are there."""
        if self._is_frozen:
            return
        config, pipe = self._config, self.family.pipe
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        if config.enable_xformers_memory_efficient_attention:
            pipe.enable_xformers_memory_efficient_attention()
        freeze(
            self.family,
            self._trained,
            self._precision,
            config.gradient_checkpointing,
            self.owners,
        )
        self._is_frozen = True

    def settle(self) -> None:
        """Have on the device what training needs, and nothing else."""
        in_parts = self._config.in_parts
        needed = [] if in_parts else [self.family.denoiser]
        idle: list[str] = []
        (idle if self._config.cache_latents else needed).append("vae")
        (idle if self.keeps_conditions else needed).extend(self.family.encoders)
        self.placement.park(idle)  # first: together they may be more than the device holds
        self.placement.bring(needed)
        if in_parts:
            in_host_memory = self._config.group_offload
            self._parts = put_in_parts(self.family.model, self._accelerator, in_host_memory)
