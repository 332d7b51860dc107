"""Whole trainings of several subjects: as many in one pass as are wanted, the others after them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from svfit_diffusion.errors import LostProcessError, StoppedError, SubjectsError, SVFitError
from svfit_diffusion.training.arguments import AT_ONCE
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.kept_run import KeptRun
from svfit_diffusion.training.photos import photo_files
from svfit_diffusion.training.run import check_run, is_stopping
from svfit_diffusion.training.shared_pass import SharedPass
from svfit_diffusion.training.signals import Interrupts, Stop


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
    waiting: dict[str, tuple[TrainingConfig, Path | None]] = {}
    failures: dict[str, Exception] = {}
    for name, config in configs.items():
        try:
            photo_files(Path(config.instance_data_dir))
            waiting[name] = config, check_run(config)
        except (SVFitError, OSError) as error:
            failures[name] = error
            print(f"{name} is not trained: {error}", flush=True)
    with Interrupts() as interrupts:
        queue = _Queue(waiting, at_once, interrupts, failures)
        if waiting:
            queue.run()
    if not queue.folders and interrupts.noted:
        raise StoppedError("stopped before the first step: nothing is learned yet")
    if failures:
        raise SubjectsError(failures, len(configs))
    return queue.folders


class _Queue:
    """Subjects in training, and those that wait for a place.

    Args:
        waiting: settings of each, and the checkpoint that it goes on from.
        at_once: how many there are places for.
        interrupts: of the process.
        failures: why some are not trained; added to.

    Attributes:
        folders: of the adapters of those that are done, by name.
    """

    def __init__(
        self,
        waiting: dict[str, tuple[TrainingConfig, Path | None]],
        at_once: int,
        interrupts: Interrupts,
        failures: dict[str, Exception],
    ) -> None:
        self._waiting = waiting
        self._at_once = at_once
        self._interrupts = interrupts
        self._failures = failures
        self._runs: dict[str, KeptRun] = {}
        self.folders: dict[str, Path] = {}

    def run(self) -> None:
        """Train all, or until a signal comes; raises as `train_subjects`."""
        config, _ = next(iter(self._waiting.values()))
        try:
            with self._interrupts.at_once():
                shared = SharedPass(config)
        except Stop:
            return
        try:
            self._train(shared)
        except Exception as error:
            for run in self._runs.values():
                run.keep_if_possible(error)
            raise
        # Where it was stopped, some are under way.
        self._finish([name for name, run in self._runs.items() if run.trainer.step])
        if self._waiting:
            print(f"Stopped before these were begun: {', '.join(self._waiting)}")
        shared.accelerator.end_training()

    def _train(self, shared: SharedPass) -> None:
        hidden = not shared.accelerator.is_main_process
        with tqdm(total=len(self._waiting), unit="subject", disable=hidden) as bar:
            while self._runs or self._waiting:
                self._fill(shared)
                if shared.active:
                    self._step(shared, bar)
                self._finish([name for name in self._runs if name not in shared.active])
                bar.update(len(self.folders) - bar.n)
                if is_stopping(shared.accelerator, self._interrupts):
                    break

    def _fill(self, shared: SharedPass) -> None:
        """Let those that wait take the places that are free."""
        while self._waiting and len(self._runs) < self._at_once and not self._interrupts.noted:
            name, (config, checkpoint) = next(iter(self._waiting.items()))
            with contextlib.suppress(Stop), self._apart(name):
                with self._interrupts.at_once():
                    run = KeptRun(shared.join(name, config), checkpoint, self._interrupts)
                    run.draw_base()
                self._runs[name] = run
                run.begin()
            if name in self._runs or name in self._failures:
                del self._waiting[name]
        # Last, as those that come share what those that go have on the base.
        for name in shared.trainers.keys() - self._runs.keys():
            shared.leave(name)

    def _step(self, shared: SharedPass, bar: Any) -> None:
        records = shared.step()
        for name, record in records.items():
            with self._apart(name):
                self._runs[name].note(record)
        for name, error in shared.failures.items():
            if name in self._runs:
                self._drop(name, error)
        if records:
            losses = [record.loss for record in records.values()]
            steps = ", ".join(f"{name} {record.step}" for name, record in records.items())
            bar.set_postfix_str(f"{steps}, loss={sum(losses) / len(losses):.4f}")

    def _finish(self, names: Sequence[str]) -> None:
        """Write, and draw with, adapters that get no more steps."""
        for name in names:
            with self._apart(name):
                folder = self._runs[name].finish()
                self._runs.pop(name).end_trackers()
                self.folders[name] = folder

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
        self._failures[name] = error
        if run := self._runs.pop(name, None):
            run.keep_if_possible(error)
            run.end_trackers()
