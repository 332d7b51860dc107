"""Whole trainings of several subjects: as many in one pass as are wanted, the others after them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from svfit_diffusion.errors import LostProcessError, StoppedError, SubjectsError, SVFitError
from svfit_diffusion.training.arguments import AT_ONCE
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.kept_run import KeptRun
from svfit_diffusion.training.photos import photo_files
from svfit_diffusion.training.run import check_run, is_stopping
from svfit_diffusion.training.shared_pass import SharedPass
from svfit_diffusion.training.signals import Interrupts, Stop
from svfit_diffusion.training.step import StepRecord


def train_subjects(
    configs: Mapping[str, TrainingConfig], at_once: int = AT_ONCE
) -> dict[str, Path]:
    """Run whole trainings of several subjects on one base, each kept as `run.train` keeps one.

    A batch holds rows of up to `at_once` of them; where one is done, the next takes its place. One
    that cannot be trained is named, and the others are trained. Ctrl-C and SIGTERM stop all after
    the step under way, with adapters and checkpoints written.

    Args:
        configs: settings by name of the subject; what `fields.COMMON_TO_A_PASS` names is alike.
        at_once: how many in one pass.

    Returns:
        The folder of each one's adapter, by name.

    Raises:
        SubjectsError: some of them could not be trained, and why; the others are.
        ConfigError: the base model cannot be used so.
        StoppedError: it was stopped before the first step.
        LostProcessError: another process of it has ended; what was learned is kept.
    """
    with Interrupts() as interrupts:
        run = SubjectsRun(configs, at_once, interrupts)
        if run.waiting:
            _train(run, next(iter(run.waiting.values()))[0], interrupts)
    if not run.folders and interrupts.noted:
        raise StoppedError("stopped before the first step: nothing is learned yet")
    if run.failures:
        raise SubjectsError(run.failures, len(configs))
    return run.folders


def _train(run: SubjectsRun, config: TrainingConfig, interrupts: Interrupts) -> None:
    """Train all, or until a signal comes, and show how far they are."""
    try:
        with interrupts.at_once():
            shared = SharedPass(config)
    except Stop:
        return
    hidden = not shared.accelerator.is_main_process
    with tqdm(total=len(run.waiting), unit="subject", disable=hidden) as bar:
        for name, news in run.news(shared):
            if isinstance(news, Done):
                bar.update()
            else:
                bar.set_postfix_str(f"{name} {news.step}, loss={news.loss:.4f}")
    if run.waiting:
        print(f"Stopped before these were begun: {', '.join(run.waiting)}")
    shared.accelerator.end_training()


@dataclass(frozen=True)
class Done:
    """A subject has all its steps, and is kept.

    Attributes:
        folder: of its adapter.
        steps: how many it has.
    """

    folder: Path
    steps: int


class SubjectsRun:
    """Subjects in training, and those that wait for a place.

    Args:
        configs: settings by name of the subject.
        at_once: how many there are places for.
        interrupts: when to stop, each with what it has learned.

    Attributes:
        waiting: settings of those that are not begun, and the checkpoint that each goes on from.
        folders: of the adapters of those that are done, or were stopped, by name.
        failures: why some are not trained, by name; each is printed, too.
    """

    def __init__(
        self, configs: Mapping[str, TrainingConfig], at_once: int, interrupts: Interrupts
    ) -> None:
        self.waiting: dict[str, tuple[TrainingConfig, Path | None]] = {}
        self.folders: dict[str, Path] = {}
        self.failures: dict[str, Exception] = {}
        self._at_once = at_once
        self._interrupts = interrupts
        self._runs: dict[str, KeptRun] = {}
        for name, config in configs.items():
            with self._apart(name):
                photo_files(Path(config.instance_data_dir))
                self.waiting[name] = config, check_run(config)

    def news(self, shared: SharedPass) -> Iterator[tuple[str, StepRecord | Done]]:
        """Train all, or until a signal comes: each step of each, once what is due after it is
        written, and the end of each that has all its steps.

        Args:
            shared: the pass; subjects of earlier runs that are still on its base go once some of
                these have come, so that its singular vectors stay.
        """
        for name in shared.trainers.keys() & self.waiting.keys():
            shared.leave(name)
        try:
            yield from self._train(shared)
        except Exception as error:
            for run in self._runs.values():
                run.keep_if_possible(error)
            raise
        # Where it was stopped, some are under way.
        for name in [name for name, run in self._runs.items() if run.trainer.step]:
            self._finish(name)

    def _train(self, shared: SharedPass) -> Iterator[tuple[str, StepRecord | Done]]:
        while self._runs or self.waiting:
            self._fill(shared)
            if shared.active:
                yield from self._step(shared)
            for name in [name for name in self._runs if name not in shared.active]:
                steps = self._runs[name].trainer.total_steps
                if folder := self._finish(name):
                    yield name, Done(folder, steps)
            if is_stopping(shared.accelerator, self._interrupts):
                break

    def _fill(self, shared: SharedPass) -> None:
        """Let those that wait take the places that are free."""
        while self.waiting and len(self._runs) < self._at_once and not self._interrupts.noted:
            name, (config, checkpoint) = next(iter(self.waiting.items()))
            with contextlib.suppress(Stop), self._apart(name):
                with self._interrupts.at_once():
                    run = KeptRun(shared.join(name, config), checkpoint, self._interrupts)
                    run.draw_base()
                self._runs[name] = run
                run.begin()
            if name in self._runs or name in self.failures:
                del self.waiting[name]
        # Last, as those that come share what those that go have on the base.
        for name in shared.trainers.keys() - self._runs.keys():
            shared.leave(name)

    def _step(self, shared: SharedPass) -> Iterator[tuple[str, StepRecord]]:
        for name, record in shared.step().items():
            with self._apart(name):
                self._runs[name].note(record)
            if name in self._runs:
                yield name, record
        for name, error in shared.failures.items():
            if name in self._runs:
                self._drop(name, error)

    def _finish(self, name: str) -> Path | None:
        """Write, and draw with, an adapter that gets no more steps; its folder unless it failed."""
        with self._apart(name):
            self.folders[name] = self._runs[name].finish()
            self._runs.pop(name).end_trackers()
        return self.folders.get(name)

    @contextlib.contextmanager
    def _apart(self, name: str) -> Iterator[None]:
        """What fails within fails for this subject alone."""
        try:
            yield
        except LostProcessError:
            raise
        except (SVFitError, OSError) as error:
            self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        """Train a subject no more; what it has learned is kept."""
        print(f"{name} is not trained: {error}", flush=True)
        self.failures[name] = error
        if run := self._runs.pop(name, None):
            run.keep_if_possible(error)
            run.end_trackers()
