"""A hub in a folder, for `files.basis_repository`."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Address(str):
    """As `huggingface_hub.RepoUrl`."""

    repo_id: str


class FakeHub:
    """Repositories as folders below one, each with one commit.

    Attributes:
        root: the folder.
        calls: names and keyword arguments of all calls.
        fails_after: of a download, how many files come before the connection breaks.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails_after: int | None = None

    def files(self, repo_id: str) -> dict[str, Path]:
        """By the name that the repository has them under."""
        folder = self.root / repo_id
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in paths}

    def asked(self, name: str) -> list[dict[str, Any]]:
        """The keyword arguments of the calls of a function."""
        return [kwargs for called, kwargs in self.calls if called == name]

    def create_repo(self, repo_id: str, **kwargs: Any) -> Address:
        self.calls.append(("create_repo", kwargs))
        (self.root / repo_id).mkdir(parents=True, exist_ok=kwargs["exist_ok"])
        address = Address(f"https://hub/{repo_id}")
        address.repo_id = repo_id
        return address

    def file_exists(self, repo_id: str, filename: str, **kwargs: Any) -> bool:
        self.calls.append(("file_exists", kwargs))
        return filename in self.files(repo_id)

    def create_commit(self, repo_id: str, operations: list[Any], **kwargs: Any) -> None:
        self.calls.append(("create_commit", kwargs))
        for operation in operations:
            path = self.root / repo_id / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                path.write_bytes(file.read())

    def model_info(self, repo_id: str, **kwargs: Any) -> Any:
        self.calls.append(("model_info", kwargs))
        if not (self.root / repo_id).is_dir():
            # Its constructor takes a response, of another library in each version.
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        if kwargs["revision"] not in (None, "main", COMMIT):
            raise RevisionNotFoundError.__new__(RevisionNotFoundError)
        siblings = [
            SimpleNamespace(rfilename=name, size=path.stat().st_size)
            for name, path in self.files(repo_id).items()
        ]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def snapshot_download(self, repo_id: str, **kwargs: Any) -> str:
        self.calls.append(("snapshot_download", kwargs))
        assert kwargs["revision"] == COMMIT  # not a branch, which could move meanwhile
        wanted = [
            name
            for name in sorted(self.files(repo_id))
            if any(fnmatch.fnmatch(name, pattern) for pattern in kwargs["allow_patterns"])
        ]
        for count, name in enumerate(wanted):
            if count == self.fails_after:
                raise ConnectionError("the line is cut\nand this is a second line")
            path = Path(kwargs["local_dir"]) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / repo_id / name, path)
        return str(kwargs["local_dir"])
