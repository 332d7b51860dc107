"""The app in a process of its own, so that what it takes is told from what its visitors take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")


@dataclass(frozen=True)
class AppProcess:
    """A running app.

    Attributes:
        url: its address.
        pid: its process.
        folder: of all its files: `adapters`, `outputs`, and `gradio` for what passes by.
    """

    url: str
    pid: int
    folder: Path

    @property
    def pictures(self) -> Path:
        """Folder of what it has drawn."""
        return self.folder / "outputs" / "pictures"

    def memory(self, name: str = "VmRSS") -> float:
        """A line of the process's status in megabytes (Linux): `VmRSS`, `VmHWM` for the peak."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024

    def forget_peak(self) -> None:
        """Let `VmHWM` begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def api(self, route: str) -> str:
        """Address of one of Gradio's routes."""
        return f"{self.url}gradio_api/{route}"

    def post(self, route: str, **options: Any) -> httpx.Response:
        """Send something to one of Gradio's routes."""
        return httpx.post(self.api(route), timeout=300, **options)


@contextmanager
def running(tree: Path, *options: str) -> Iterator[AppProcess]:
    """The app of a tree of this repository, within the block, with files and a cache of its own.

    Args:
        tree: a checkout.
        options: of its command line.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        threads = {name: os.environ[name] for name in _THREADS if name in os.environ}
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "app", "--port", str(port)),
                *("--adapters", f"{folder}/adapters", "--outputs", f"{folder}/outputs", *options),
            ],
            cwd=tree,
            env={
                **{"PATH": "/usr/bin:/bin", "HOME": name, "GRADIO_TEMP_DIR": f"{folder}/gradio"},
                # The tree's own package, whichever is installed.
                **{"PYTHONPATH": str(tree.resolve()), **threads},
            },
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("w"),
            text=True,
        )
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if line.startswith("Open "))
            yield AppProcess(f"http://127.0.0.1:{port}/", process.pid, folder)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # it draws for nobody
                process.kill()
