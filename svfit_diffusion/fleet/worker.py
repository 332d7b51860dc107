"""What trains subjects on one machine: it loads a base once, and trains pack after pack on it."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from svfit_diffusion.errors import ConfigError, DataError, SVFitError
from svfit_diffusion.fleet.errand import Errand, share_out
from svfit_diffusion.fleet.scratch import LockedFolder
from svfit_diffusion.fleet.store import Store
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.training.shared_pass import SharedPass
from svfit_diffusion.training.signals import Interrupts
from svfit_diffusion.training.subjects_run import Done, SubjectsRun


@dataclass(frozen=True)
class Seen:
    """How far a worker is.

    Attributes:
        pid: of its process.
        host: that this runs on.
        steps: of each subject under way, by name: those made, and all.
    """

    pid: int
    host: str
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)


class Worker:
    """Trains packs of subjects. One thread calls `train`, and others the rest meanwhile.

    Args:
        address: of the store.
        scratch: folder for what it works with; the system's for temporary files if not given.

    Raises:
        ConfigError, StorageError: the store or the folder cannot be used.
    """

    def __init__(self, address: str, scratch: str | None = None) -> None:
        self._store = Store(address)
        self._scratch = LockedFolder(Path(scratch) if scratch else None)
        self._interrupts = Interrupts()
        self._shared: SharedPass | None = None
        self._group = ""
        self._steps: dict[str, tuple[int, int]] = {}

    def seen(self) -> Seen:
        """How far it is."""
        return Seen(os.getpid(), platform.node(), dict(self._steps))

    def stop(self) -> None:
        """Have it end after the step under way, with what was learned in the store."""
        self._interrupts.noted = True

    def close(self) -> None:
        """Remove what it worked with; call it last."""
        self._scratch.remove()

    def train(self, pack: Sequence[FleetSubject]) -> dict[str, str]:
        """Train subjects of one group in one pass, each from its last checkpoint in the store if
        there is one, and note there each that is done; one that is already is left alone.

        Returns:
            Why some of them could not be trained, by name. Those that it was stopped in are neither
            among them nor done.

        Raises:
            StorageError: what was learned cannot be brought to the store.
        """
        failures: dict[str, str] = {}
        errands: dict[str, Errand] = {}
        started = time.perf_counter()
        # A worker whose command was killed may have had the time to end one.
        done = self._store.finished(subject.name for subject in pack)
        for subject in pack:
            if subject.name in done:
                continue
            try:
                errands[subject.name] = Errand(subject, self._store, self._scratch.path)
            except (ConfigError, DataError) as error:
                failures[subject.name] = str(error)
        self._steps = dict.fromkeys(errands, (0, 0))
        try:
            failures |= self._train(pack[0].group, errands, started)
        finally:
            for errand in errands.values():  # those that were stopped or failed
                errand.leave()
            self._steps = {}
        return failures

    def _train(self, group: str, errands: dict[str, Errand], started: float) -> dict[str, str]:
        """As `train`; those that are done are no longer among the errands."""
        configs = {name: errand.config for name, errand in errands.items()}
        run = SubjectsRun(configs, len(errands), self._interrupts)
        if not run.waiting:
            return {name: str(error) for name, error in run.failures.items()}
        try:
            shared = self._shared_for(group, run)
        except SVFitError as error:
            return {name: str(run.failures.get(name, error)) for name in errands}
        for name, news in run.news(shared):
            now = time.perf_counter()
            share_out(now - started, errands.values())
            started = now
            if isinstance(news, Done):
                errands[name].finish(news.steps)
                del errands[name], self._steps[name]
                continue
            self._steps[name] = news.step, news.total_steps
            if errands[name].has_checkpoint(news.step):
                errands[name].keep()
        return {name: str(error) for name, error in run.failures.items()}

    def _shared_for(self, group: str, run: SubjectsRun) -> SharedPass:
        """The pass on the base, which is loaded unless the subjects before were of this group."""
        if self._shared is None or group != self._group:
            self._shared = None  # its memory first
            gc.collect()
            config, _ = next(iter(run.waiting.values()))
            self._shared = SharedPass(config, show_progress=False)
            self._group = group
        return self._shared
