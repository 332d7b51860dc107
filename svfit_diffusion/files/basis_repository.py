"""Basis files in a hub repository: which it has, bringing them here, putting them there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    ModelCard,
    ModelCardData,
    create_commit,
    create_repo,
    file_exists,
    model_info,
    snapshot_download,
)
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HFValidationError,
    HTTPError,  # of httpx or of requests, as the hub's client has it
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from svfit_diffusion.errors import CacheError

FOLDER = "bases"
"""Where in a repository they are."""
_CARD = "README.md"


@dataclass(frozen=True)
class RepositoryFiles:
    """Files of a repository at one commit.

    Attributes:
        repo_id: the repository.
        commit: its hash.
        sizes: in bytes, by name; 0 where the hub does not say.
    """

    repo_id: str
    commit: str
    sizes: dict[str, int]


def files_of(
    repo_id: str, revision: str | None = None, token: str | None = None
) -> RepositoryFiles:
    """The files in the folder of bases of a repository, by their names there.

    Raises:
        CacheError: the hub is not reached, or has no such repository or revision.
    """
    with _one_sentence(repo_id):
        info = model_info(repo_id, revision=revision, files_metadata=True, token=token)
    inside = [(Path(file.rfilename), file.size or 0) for file in info.siblings or []]
    sizes = {path.name: size for path, size in inside if path == Path(FOLDER) / path.name}
    return RepositoryFiles(repo_id, info.sha or "main", sizes)


def download(
    files: RepositoryFiles, names: Collection[str], folder: Path, token: str | None = None
) -> None:
    """Bring some files into the folder of bases in a folder of one's own.

    Raises:
        CacheError: the hub is not reached, or fails on the way; what has come is whole.
    """
    with _one_sentence(files.repo_id):
        snapshot_download(
            files.repo_id,
            revision=files.commit,
            allow_patterns=[f"{FOLDER}/{name}" for name in names],
            local_dir=folder,
            token=token,
        )


def upload(
    repo_id: str,
    files: Mapping[str, Path],
    card: ModelCard,
    *,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Put basis files into a repository in one commit, and return its address.

    Args:
        repo_id: the repository; made if there is none.
        files: by the name they get.
        card: for a repository without one; another's stays.
        private: whether a new repository is.
        token: for the hub.

    Raises:
        CacheError: the hub is not reached, or refuses.
    """
    with _one_sentence(repo_id):
        address = create_repo(repo_id, exist_ok=True, private=private, token=token)
        operations = [CommitOperationAdd(f"{FOLDER}/{n}", path) for n, path in files.items()]
        if not file_exists(address.repo_id, _CARD, token=token):
            operations.append(CommitOperationAdd(_CARD, str(card).encode()))
        create_commit(
            address.repo_id, operations, commit_message="SVFit singular vectors", token=token
        )
    return str(address)


def basis_card(repo_id: str, base_model: str, format: str, files: int, size: int) -> ModelCard:
    """The card of a repository of bases.

    Args:
        repo_id: how users will pull them.
        base_model: id or path of the base model.
        format: of the files.
        files: their number.
        size: their bytes.
    """
    data = ModelCardData(
        base_model=None if Path(base_model).exists() else base_model, tags=["svfit"]
    )
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {repo_id}

Singular vectors of `{base_model}` for [SVFit](https://arxiv.org/abs/2409.05926) adapters, computed
ahead: {files:,} weights, {size:,} bytes, of the format {format}. Whoever pulls them need not
compute them:

```sh
svfit basis pull {repo_id} --base {base_model}
```

`{FOLDER}/` has a file for each weight, named by the SHA-256 of its float16 values. The weights can
be computed back from them, so the licence of the base model is theirs too.
"""
    )


@contextmanager
def _one_sentence(repo_id: str) -> Iterator[None]:
    """Say in one sentence what the hub's client says in many."""
    try:
        yield
    except HFValidationError:
        raise CacheError(f"{repo_id!r} is no id of a repository, such as 'user/bases'") from None
    except RevisionNotFoundError as error:
        raise CacheError(f"the repository {repo_id!r} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise CacheError(
            f"the hub shows no repository {repo_id!r}; if it is private or gated, give a token "
            f"that may read it"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise CacheError(
            f"the hub was not reached for {repo_id!r}, or refused ({first_line})"
        ) from error
