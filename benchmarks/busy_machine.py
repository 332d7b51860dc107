"""Training steps on a machine that other programs use too, by how torch's threads wait.

    python -m benchmarks.busy_machine

A step waits for all of torch's threads, and a thread that another program has put off its core is
waited for by spinning, on the core that the program wants. Each way of waiting trains Toybox in a
process of its own, alone, beside a program of one thread, and beside one of two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import ROOT, Row, print_table, write_report

WAYS: Mapping[str, Mapping[str, str]] = {
    "as it is": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
_LOADS = {
    "alone": "",
    "beside one thread": "while True: pass",
    "beside two threads": (
        "import torch; torch.set_num_threads(2); a = torch.rand(1024, 1024)\n"
        "while True: a = torch.nn.functional.normalize(a @ a)"
    ),
}
_ENDLESS = 10**6


def main() -> None:
    """Measure, print and write the report, or be one of the processes that train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="Of each measurement, at least.")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        print(seconds_of_a_step(given.seconds))
        return
    rows: list[Row] = []
    for load, program in _LOADS.items():
        with running(program):
            found = {way: _measured(own, given.seconds) for way, own in WAYS.items()}
        rows += [
            {"load": load, "way": way, "seconds": s, "ratio": s / found["as it is"]}
            for way, s in found.items()
        ]
    print_table(rows, ("load", "way", "seconds", "ratio"))
    print(write_report("busy_machine", rows))


@contextmanager
def running(program: str) -> Iterator[None]:
    """While within, a program of Python runs beside us, if one is given."""
    process = subprocess.Popen([sys.executable, "-c", program]) if program else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def seconds_of_a_step(least: float) -> float:
    """Mean over the steps of a training of Toybox that takes at least so many seconds."""
    from svfit_diffusion.training.config import TrainingConfig
    from svfit_diffusion.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            pretrained_model_name_or_path=str(ROOT / "samples" / "toybox"),
            instance_data_dir=str(ROOT / "samples" / "subjects" / "pug"),
            instance_prompt="a photo of sks dog",
            output_dir=str(Path(folder) / "out"),
            max_train_steps=_ENDLESS,
        )
        steps = Trainer(config, show_progress=False).steps()
        next(steps)
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < least:
            next(steps)
            count += 1
    return spent / count


def _measured(settings: Mapping[str, str], least: float) -> float:
    """Seconds of a step in a process of its own, with these variables and none of the others."""
    environment = {key: value for key, value in os.environ.items() if key not in _SETTINGS}
    command = [sys.executable, "-m", "benchmarks.busy_machine", "--train", "--seconds", str(least)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, **settings},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(result.stdout.split()[-1])


if __name__ == "__main__":
    main()
