"""A fleet in which processes are killed: are all subjects done, none twice, each as if alone?

    python -m benchmarks.fleet_drill

Subjects of Toybox on two workers of this machine, by `svfit fleet train`. The command itself is
killed (SIGKILL) once a subject is done, and given again; then the worker in one place is killed
twice, each time when its pass is beyond a checkpoint. In the end each adapter is compared with that
of a run alone, and the command is given once more, which has nothing left to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.report import ROOT, write_report
from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter
from svfit_diffusion.fleet.driver import Died, Failed, Finished, Fleet, Looked
from svfit_diffusion.fleet.store import Store
from svfit_diffusion.fleet.subjects import FleetSubject, parse_fleet
from svfit_diffusion.training.run import train

_FOLDERS = sorted(p for p in (ROOT / "samples" / "subjects").iterdir() if p.is_dir())
_PLACE = 0  # of the worker that is killed
_KILLS = 2
_TOLERANCE = 1e-3  # of the norm: sums in another order, which Adam magnifies


def main() -> None:
    """Do it, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="Of each subject.")
    parser.add_argument("--checkpointing_steps", type=int, default=2)
    parser.add_argument("--subjects_per_pass", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = _words(Path(folder), given)
        row = drill(words, Path(folder))
    for name, value in row.items():
        print(f"{name.replace('_', ' ')}: {value}")
    print(write_report("fleet_drill", [row], settings=vars(given)))


def _words(folder: Path, given: argparse.Namespace) -> list[str]:
    """The words of `svfit fleet train`."""
    lines = [
        {
            "name": f"subject-{number}",
            "instance_data_dir": str(_FOLDERS[number % len(_FOLDERS)]),
            "instance_prompt": "a photo of sks thing",
            "seed": number,
        }
        for number in range(given.subjects)
    ]
    file = folder / "subjects.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return [
        *(str(file), "--output", str(folder / "out")),
        *("--pretrained_model_name_or_path", str(ROOT / "samples" / "toybox")),
        *("--workers=2", "--cpus_per_worker=1", f"--subjects_per_pass={given.subjects_per_pass}"),
        *(f"--max_train_steps={given.steps}", "--train_batch_size=1"),
        *(f"--checkpointing_steps={given.checkpointing_steps}", "--lr_warmup_steps=0"),
        *("--num_validation_images=1", "--num_inference_steps=1"),
        *("--scratch", str(folder / "scratch")),
    ]


def drill(words: list[str], folder: Path) -> dict[str, Any]:
    """Figures of a fleet whose processes are killed.

    Args:
        words: of the command.
        folder: where they have it write.
    """
    started = time.perf_counter()
    subjects, settings = parse_fleet(words)
    store = Store(settings.output)
    lingering = _kill_command(words, store, [subject.name for subject in subjects])
    before = store.finished(subject.name for subject in subjects)
    print(f"The command was killed with {len(before)} subjects done", flush=True)
    watch = _Watch(folder)
    fleet = Fleet(subjects, settings)
    for news in fleet.news():
        watch.note(news)
    seconds = time.perf_counter() - started
    records = fleet.ledger.records
    again = list(Fleet(subjects, settings).news())
    distances = [_distance(folder, subject) for subject in subjects]
    return {
        "subjects": len(subjects),
        "done": len(records),
        "done_before_the_command_was_killed": len(before),
        "done_twice": _twice(watch, before, records) + len(again),
        "failed": len(fleet.ledger.failures),
        "kills_of_a_worker": watch.kills,
        "begun_more_than_once": sum(record["begun"] > 1 for record in records.values()),
        "steps_beyond_checkpoints_lost_by_that": watch.lost,
        "seconds_for_which_workers_outlived_the_command": round(lingering, 1),
        "largest_distance_from_a_run_alone": max(distances),
        "all_as_alone": max(distances) <= _TOLERANCE,
        "seconds": round(seconds, 1),
        "worker_seconds": round(sum(record["worker_seconds"] for record in records.values()), 1),
    }


def _kill_command(words: list[str], store: Store, names: list[str]) -> float:
    """Run the command until a subject is done, and kill it with no chance to say good-bye.

    Returns:
        After how many seconds its workers had ended.
    """
    command = [sys.executable, "-m", "svfit_diffusion.cli.main", "fleet", "train", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not store.finished(names):
            assert process.poll() is None, "the command has ended by itself"
            time.sleep(0.2)
        others = psutil.Process(process.pid).children(recursive=True)
        workers = [other for other in others if other.name().startswith("ray::Worker")]
        assert workers
        process.kill()
    killed = time.perf_counter()
    _, left = psutil.wait_procs(workers, timeout=60)
    assert not left, f"{left} have outlived the command"
    return time.perf_counter() - killed


@dataclass
class _Watch:
    """What happens in a fleet, and a worker that is killed.

    Attributes:
        folder: where it works.
        done: how often each subject was.
        kills: of the worker.
        lost: steps beyond its last checkpoints that it had made.
    """

    folder: Path
    done: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    lost: int = 0
    _last: int = 0

    def note(self, news: object) -> None:
        """Count, and kill where it is time."""
        if isinstance(news, Looked) and news.worker == _PLACE and news.seen.pid != self._last:
            steps = {name: step for name, (step, _) in news.seen.steps.items()}
            beyond = any(step > self._kept(name) > 0 for name, step in steps.items())
            if self.kills < _KILLS and beyond:
                os.kill(news.seen.pid, signal.SIGKILL)
                self._last = news.seen.pid
                self.kills += 1
        elif isinstance(news, Finished):
            self.done[news.name] += 1
            print(f"{news.name} is done, {len(self.done)} by now", flush=True)
        elif isinstance(news, Died):
            print(news, flush=True)
            self.lost += sum(self._made(name) - self._kept(name) for name in news.names)
        elif isinstance(news, Failed):
            print(news, flush=True)

    def _kept(self, name: str) -> int:
        """The step of a subject's last checkpoint."""
        found = (self.folder / "out" / name).glob("checkpoint-*/SHA256SUMS")
        return max((int(path.parent.name.partition("-")[2]) for path in found), default=0)

    def _made(self, name: str) -> int:
        """How many steps of a subject were made, by the log that a dead worker has left."""
        logs = (self.folder / "scratch").glob(f"*/runs/{name}/training_log.jsonl")
        return max((log.read_text().count("\n") for log in logs), default=0)


def _twice(watch: _Watch, before: dict[str, Any], records: dict[str, Any]) -> int:
    """How many subjects were done more than once, by what was said of them and by their records."""
    said = sum(count > 1 for count in watch.done.values())
    return said + sum(name in watch.done or records[name] != own for name, own in before.items())


def _distance(folder: Path, subject: FleetSubject) -> float:
    """Of a subject's shifts from those of a run alone, relative to these."""
    with (
        Path(os.devnull).open("w") as silence,
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
    ):
        alone = train(replace(subject.config, output_dir=str(folder / "alone" / subject.name)))
    expected, found = _shifts(alone), _shifts(folder / "out" / subject.name)
    return float((found - expected).norm() / expected.norm())


def _shifts(folder: Path) -> torch.Tensor:
    adapter = read_adapter(folder / WEIGHTS_NAME)
    return torch.cat([delta for own in adapter.deltas.values() for delta in own.values()])


if __name__ == "__main__":
    main()
