"""The adapters that a pipeline holds while it serves: all of a library, or those last asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from svfit_diffusion.adapters.components import models_of, remove_adapters
from svfit_diffusion.adapters.loading import put_adapter
from svfit_diffusion.files.adapter import Adapter
from svfit_diffusion.serving.library import AdapterLibrary

_TRIED = "an upload"


@dataclass(frozen=True)
class Wanted:
    """An adapter that a picture needs.

    Attributes:
        name: in the library.
        version: of its file.
        adapter: what is in the file, where the shelf did not have it.
    """

    name: str
    version: str
    adapter: Adapter | None

    @property
    def label(self) -> str:
        """What the pipeline calls it: a file that is replaced becomes another adapter."""
        return f"{self.name}@{self.version}"


class Shelf:
    """Adapters on a pipeline, none of them active.

    `fetch` may be called by any thread, so that what is slow about a far library is done beside
    the drawing; all else by the thread that draws.

    Args:
        pipe: whose models they are put on.
        library: where they come from.
        max_bytes: most bytes of shifts that are kept; those not asked for longest go first. None
            keeps all.
    """

    def __init__(self, pipe: Any, library: AdapterLibrary, max_bytes: int | None = None) -> None:
        self._models = models_of(pipe)
        self._library = library
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._bytes: OrderedDict[str, int] = OrderedDict()
        self._latest: dict[str, str] = {}
        self._retired: set[str] = set()
        self.fetched = 0
        self.found = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._bytes)

    @property
    def bytes(self) -> int:
        """Bytes of their shifts."""
        with self._lock:
            return sum(self._bytes.values())

    def fetch(self, name: str) -> Wanted:
        """An adapter of the library, read where it is not here.

        Raises:
            AdapterNameError: there is none of that name.
            CheckpointError: its file is damaged.
            StorageError: the library cannot be reached.
        """
        wanted = Wanted(name, self._library.version(name), None)
        with self._lock:
            if wanted.label in self._bytes:
                self.found += 1
                return wanted
            self.fetched += 1
        return Wanted(name, wanted.version, self._library.read(name))

    def put(self, wanted: Wanted) -> str:
        """Have an adapter on the pipeline, and return what it is called there.

        Raises:
            BaseMismatchError: it was trained on another base model.
            CheckpointError: it does not fit the pipeline's layers.
        """
        label = wanted.label
        if label not in self._bytes:
            adapter = wanted.adapter or self._library.read(wanted.name)
            put_adapter(self._models, adapter, label, show_progress=False)
            with self._lock:
                self._bytes[label] = _bytes_of(adapter)
        before = self._latest.get(wanted.name, label)
        if before != label:
            self._retired.add(before)
        self._latest[wanted.name] = label
        with self._lock:
            self._bytes.move_to_end(label)
        return label

    def make_room(self) -> None:
        """Take off what was replaced, and what is over the bound but for the one last asked for."""
        with self._lock:
            surplus = [label for label in self._retired if self._bytes.pop(label, None)]
            left = sum(self._bytes.values())
            while self._max_bytes is not None and left > self._max_bytes and len(self._bytes) > 1:
                label, size = self._bytes.popitem(last=False)
                left -= size
                surplus.append(label)
        self._retired.clear()
        remove_adapters(self._models, surplus)

    def drop(self, name: str) -> None:
        """Take off an adapter that is no longer in the library."""
        label = self._latest.pop(name, None)
        if label is not None:
            self._retired.add(label)
            self.make_room()

    def try_on(self, adapter: Adapter) -> None:
        """Make sure that an adapter fits the pipeline; nothing is kept of it.

        Raises:
            BaseMismatchError: it was trained on another base model.
            CheckpointError: it does not fit the pipeline's layers.
        """
        put_adapter(self._models, adapter, _TRIED, show_progress=False)
        remove_adapters(self._models, [_TRIED])

    def fill(self, names: Iterable[str]) -> dict[str, Exception]:
        """Put adapters of the library on the pipeline; why not, by name of those that are not."""
        failures = {}
        for name in names:
            try:
                self.put(self.fetch(name))
            except Exception as error:  # one of a thousand is no reason not to serve the others
                failures[name] = error
        return failures


def _bytes_of(adapter: Adapter) -> int:
    tensors = [delta for deltas in adapter.deltas.values() for delta in deltas.values()]
    tensors += [word.vectors for word in adapter.words.values()]
    return sum(tensor.nbytes for tensor in tensors)
