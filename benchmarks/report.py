"""Results as JSON: rows, and what is needed to measure them again."""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from svfit_diffusion.files.atomic import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / "benchmarks" / ".cache"
"""What takes long to make and is not a result; git ignores it."""

Row = dict[str, Any]

_PACKAGES = ("svfit-diffusion", "torch", "diffusers", "transformers", "accelerate", "peft")


def write_report(name: str, rows: Sequence[Mapping[str, Any]], **details: Any) -> Path:
    """Write `results/NAME.json`, whole or not at all.

    Args:
        name: of the benchmark.
        rows: one per thing measured.
        details: further entries of the report, such as its settings.
    """
    report = {
        "benchmark": name,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}")
        ),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": machine(),
        **details,
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, functools.partial(Path.write_text, data=text, encoding="utf-8"))
    return path


def read_report(name: str) -> dict[str, Any]:
    """What `write_report` last wrote under that name; empty if nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print some columns of the rows, aligned."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [list(columns), *cells]:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


@functools.cache
def commit() -> str:
    """What is checked out; empty where there is no git."""
    return _git("rev-parse", "HEAD")


def machine() -> Row:
    """The processor, the number of its cores, the threads in use, and the GPU if there is one."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def _versions() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
