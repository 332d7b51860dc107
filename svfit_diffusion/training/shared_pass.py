"""Several subjects in one pass: a batch holds rows of each, and each row has its subject's shift.

    shared = SharedPass(config)                       # what all have in common
    for name, own in settings.items():
        shared.join(name, own)
    for name, record in shared.steps():
        print(name, record.step, record.loss)
    for name, trainer in shared.trainers.items():
        trainer.save(Path(trainer.config.output_dir))

A basis belongs to the base, so the frozen layers, and the products with the singular vectors, are
those of one run with as many rows. All else is each subject's own: its draws, which are functions
of its seed and step, its loss, clipping, optimizer, budget, averages and number of steps. Its
adapter is therefore the one that it would have got alone, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from svfit_diffusion.errors import DivergedError, StateError
from svfit_diffusion.training.accelerators import make_accelerator
from svfit_diffusion.training.agreement import check_common
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.objective import losses_in_one_pass
from svfit_diffusion.training.stage import Stage
from svfit_diffusion.training.step import StepRecord, accumulate
from svfit_diffusion.training.trainer import Trainer


class SharedPass:
    """Trainers of several subjects whose steps are made in one pass.

    Args:
        config: settings, of which those count that all subjects have in common
            (`fields.COMMON_TO_A_PASS`).
        pipe: the base pipeline, float32, loaded from the settings if not given.
        show_progress: show progress bars of the preparations.

    Raises:
        ConfigError: settings that do not fit this machine or this base model.

    Attributes:
        accelerator: where the pass is computed.
        trainers: those that have joined and not left, by name.
        failures: why some of them are trained no more; their shifts are those of the step before.
    """

    def __init__(
        self, config: TrainingConfig, pipe: Any = None, *, show_progress: bool = True
    ) -> None:
        self._config = config
        self._show_progress = show_progress
        self.accelerator = make_accelerator(config)
        self._stage = Stage(
            config, self.accelerator, pipe, several=True, show_progress=show_progress
        )
        self.trainers: dict[str, Trainer] = {}
        self.failures: dict[str, DivergedError] = {}

    def join(self, name: str, config: TrainingConfig) -> Trainer:
        """Make a subject ready, to be trained from the next step on.

        Args:
            name: of the subject, and of its adapter on the pipeline meanwhile.
            config: its settings.

        Raises:
            ConfigError: a setting differs that all have in common, or as `Trainer`.
            DataError, TargetError, AdapterNameError: as `Trainer`; the others are as they were.
        """
        check_common(name, vars(config), vars(self._config))
        trainer = Trainer(
            config,
            make_accelerator(config),
            show_progress=self._show_progress,
            stage=self._stage,
            name=name,
        )
        self.trainers[name] = trainer
        return trainer

    def leave(self, name: str) -> None:
        """Train a subject no more, and take its adapter off the base."""
        self.trainers.pop(name).subject.withdraw()
        self.failures.pop(name, None)

    @property
    def active(self) -> dict[str, Trainer]:
        """The trainers that have steps left, and have not failed, by name."""
        return {
            name: trainer
            for name, trainer in self.trainers.items()
            if trainer.step < trainer.total_steps and name not in self.failures
        }

    def step(self) -> dict[str, StepRecord]:
        """Make a step of each active subject in one pass; what each did, by name.

        One whose loss is no longer finite is among the `failures` from then on.

        Raises:
            StateError: no subject is active.
        """
        active = self.active
        if not active:
            raise StateError("no subject has steps left to be made; join() another")
        losses = partial(losses_in_one_pass, [trainer.objective for trainer in active.values()])
        found = accumulate([trainer.stepper for trainer in active.values()], losses)
        records = {}
        for (name, trainer), (instance, prior) in zip(active.items(), found, strict=True):
            try:
                records[name] = trainer.stepper.take(
                    instance, prior, trainer.pruner, trainer.average
                )
            except DivergedError as error:
                self.failures[name] = error
        return records

    def steps(self) -> Iterator[tuple[str, StepRecord]]:
        """Train until no subject is active, a record of each in every step."""
        while self.active:
            yield from self.step().items()
