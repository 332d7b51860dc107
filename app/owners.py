"""Whose adapters are whose, over restarts, and a library that goes by it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from pathlib import Path

from svfit_diffusion.errors import StorageError
from svfit_diffusion.files.atomic import write_atomically
from svfit_diffusion.files.storage import writing

from .base_model import BaseModel
from .disk import MEGABYTE, stored, total
from .errors import LibraryError, SettingError
from .library import AdapterLibrary
from .settings import Limits
from .visitors import HOUSE, current_visitor


class Owners:
    """Who owns which adapter, kept in a file; what nobody is known to own is the house's.

    Args:
        path: the file, JSON; made when the first visitor owns something.

    Raises:
        SettingError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        except (ValueError, RecursionError):
            known = None
        if not isinstance(known, dict):
            raise SettingError(
                f"{path} should say who owns which adapter, and does not: mend it, or delete it, "
                f"which gives all of them to everyone."
            )
        self._owners: dict[str, str] = known

    def of(self, name: str) -> str:
        """The owner of an adapter."""
        return self._owners.get(name, HOUSE)

    def set(self, name: str, owner: str) -> None:
        """Give an adapter to an owner, the house too.

        Raises:
            StorageError: it cannot be written, so nothing has changed.
        """
        with self._lock:
            if self.of(name) == owner:
                return
            changed = {other: whose for other, whose in self._owners.items() if other != name}
            if owner != HOUSE:
                changed[name] = owner
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(changed, indent=1, ensure_ascii=False)
            write_atomically(self._path, lambda file: file.write_text(text, "utf-8"))
            self._owners = changed

    def forget(self, name: str) -> None:
        """Note that there is no such adapter any more, where there is room to note it.

        On a full disk things must be deleted all the same; that an owner of nothing is known does
        no harm, for whoever adds one of that name becomes its owner.
        """
        with contextlib.suppress(StorageError):
            self.set(name, HOUSE)


class OwnedLibrary(AdapterLibrary):
    """A library as the present visitor may see and change it.

    The house's adapters are there for all, and changed by the house alone; the house may do
    everything.

    Args:
        folder: as in `AdapterLibrary`.
        base: as in `AdapterLibrary`.
        limits: on an adapter's file, and on adapters of visitors.
        owners: whose they are.
        rule: `owned`, `shared` or `read-only`, as `AppSettings.library` has it.
    """

    def __init__(
        self, folder: Path, base: BaseModel, limits: Limits, owners: Owners, rule: str
    ) -> None:
        super().__init__(folder, base, limits.max_file_bytes)
        self._limits = limits
        self._owners = owners
        self._rule = rule

    def names(self) -> list[str]:
        return [name for name in super().names() if self._may_see(name)]

    def path(self, name: str) -> Path:
        path = super().path(name)
        if not self._may_see(name):
            raise LibraryError(f"There is no adapter named “{name}”.")  # as if there were none
        return path

    def check_open(self) -> None:
        if self._rule == "read-only" and current_visitor().owner != HOUSE:
            raise LibraryError(
                "This library is not to be changed by visitors: it was started with --library "
                "read-only."
            )

    def check_room(self, size: int = 0) -> None:
        me = current_visitor().owner
        if me == HOUSE:
            return
        visitors = {n: path for n, path in self._paths().items() if self._owners.of(n) != HOUSE}
        own = sum(self._owners.of(name) == me for name in visitors)
        if own >= self._limits.max_visitor_adapters:
            raise LibraryError(
                f"You have {own} adapters here, as many as one visitor may: delete one first."
            )
        most = self._limits.max_all_adapter_megabytes * MEGABYTE
        if total(stored(visitors.values())) + size > most:
            raise LibraryError("The library has no room for more adapters of visitors.")

    def rename(self, name: str, new_name: str) -> str:
        self._check_own(name)
        renamed = super().rename(name, new_name)
        if renamed != name:
            self._owners.forget(name)
        return renamed

    def delete(self, name: str) -> None:
        self._check_own(name)
        super().delete(name)
        self._owners.forget(name)

    def restore(self, name: str) -> str:
        self.check_room()
        return super().restore(name)

    @property
    def _deleted(self) -> Path:
        """Of each visitor apart: nobody's is replaced by what another has called the same."""
        me = current_visitor().owner
        aside = super()._deleted
        return aside if me == HOUSE else aside / hashlib.sha256(me.encode()).hexdigest()[:32]

    def _claim(self, name: str) -> None:
        self._owners.set(name, current_visitor().owner)

    def _hand_over(self, name: str, new_name: str) -> None:
        # Before there is one of the new name, or for a moment it would be everyone's.
        self._owners.set(new_name, self._owners.of(name))

    def _may_see(self, name: str) -> bool:
        return self._owners.of(name) == HOUSE or self._may_change(name)

    def _may_change(self, name: str) -> bool:
        me = current_visitor().owner
        return me == HOUSE or self._rule != "owned" or self._owners.of(name) == me

    def _check_own(self, name: str) -> None:
        self.path(name)
        self.check_open()
        if not self._may_change(name):
            raise LibraryError(f"“{name}” is there for everyone, so no visitor may change it.")
