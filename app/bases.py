"""Base models: what the present one is, which others are at hand, and going over to one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from huggingface_hub import CacheNotFound, scan_cache_dir

from .base_model import BaseModel
from .public_names import public_name
from .settings import SAMPLES

_INDEX = "model_index.json"
_Services = TypeVar("_Services")


def described(base: BaseModel) -> str:
    """What a base model is and what it is good for, in one sentence."""
    side = base.drawing.native_size
    about = f"{public_name(base.source)}, {base.kind}, for pictures of {side} × {side} pixels"
    if _is_sample(base.source):
        return f"{about}: a toy of 155 everyday things in 25 scenes, to try everything with."
    if base.untrainable is not None:
        return f"{about}; it draws, and cannot be trained."
    return f"{about}; it draws and can be taught subjects."


def bases_at_hand() -> list[str]:
    """What can be loaded without a download: the samples, and the pipelines in the hub's cache."""
    samples = sorted(path.parent for path in SAMPLES.glob(f"*/{_INDEX}"))
    return [*map(str, samples), *sorted(_cached())]


def _cached() -> list[str]:
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        repository.repo_id
        for repository in repositories
        if repository.repo_type == "model"
        and any(
            file.file_name == _INDEX for revision in repository.revisions for file in revision.files
        )
    ]


def _is_sample(source: str) -> bool:
    return bool(source) and Path(source).resolve().parent == SAMPLES


class Succession(Generic[_Services]):
    """The services that take the place of the present ones, once there are some.

    Args:
        build: services for another base model, by its source.
    """

    def __init__(self, build: Callable[[str], _Services]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._next: _Services | None = None
        self._is_there = threading.Event()

    def prepare(self, source: str) -> None:
        """Load another base model; if it cannot be loaded, all stays as it is.

        Raises:
            SettingError: it cannot be loaded.
        """
        with self._lock:
            self._next = self._build(source)
            self._is_there.set()

    def wait(self) -> _Services:
        """The services to go on with; waits until there are some."""
        self._is_there.wait()
        with self._lock:
            assert self._next is not None
            return self._next
