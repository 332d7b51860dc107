"""The disk cache of bases: hits, damage, races, and independence of how the base was loaded."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import pickle
import shutil
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import DAMAGES
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from svfit_diffusion.spectrum import cache, solver
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import BaseWeights, cache_directory, load_bases, read_base
from svfit_diffusion.spectrum.sketch import PROBES, probes_of


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.Conv2d(3, 6, 3))


def weights_of(model: nn.Sequential) -> dict[str, Tensor]:
    return {path: layer.get_parameter("weight") for path, layer in model.named_children()}


def make_base(seed: int = 0) -> BaseWeights:
    return read_base(weights_of(make_model(seed)))


def load(base: BaseWeights) -> dict[str, Basis]:
    return load_bases(base, show_progress=False)


def tensors_of(bases: dict[str, Basis]) -> list[Tensor]:
    return [
        tensor
        for basis in bases.values()
        for tensor in (basis.u, basis.v, basis.sigma, probes_of(basis))
    ]


def assert_same(first: dict[str, Basis], second: dict[str, Basis]) -> None:
    assert list(first) == list(second)
    for a, b in zip(tensors_of(first), tensors_of(second), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def no_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(matrix: Tensor) -> Basis:
        raise AssertionError(f"an SVD of {tuple(matrix.shape)}, which is in the cache")

    monkeypatch.setattr(solver, "singular_basis", refuse)


@pytest.fixture
def filled_cache(empty_cache: Path) -> Path:
    load(make_base())
    return empty_cache


@pytest.mark.usefixtures("filled_cache", "no_svd")
def test_a_hit_gives_the_same_tensors_without_svd() -> None:
    bases = load(make_base())
    for path in ("0", "1"):
        matrix = make_base().matrix(path)
        expected = torch.linalg.svd(matrix.double(), full_matrices=False)
        # Vectors up to a common sign, and to the last bit after rounding.
        signs = (bases[path].u[:, 0] * expected.U[0] > 0) * 2 - 1
        assert torch.equal(bases[path].u, (signs * expected.U).mT.half())
        assert torch.equal(bases[path].v, (signs[:, None] * expected.Vh).half())
        torch.testing.assert_close(bases[path].sigma, expected.S.float(), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("empty_cache")
def test_bases_come_in_the_order_of_the_layers_whatever_the_cache_has() -> None:
    weights = make_base().weights
    load(read_base({"1": weights["1"]}))
    assert list(load(make_base())) == list(weights) == ["0", "1"]


def test_files_are_named_by_content_and_alone_in_the_folder(filled_cache: Path) -> None:
    names = {f"{digest}.safetensors" for digest in make_base().digests.values()}
    assert {path.name for path in filled_cache.iterdir()} == names
    matrix = make_base().matrix("1")
    content = b"(6, 27)" + matrix.numpy().tobytes()
    assert make_base().digests["1"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_recomputed_and_replaced(
    damage: Any, filled_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = sorted(filled_cache.iterdir())
    # Copies: load_file maps the file, and `truncate` would pull it away from under a mapping.
    good = [{name: t.clone() for name, t in load_file(path).items()} for path in files]
    for path in files:
        damage(path)
    with caplog.at_level(logging.WARNING, logger="svfit_diffusion"):
        bases = load(make_base())
    assert caplog.text.count("Recomputing") == len(files)
    for path in ("0", "1"):
        matrix = make_base().matrix(path)
        assert torch.equal(bases[path].u, solver.singular_basis(matrix).u.half())
    assert sorted(filled_cache.iterdir()) == files
    for path, tensors in zip(files, good, strict=True):
        stored = load_file(path)
        assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())


def race(folder: str, barrier: Any) -> None:
    barrier.wait(60)
    for _ in range(20):
        load_bases(make_base(), show_progress=False, cache=Path(folder))
        for path in Path(folder).glob("*.safetensors"):
            path.unlink(missing_ok=True)
    load_bases(make_base(), show_progress=False, cache=Path(folder))


def test_processes_racing_for_the_cache_leave_valid_files(
    empty_cache: Path, request: pytest.FixtureRequest
) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [context.Process(target=race, args=(str(empty_cache), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    load(make_base())
    request.getfixturevalue("no_svd")
    assert_same(load(make_base()), load(make_base()))
    assert {path.suffix for path in empty_cache.iterdir()} == {".safetensors"}


def test_a_cache_that_cannot_be_written_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A file where the folder should be: holds for root too, whom permissions do not stop.
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("SVFIT_CACHE", str(tmp_path / "occupied" / "cache"))
    bases = load(make_base())
    assert "could not be cached" in caplog.text
    assert torch.equal(bases["0"].u, solver.singular_basis(make_base().matrix("0")).u.half())


def test_a_full_disk_only_warns_and_leaves_no_file(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("svfit_diffusion.files.atomic.save_file", fill)
    load(make_base())
    assert caplog.text.count("No space left") == 1  # however many layers there are
    assert list(empty_cache.iterdir()) == []


def test_float16_and_float32_loads_share_files(
    empty_cache: Path, request: pytest.FixtureRequest
) -> None:
    bases = load(make_base())
    request.getfixturevalue("no_svd")
    half = read_base(weights_of(make_model().half()))
    assert half.digests == make_base().digests
    assert half.fingerprint() == make_base().fingerprint()
    assert_same(load(half), bases)


def test_bases_are_mapped_from_their_files_however_they_came(empty_cache: Path) -> None:
    cold, warm = load(make_base()), load(make_base())
    for bases in (cold, warm):
        for basis in bases.values():
            assert basis.file is not None
            before = [t.clone() for t in tensors_of({"": basis})]
            basis.release()
            assert all(map(torch.equal, tensors_of({"": basis}), before))


def test_a_pickled_basis_needs_no_file(filled_cache: Path) -> None:
    basis = load(make_base())["0"]
    content = pickle.dumps(basis.truncated(3))
    shutil.rmtree(filled_cache)
    copy = pickle.loads(content)
    assert copy.file is None
    copy.release()
    assert_same({"": copy}, {"": basis.truncated(3)})


def test_fingerprints_tell_weights_apart_and_ignore_order() -> None:
    base = make_base()
    assert base.fingerprint() == read_base(dict(reversed(base.weights.items()))).fingerprint()
    assert base.fingerprint() == base.fingerprint(["1", "0"])
    assert base.fingerprint() != base.fingerprint(["0"])
    assert base.fingerprint() != make_base(seed=1).fingerprint()
    reshaped = nn.Sequential(nn.Linear(12, 8))
    reshaped[0].weight.data = make_model()[0].weight.data.reshape(8, 12).clone()
    assert read_base(weights_of(reshaped)).digests["0"] != base.digests["0"]


def test_cache_directory_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVFIT_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("SVFIT_CACHE")
    monkeypatch.setattr(cache, "HF_HOME", str(tmp_path / "hf"))
    assert cache_directory() == tmp_path / "hf" / "svfit"


def test_cached_files_say_what_they_are(filled_cache: Path) -> None:
    for path in filled_cache.iterdir():
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "svfit-basis-4"
        assert metadata["weight"] == path.stem
        tensors = load_file(path)
        assert tensors["probes"].shape == (PROBES, *tensors["sigma"].shape)
        names = ("u", "v", "sigma", "probes")
        content = b"".join(tensors[name].numpy().tobytes() for name in names)
        assert metadata["checksum"] == f"{zlib.crc32(content):08x}"


def test_where_there_is_no_float64_the_cpu_computes(empty_cache: Path) -> None:
    weight = torch.randn(6, 4)
    (basis,) = load_bases(
        read_base({"a": weight}), show_progress=False, device=torch.device("mps")
    ).values()
    assert basis.sigma == pytest.approx(torch.linalg.svdvals(weight.half().float()), rel=1e-6)


def test_a_convolution_is_flattened(empty_cache: Path) -> None:
    basis = load(make_base())["1"]
    weight = make_model()[1].weight.half().float()
    dense = torch.einsum("ro,r,ri->oi", basis.u.float(), basis.sigma, basis.v.float())
    # Vectors rounded to float16: half a unit in the eleventh bit each.
    torch.testing.assert_close(dense.reshape(weight.shape), weight, rtol=1e-2, atol=1e-3)


def test_threads_started_after_a_load_are_not_limited(empty_cache: Path) -> None:
    counts: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        load(make_base())
        thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert counts == [3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
