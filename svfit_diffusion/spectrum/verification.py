"""Whether basis files are right, and are of the weights they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from svfit_diffusion.spectrum.accuracy import check_belongs, check_numbers
from svfit_diffusion.spectrum.basis_file import read_basis
from svfit_diffusion.spectrum.cache import BaseWeights
from svfit_diffusion.spectrum.stored import StoredBasis
from svfit_diffusion.spectrum.workers import workers


def flaw(path: Path, digest: str, matrix: Tensor | None = None) -> str | None:
    """What is wrong with a basis file, in words; None if nothing is.

    Args:
        path: the file.
        digest: of the weight that its basis should be of.
        matrix: that weight, `(d_out, d_in)` float16; if given, vectors are checked against it, on
            its device.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        basis = read_basis(path, digest)
        check_numbers(basis)
        if matrix is not None:
            check_belongs(basis.to(matrix.device), matrix)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        return str(error)
    basis.release()
    return None


def flaws(
    stored: Sequence[StoredBasis],
    base: BaseWeights | None = None,
    *,
    device: torch.device | None = None,
    show_progress: bool = True,
) -> dict[StoredBasis, str]:
    """What is wrong with basis files; those that are right, or gone meanwhile, are left out.

    Args:
        stored: the files.
        base: weights; the files of theirs are checked against them.
        device: where that is done; by default where a weight is.
        show_progress: show a progress bar.
    """

    def check(file: StoredBasis) -> str | None:
        matrix = base.matrix_of(file.digest) if base else None
        if matrix is not None:
            matrix = matrix.to(device or matrix.device)
        try:
            return flaw(file.path, file.digest, matrix)
        except FileNotFoundError:
            return None

    with workers(torch.get_num_threads()) as pool:
        checked = tqdm(
            zip(stored, pool.map(check, stored), strict=True),
            desc="Checking",
            total=len(stored),
            disable=not (show_progress and stored),
        )
        return {file: words for file, words in checked if words is not None}
