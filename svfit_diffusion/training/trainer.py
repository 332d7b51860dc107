"""The DreamBooth loop over singular values, on accelerate.

    trainer = Trainer(config)              # checks, loads, computes the basis; nothing trained yet
    for record in trainer.steps():         # one optimizer step each; stop whenever you like
        print(record.step, record.loss)
    trainer.save(Path(config.output_dir))

Of everything in the models only the shifts δ are trained, and only their gradients travel between
processes. What chance decides in a step depends on seed and step alone (`data.draw_example`), so a
resumed run and one on several processes follow the run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor, nn

from svfit_diffusion.adapters import components
from svfit_diffusion.adapters.inject import inject
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.errors import AdapterNameError, ConfigError, DivergedError
from svfit_diffusion.files import adapter as adapter_files
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.files.metadata import AdapterMetadata, package_versions
from svfit_diffusion.training import class_images
from svfit_diffusion.training.budget import Pruner
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.photo_set import PhotoSet, draw_batch
from svfit_diffusion.training.photos import Photo, load_photos
from svfit_diffusion.training.setup import check_base, load_base, make_accelerator, make_optimizer

ADAPTER_NAME = "subject"
DEFAULT_STEPS = 400
_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did.

    Attributes:
        step: optimizer steps done, from 1.
        total_steps: optimizer steps of the whole run.
        loss: loss that was minimised, mean over the global batch.
        instance_loss: its part on the subject's photos.
        prior_loss: its part on class images, unweighted; None without prior preservation.
        learning_rate: of the UNet's shifts, in this step.
        sigma_drift: how far the singular values have moved, `‖δ‖ / ‖σ⁰‖` over all trained ones.
    """

    step: int
    total_steps: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float
    sigma_drift: float


class Trainer:
    """One training run, ready to step.

    Args:
        config: its settings.
        accelerator: where it runs; made from the settings if not given.
        pipe: the base pipeline, float32, loaded from the settings if not given. Training puts an
            adapter named `"subject"` on it, freezes it, and moves and casts it as configured.
        show_progress: show progress bars of the preparation.

    Raises:
        ConfigError: settings that do not fit this machine or this base model, such as a budget of
            more values than it has.
        DataError: photos that cannot be used.
        TargetError: targets that match nothing.
        AdapterNameError: the pipeline given carries an adapter `"subject"` already.

    Attributes:
        pipe: the pipeline in training, adapter included.
        step: optimizer steps done.
        total_steps: optimizer steps of the whole run.
        pruner: brings the adapter down to its budget, by the share `budget.PRUNING_ENDS` of the
            run; None without a budget. A run stopped before holds more.
        seconds: duration of each stage of the preparation, by name.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator | None = None,
        pipe: Any = None,
        *,
        show_progress: bool = True,
    ) -> None:
        self.config = config
        photos = load_photos(Path(config.instance_data_dir), config.instance_prompt)
        self.seconds: dict[str, float] = {}
        self.accelerator = accelerator or make_accelerator(config)
        self.seed = self._shared_seed()
        with self._timed("loading"):
            self.pipe = pipe if pipe is not None else load_base(config)
        check_base(self.pipe)
        self.resolution = self._resolution()
        self._show_progress = show_progress and self.accelerator.is_local_main_process
        self.models = {"unet": self.pipe.unet}
        if config.train_text_encoder:
            self.models["text_encoder"] = self.pipe.text_encoder
        self.objective = Objective(
            DDPMScheduler.from_config(self.pipe.scheduler.config),
            config.snr_gamma or None,
            config.noise_offset,
        )
        self.step = 0
        self.total_steps = self._total_steps(len(photos))
        if ADAPTER_NAME in components.adapter_names(self.models):
            raise AdapterNameError(
                f"the pipeline carries an adapter {ADAPTER_NAME!r} already; delete it first"
            )
        try:
            # First to the device: singular vectors and shifts are made where the weights are.
            self.pipe.to(self.accelerator.device)
            with self._timed("singular vectors"):
                self._metadata = self._inject()
            self.pruner = (
                Pruner(self.sigma_parameters(), config.budget, self.total_steps)
                if config.budget
                else None
            )
            self.optimizer, self.lr_scheduler = self._optimizer_and_schedule()
            self._freeze_models()
            self.photo_sets = self._prepare(photos)
        except BaseException:
            self._withdraw()
            raise
        self._sigma_norm = self._initial_sigma_norm()

    # Preparation

    def _shared_seed(self) -> int:
        """The configured seed, or one that the main process draws for all."""
        drawn = [secrets.randbits(31) if self.config.seed is None else self.config.seed]
        return int(broadcast_object_list(drawn)[0])

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started

    def _resolution(self) -> int:
        factor = int(self.pipe.vae_scale_factor)
        native = int(self.pipe.unet.config.sample_size) * factor
        resolution = self.config.resolution or native
        # The UNet halves the latent once per level but the last.
        step = factor * 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)
        if resolution % step:
            raise ConfigError(
                f"resolution {resolution} does not fit this base model; use a multiple of {step}, "
                f"such as {max(step, round(resolution / step) * step)}"
            )
        return resolution

    def _inject(self) -> AdapterMetadata:
        """Put the adapter on, in the precision the base was loaded in, and describe it."""
        config = self.config
        fingerprints = {}
        with self.accelerator.main_process_first():  # the others find the basis in the cache
            for component, model in self.models.items():
                injection = inject(
                    model, config.svfit, ADAPTER_NAME, show_progress=self._show_progress
                )
                fingerprints[component] = injection.fingerprint(ADAPTER_NAME)
        return AdapterMetadata(
            base_model=config.pretrained_model_name_or_path,
            base_revision=config.revision or "",
            fingerprints=fingerprints,
            rank=dict.fromkeys(self.models, config.rank),
            target=dict.fromkeys(self.models, " ".join(config.target)),
            instance_prompt=config.instance_prompt,
            class_prompt=config.class_prompt or "",
            training={**config.binding_settings(), "seed": self.seed},
            versions=package_versions(),
        )

    def _withdraw(self) -> None:
        """Take the adapter off again, for a pipeline that someone else goes on using."""
        for injection in self._injections():
            if ADAPTER_NAME in injection.adapter_names:
                injection.remove_adapter(ADAPTER_NAME)

    def _freeze_models(self) -> None:
        config, pipe = self.config, self.pipe
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        if self.accelerator.mixed_precision in _PRECISIONS:
            pipe.to(_PRECISIONS[self.accelerator.mixed_precision])
        for model in (pipe.unet, pipe.vae, pipe.text_encoder):
            model.requires_grad_(False)
        for injection in self._injections():
            injection.set_trainable(ADAPTER_NAME, True)  # and bring the basis along
        if config.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
            pipe.unet.train()
            if config.train_text_encoder:
                pipe.text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
                pipe.text_encoder.train()

    def _prepare(self, photos: list[Photo]) -> list[PhotoSet]:
        """Instance photos, class images if wanted, and their caches."""
        config = self.config
        sets = [PhotoSet(photos, self.pipe, config, self.resolution, stream=0)]
        if config.with_prior_preservation:
            if class_images.missing_class_images(config):
                with self._timed("class images"), self.generating():
                    class_images.generate_class_images(
                        self.pipe,
                        config,
                        self.seed,
                        process_index=self.accelerator.process_index,
                        num_processes=self.accelerator.num_processes,
                        show_progress=self._show_progress,
                    )
            self.accelerator.wait_for_everyone()
            class_photos = load_photos(
                class_images.class_folder(config),
                config.class_prompt or "",
                limit=config.num_class_images,
            )
            sets.append(PhotoSet(class_photos, self.pipe, config, self.resolution, stream=1))
        with self._timed("encoding"):
            for photo_set in sets:
                if config.cache_latents:
                    photo_set.cache_latents()
                if self._caches_embeddings:
                    photo_set.cache_embeddings()
        self._park()
        return sets

    @property
    def _caches_embeddings(self) -> bool:
        return self.config.pre_compute_text_embeddings and not self.config.train_text_encoder

    def _park(self) -> None:
        """Take models that training does not need off the device."""
        if self.config.cache_latents:
            self.pipe.vae.to("cpu")
        if self._caches_embeddings:
            self.pipe.text_encoder.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _global_batch(self) -> int:
        config = self.config
        per_process = config.train_batch_size * config.gradient_accumulation_steps
        return per_process * self.accelerator.num_processes

    def _total_steps(self, photo_count: int) -> int:
        if self.config.max_train_steps is not None:
            return self.config.max_train_steps
        if self.config.num_train_epochs is not None:
            return max(1, -(-photo_count * self.config.num_train_epochs // self._global_batch))
        return DEFAULT_STEPS

    def _optimizer_and_schedule(self) -> tuple[Any, Any]:
        config = self.config
        scale = self._global_batch if config.scale_lr else 1
        rates = {
            "unet": config.learning_rate * scale,
            "text_encoder": (config.text_encoder_lr or config.learning_rate) * scale,
        }
        groups = [
            {"params": [parameter for _, parameter in i.sigma_parameters(ADAPTER_NAME)], "lr": rate}
            for component, rate in rates.items()
            if (i := components.injections(self.models).get(component))
        ]
        optimizer = self.accelerator.prepare(make_optimizer(config, groups))
        scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=self.total_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        )
        return optimizer, scheduler

    # Stepping

    def steps(self) -> Iterator[StepRecord]:
        """Train, one optimizer step per record, to `total_steps`.

        Between two records the pipeline is consistent: generate with it (`generating`), save, stop.

        Raises:
            DivergedError: the loss is no longer finite; the shifts are those of the step before.
        """
        while self.step < self.total_steps:
            yield self._train_step()

    def _train_step(self) -> StepRecord:
        config, accelerator = self.config, self.accelerator
        sums = torch.zeros(2)
        for accumulated in range(config.gradient_accumulation_steps):
            losses = self._losses(self._positions(accumulated))
            weights = [1.0, config.prior_loss_weight][: len(losses)]
            loss = sum(w * part for w, part in zip(weights, losses, strict=True))
            accelerator.backward(loss / config.gradient_accumulation_steps)
            for i, part in enumerate(losses):
                sums[i] += part.detach().cpu() / config.gradient_accumulation_steps
        instance, prior = accelerator.reduce(sums.to(accelerator.device), "mean").tolist()
        total = instance + config.prior_loss_weight * prior
        if not math.isfinite(total):
            self.optimizer.zero_grad()
            raise DivergedError(
                f"the loss became {total} in step {self.step + 1}; lower learning_rate "
                f"(now {config.learning_rate}), or use bf16 or no mixed precision"
            )
        parameters = self.sigma_parameters()
        self._average_gradients(parameters)
        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.lr_scheduler.step()
        self.step += 1
        if self.pruner:
            if not self.optimizer.step_was_skipped:  # else the gradients are not finite
                self.pruner.weigh()
            self.pruner.prune(self.step)
        self.optimizer.zero_grad()
        return StepRecord(
            step=self.step,
            total_steps=self.total_steps,
            loss=total,
            instance_loss=instance,
            prior_loss=prior if len(self.photo_sets) > 1 else None,
            learning_rate=learning_rate,
            sigma_drift=self.sigma_drift(),
        )

    def _positions(self, accumulated: int) -> list[int]:
        """Where this process's batch lies in the stream of examples."""
        batch = self.config.train_batch_size
        batches = self.step * self.config.gradient_accumulation_steps + accumulated
        start = (batches * self.accelerator.num_processes + self.accelerator.process_index) * batch
        return list(range(start, start + batch))

    def _losses(self, positions: list[int]) -> list[Tensor]:
        """Mean loss of this batch's instance photos, and of its class images if there are any."""
        batch = draw_batch(self.photo_sets, self.objective, self.seed, positions)
        with self.accelerator.autocast():
            losses = self.objective.batch_losses(self.pipe.unet, batch)
        return [part.mean() for part in losses.chunk(len(self.photo_sets))]

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average δ gradients over processes: one message of one number per trained value."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in parameters]
        flat = self.accelerator.reduce(torch.cat([g for g in gradients if g is not None]), "mean")
        for gradient in gradients:
            assert gradient is not None
            gradient.copy_(flat[: gradient.numel()])
            flat = flat[gradient.numel() :]

    def sigma_parameters(self) -> list[nn.Parameter]:
        """Every trained shift."""
        return [p for i in self._injections() for _, p in i.sigma_parameters(ADAPTER_NAME)]

    def _injections(self) -> list[Injection]:
        return list(components.injections(self.models).values())

    def _initial_sigma_norm(self) -> float:
        squares = [
            shifted.basis.sigma[: shifted.deltas[ADAPTER_NAME].numel()].double().square().sum()
            for injection in self._injections()
            for shifted in injection.layers.values()
        ]
        return float(torch.stack([square.cpu() for square in squares]).sum().sqrt())

    def sigma_drift(self) -> float:
        """`‖δ‖ / ‖σ⁰‖` over all trained singular values."""
        norms = torch._foreach_norm([p.detach() for p in self.sigma_parameters()])
        return float(torch.stack(norms).norm()) / self._sigma_norm

    # Using what was learned

    @contextlib.contextmanager
    def generating(self) -> Iterator[Any]:
        """The pipeline on the device, generating at the base's cost; training resumes after."""
        pipe = self.pipe
        shown = dict(getattr(pipe, "_progress_bar_config", {}))
        modes = {model: model.training for model in (pipe.unet, pipe.text_encoder)}
        try:
            for injection in self._injections():
                injection.set_trainable(ADAPTER_NAME, False)
            for model in modes:
                model.eval()
            pipe.to(self.accelerator.device)
            pipe.set_progress_bar_config(disable=True)
            yield pipe
        finally:
            pipe.set_progress_bar_config(**shown)
            for model, training in modes.items():
                model.train(training)
            for injection in self._injections():
                injection.set_enabled(True)
                injection.set_trainable(ADAPTER_NAME, True)
            self._park()

    def generate(
        self, prompts: list[str], images_per_prompt: int, *, base: bool = False
    ) -> list[list[Image.Image]]:
        """Images of the subject as learned so far, per prompt; the same seeds every time.

        Args:
            prompts: what to generate.
            images_per_prompt: how many of each.
            base: generate with the base model instead.
        """
        config = self.config
        images = []
        with self.generating() as pipe:
            if base:
                pipe.disable_svfit()
            for prompt in prompts:
                generators = [
                    torch.Generator().manual_seed(self.seed + i) for i in range(images_per_prompt)
                ]
                images.append(
                    pipe(
                        [prompt] * images_per_prompt,
                        num_inference_steps=config.num_inference_steps,
                        guidance_scale=config.guidance_scale,
                        generator=generators,
                        height=self.resolution,
                        width=self.resolution,
                    ).images
                )
        return images

    def adapter(self) -> Adapter:
        """The adapter as learned so far, without the layers of which the budget kept nothing."""
        whole = components.collect_adapter(self.models, ADAPTER_NAME, self._metadata)
        if self.pruner is None:
            return whole
        return components.without_idle_layers(self.models, ADAPTER_NAME, whole)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the base's weights under all layers in training, per component."""
        return self._metadata.fingerprints

    def save(self, folder: Path) -> Path:
        """Write the adapter as learned so far into a folder, whole or not at all.

        Raises:
            OSError: it could not be written; a file that was there is untouched.
        """
        path = folder / adapter_files.WEIGHTS_NAME
        adapter_files.write_adapter(path, self.adapter())
        return path
