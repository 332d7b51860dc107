"""Bases from and for others, by a hub repository, so that each is computed only once at all."""

from __future__ import annotations

import tempfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from svfit_diffusion.errors import CacheError
from svfit_diffusion.files.atomic import make_folder, write_atomically
from svfit_diffusion.files.basis_repository import (
    FOLDER,
    RepositoryFiles,
    basis_card,
    download,
    files_of,
    upload,
)
from svfit_diffusion.spectrum.basis_file import FORMAT, basis_path, digest_in
from svfit_diffusion.spectrum.cache import BaseWeights, cache_directory
from svfit_diffusion.spectrum.room import require_room
from svfit_diffusion.spectrum.stored import PULLED, StoredBasis, stored_bases
from svfit_diffusion.spectrum.verification import flaws

_FOREIGN = "it says that it is something else than a basis"


@dataclass(frozen=True)
class Moved:
    """What was pushed or pulled.

    Attributes:
        files: how many.
        size: their bytes.
        present: how many were there before, and not moved.
        flaws: what is wrong with those that were left out, by file name.
    """

    files: int
    size: int
    present: int
    flaws: dict[str, str]


def push_bases(
    repo_id: str,
    base: BaseWeights,
    base_model: str,
    *,
    private: bool = False,
    token: str | None = None,
    cache: Path | None = None,
) -> Moved:
    """Upload the cached bases of some weights, those that prove to be right, in one commit.

    Args:
        repo_id: a hub repository; made if there is none.
        base: the weights.
        base_model: id or path of the model they are of, for the card.
        private: whether a new repository is.
        token: for the hub.
        cache: cache folder, `cache_directory()` by default.

    Raises:
        CacheError: there is none, or the hub is not reached or refuses.
    """
    folder = cache_directory() if cache is None else cache
    stored = _stored(folder, set(base.digests.values()))
    wrong = flaws(stored, base)
    files = [file for file in stored if file not in wrong]
    if not files:
        raise CacheError(
            f"{folder} has no usable basis of {base_model}; compute them first, by svfit basis "
            f"compute {base_model}"
        )
    size = sum(file.size for file in files)
    card = basis_card(repo_id, base_model, FORMAT, len(files), size)
    paths = {file.path.name: file.path for file in files}
    upload(repo_id, paths, card, private=private, token=token)
    return Moved(len(files), size, 0, {file.path.name: words for file, words in wrong.items()})


def pull_bases(
    repo_id: str,
    base: BaseWeights | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache: Path | None = None,
) -> Moved:
    """Download bases into the cache, those that it lacks and that are right.

    Without the weights, a file can prove no more than that it is whole and in order.

    Args:
        repo_id: a hub repository.
        base: weights; only their bases are downloaded, and checked against them.
        revision: of the repository.
        token: for the hub.
        cache: cache folder, `cache_directory()` by default.

    Raises:
        CacheError: it has none of them, the disk has no room, or the hub is not reached or fails on
            the way; what has come then is kept.
        StorageError: the cache cannot be written.
    """
    folder = cache_directory() if cache is None else cache
    there = files_of(repo_id, revision, token)
    offered = _offered(there, base)
    present = _stored(folder, offered)
    wrong = flaws(present, base)
    usable = {file.digest for file in present if file not in wrong}
    wanted = {digest: name for digest, name in offered.items() if digest not in usable}
    require_room(folder, sum(there.sizes[name] for name in wanted.values()))
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=PULLED[0], suffix=PULLED[1]) as name:
        try:
            if wanted:
                download(there, wanted.values(), Path(name), token)
        finally:
            arrived = _stored(Path(name) / FOLDER, wanted)
            wrong = flaws(arrived, base)
            good = [file for file in arrived if file not in wrong]
            for file in good:
                write_atomically(basis_path(folder, file.digest), file.path.replace)
    left_out = dict.fromkeys(set(wanted.values()) - {file.path.name for file in arrived}, _FOREIGN)
    left_out |= {file.path.name: words for file, words in wrong.items()}
    return Moved(len(good), sum(file.size for file in good), len(usable), left_out)


def _offered(there: RepositoryFiles, base: BaseWeights | None) -> dict[str, str]:
    """The names of a repository's bases by digest; only those of some weights, if given.

    Raises:
        CacheError: there is none.
    """
    offered = {digest: name for name in there.sizes if (digest := digest_in(name))}
    if not offered:
        raise CacheError(
            f"{there.repo_id!r} has no bases; expected files {FOLDER}/<digest>.safetensors, as "
            f"svfit basis push makes them"
        )
    if base is None:
        return offered
    known = set(base.digests.values())
    own = {digest: name for digest, name in offered.items() if digest in known}
    if not own:
        raise CacheError(
            f"{there.repo_id!r} has {len(offered):,} bases, but none of this base model's weights"
        )
    return own


def _stored(folder: Path, digests: Container[str]) -> list[StoredBasis]:
    return [file for file in stored_bases(folder) if file.digest in digests]
