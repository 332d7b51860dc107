"""What there is to see of a training, while it runs and after."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from PIL import Image

from svfit_diffusion.training import TrainingConfig


class Stage(Enum):
    """How far a training is."""

    PREPARING = "preparing"
    TRAINING = "training"
    SAVING = "saving"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    ELSEWHERE = "elsewhere"
    """Another visitor's is under way, of which there is nothing to see."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen, or nothing that one has a say in."""
        return self in (Stage.FINISHED, Stage.STOPPED, Stage.FAILED, Stage.ELSEWHERE)


@dataclass(frozen=True)
class Sample:
    """Pictures drawn while training.

    Attributes:
        step: optimizer steps done; 0 is the base model.
        images: pictures of the validation prompt, from the same seeds every time.
    """

    step: int
    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class TrainingStatus:
    """What there is to see of a training.

    Attributes:
        run: tells one training from every other.
        revision: how often anything here has changed.
        adapter_name: name asked for; once the adapter is in the library, the name it has there.
        config: settings.
        photos: thumbnails of the squares learned.
        stage: how far it is.
        message: one sentence on what goes on or came of it.
        total_steps: optimizer steps of the whole run.
        losses: loss of each step done.
        drifts: `‖δ‖ / ‖σ⁰‖` after each step done.
        samples: pictures drawn so far.
        seconds_left: estimate for the remaining steps; None while nothing is known.
        kept: whether the adapter is in the library.
    """

    run: str
    adapter_name: str
    config: TrainingConfig
    photos: tuple[Image.Image, ...]
    stage: Stage
    message: str
    total_steps: int
    losses: tuple[float, ...] = ()
    drifts: tuple[float, ...] = ()
    samples: tuple[Sample, ...] = ()
    seconds_left: float | None = None
    kept: bool = False
    revision: int = 0

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)

    def from_elsewhere(self) -> TrainingStatus:
        """What others than its owner may know: whether it goes on, and how long."""
        left = self.seconds_left
        when = "after it" if left is None else f"in about {max(1, round(left / 60))} min"
        return TrainingStatus(
            run=self.run,
            adapter_name="",
            config=TrainingConfig(),
            photos=(),
            stage=Stage.ELSEWHERE,
            message="Yours can begin."
            if self.stage.is_over
            else f"Another visitor's training is under way; yours can begin {when}.",
            total_steps=self.total_steps,
            revision=self.revision,
        )
