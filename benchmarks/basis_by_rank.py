"""Leading triplets alone against all of them: time, memory, bytes, and errors of shifts.

    python -m benchmarks.basis_by_rank
    python -m benchmarks.basis_by_rank --device cuda --matrices 266

Matrices are random, of FLUX.1's sizes: with singular values that hardly fall (of normal numbers) or
that fall as those of trained weights do. No real checkpoint is read. A solver works on one thread,
so that processor seconds are of one core, whatever else a machine does; on a GPU seconds are of one
matrix at a time. Errors are those of the shift by a random δ, `‖ΔW − ΔW'‖ / ‖δ‖`, against all
triplets in float64. The first rows load as many weights as `--matrices` says into an empty cache,
as training does, with all threads; what 266 take is extrapolated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import memory_status, peak_bytes_of, seconds_of, trim_memory
from benchmarks.report import Row, write_report
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.basis_file import basis_bytes
from svfit_diffusion.spectrum.cache import load_bases, read_base
from svfit_diffusion.spectrum.leading import leading_basis
from svfit_diffusion.spectrum.solver import singular_basis

SIDE, WIDE = 3072, 12288
LAYERS = 266
"""Of FLUX.1's attention, each a matrix of `SIDE²`."""
RANKS = (16, 64, 256)

Solver = Callable[[Tensor, int], Basis | None]


def random_matrix(d_out: int, d_in: int, spectrum: str, device: str, seed: int = 0) -> Tensor:
    """A float16 matrix `(d_out, d_in)`.

    Args:
        d_out: rows.
        d_in: columns.
        spectrum: `flat`: normal numbers; `falling`: rows that fall as `(1 + i/8)^−½`; `steep`: rows
            that fall by e every 400.
        device: where it is made.
        seed: of the numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.arange(d_out, device=device)[:, None]
    scale = {
        "flat": torch.ones_like(rows, dtype=torch.float32),
        "falling": (1 + rows / 8) ** -0.5,
        "steep": torch.exp(-rows / 400),
    }[spectrum]
    numbers = torch.randn(d_out, d_in, generator=generator, device=device)
    return (numbers * scale / d_in**0.5).half()


def low_rank(matrix: Tensor, rank: int) -> Basis:
    """`torch.svd_lowrank`, which gives a subspace, and no proof."""
    u, sigma, v = torch.svd_lowrank(matrix.float(), q=rank, niter=2)
    return Basis(u.mT, v.mT, sigma, is_complete=False)


def lobpcg(matrix: Tensor, rank: int) -> Basis:
    """`torch.lobpcg` on the Gram matrix in float64, until its residuals are below 1e-9."""
    exact = matrix.double()
    generator = torch.Generator(matrix.device).manual_seed(0)
    start = torch.randn(
        len(matrix), rank, generator=generator, device=matrix.device, dtype=torch.float64
    )
    values, vectors = torch.lobpcg(exact @ exact.mT, X=start, niter=200, tol=1e-9)
    sigma = values.sqrt()
    return Basis(vectors.mT, (vectors.mT @ exact) / sigma[:, None], sigma, is_complete=False)


SOLVERS: dict[str, Solver] = {
    "leading": leading_basis,
    "svd_lowrank": low_rank,
    "lobpcg": lobpcg,
}


def shift_error(found: Basis, right: Basis) -> float:
    """How far the shifts of two bases by one random δ are apart, as a share."""
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(found.rank, generator=generator).double().to(found.u.device)
    one, other = (
        (basis.u[: found.rank].double().mT * delta) @ basis.v[: found.rank].double()
        for basis in (found, right)
    )
    return float((one - other).norm() / delta.norm())


def solver_rows(d_out: int, d_in: int, spectrum: str, device: str) -> Iterator[Row]:
    """A row for all triplets of a matrix, and one for each solver and rank."""
    matrix = random_matrix(d_out, d_in, spectrum, device)
    weight = 4 * matrix.numel()
    about = {"d_out": d_out, "d_in": d_in, "spectrum": spectrum}

    def measured(call: Callable[[], Basis | None]) -> tuple[Row, Basis | None]:
        found: list[Basis | None] = []
        trim_memory()
        before = torch.cuda.memory_allocated() if device == "cuda" else memory_status()["VmRSS"]
        seconds: list[float] = []
        began = time.process_time()
        peak = peak_bytes_of(
            lambda: seconds.append(seconds_of(lambda: found.append(call()), device)), device
        )
        took = {"seconds": seconds[0], "processor_seconds": time.process_time() - began}
        return took | {"memory_by_weight": (peak - before) / weight}, found[0]

    row, right = measured(lambda: singular_basis(matrix))
    assert right is not None
    yield about | row | {"solver": "all", "bytes": basis_bytes(d_out, d_in)}
    for rank in RANKS:
        for name, solve in SOLVERS.items():
            if name == "lobpcg" and (rank > 64 or d_in > d_out):
                continue  # minutes
            row, found = measured(lambda solve=solve, rank=rank: solve(matrix, rank))  # type: ignore[misc]
            yield (
                about
                | row
                | {
                    "solver": name,
                    "rank": rank,
                    "is_proven": name == "leading" and found is not None,
                    "bytes": basis_bytes(d_out, d_in, rank),
                    "error": None if found is None else shift_error(found, right),
                }
            )


def load_row(matrices: int, rank: int, spectrum: str, device: str) -> Row:
    """The first load of some weights, which are on the device, and what 266 would take."""
    weights = {
        str(number): random_matrix(SIDE, SIDE, spectrum, device, seed=number)
        for number in range(matrices)
    }
    base = read_base(weights)
    leading_basis(weights["0"], rank)  # so that libraries are loaded
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trim_memory()
        before = torch.cuda.memory_allocated() if device == "cuda" else memory_status()["VmRSS"]
        began, cpu = time.perf_counter(), time.process_time()
        peak = peak_bytes_of(
            lambda: load_bases(base, rank, show_progress=False, cache=folder), device
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "load": matrices,
        "rank": rank,
        "spectrum": spectrum,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "processor_seconds": cpu,
        "memory_by_weight": (peak - before) / (4 * SIDE**2),
        "bytes": size,
        f"extrapolated_seconds_of_{LAYERS}": seconds * LAYERS / matrices,
        f"extrapolated_core_seconds_of_{LAYERS}": cpu * LAYERS / matrices,
        f"extrapolated_bytes_of_{LAYERS}": size * LAYERS // matrices,
    }


def main() -> None:
    """Measure and write `results/basis_by_rank.json`, or `…_cuda.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--matrices", type=int, default=8, help="in the first load")
    arguments = parser.parse_args()
    device: str = arguments.device
    rows: list[Row] = []
    for rank, spectrum in ((64, "falling"), (64, "flat"), (256, "falling")):
        rows.append(load_row(arguments.matrices, rank, spectrum, device))
        print(rows[-1], flush=True)
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    for d_in, spectrum in ((SIDE, "falling"), (SIDE, "flat"), (SIDE, "steep"), (WIDE, "falling")):
        for row in solver_rows(SIDE, d_in, spectrum, device):
            rows.append(row)
            print(row, flush=True)
    torch.set_num_threads(threads)
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    name = "basis_by_rank" if device == "cpu" else f"basis_by_rank_{device}"
    print(write_report(name, rows, layers=LAYERS, gpu=gpu))


if __name__ == "__main__":
    main()
