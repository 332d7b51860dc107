"""An adapter proves on load that the singular vectors here are those of its training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from merged import check_switching, make_adapter, put, tiny_adapter, tiny_pictures
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import make_tiny_pipeline, make_tiny_unet, run_pipeline, run_unet
from torch import Tensor

from svfit_diffusion import BaseMismatchError, SVFitConfig
from svfit_diffusion.adapters.base_weights import base_weights
from svfit_diffusion.adapters.components import collect_adapter
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.files.adapter import Adapter, read_adapter, state_dict, write_adapter
from svfit_diffusion.spectrum import cache, solver
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.sketch import sketch

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def turned(basis: Basis, angle: float = math.pi / 2) -> Basis:
    """Both sides of the first two triplets turned, as they may be where σ₁ = σ₂."""
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    u, v = basis.u.clone(), basis.v.clone()
    u[:2], v[:2] = (turn @ u[:2].float()).to(u.dtype), (turn @ v[:2].float()).to(v.dtype)
    return Basis(u, v, basis.sigma)


def with_equal_values(weight: Tensor) -> Tensor:
    """The weight with its first two singular values made one, up to float16."""
    u, sigma, v = torch.linalg.svd(weight.double(), full_matrices=False)
    sigma[0] = sigma[1] * (1 + 1e-6)
    return ((u * sigma) @ v).float()


def make_pipeline() -> Any:
    pipe = make_tiny_pipeline()
    weight = pipe.unet.get_submodule(LAYER).weight
    weight.data.copy_(with_equal_values(weight.data))
    return pipe


@pytest.fixture
def adapter_file(tmp_path: Path) -> Path:
    """An adapter of `make_pipeline()`'s UNet, whose effect hangs on which vector is the first."""
    unet, path = make_pipeline().unet, tmp_path / "adapter.safetensors"
    injection = put(unet, make_adapter({"unet": unet}))
    dict(injection.sigma_parameters("a"))[LAYER][:2] = torch.tensor([1.0, -1.0])
    write_adapter(path, collect_adapter({"unet": unet}, "a"))
    return path


def load(pipe: Any, source: Any, **kwargs: Any) -> Any:
    pipe.load_svfit_weights(source, "a", show_progress=False, **kwargs)
    return pipe


def refused(pipe: Any, source: Any, layer: str = LAYER) -> None:
    before, base = dict(pipe.unet.named_parameters()), run_unet(pipe.unet)
    with pytest.raises(BaseMismatchError, match=rf"in 1 of \d+ layers of the unet.* {layer}, "):
        load(pipe, source)
    assert Injection.find(pipe.unet) is None
    assert all(p is before[name] for name, p in pipe.unet.named_parameters())
    assert torch.equal(run_unet(pipe.unet), base)


@pytest.mark.usefixtures("empty_cache")
def test_the_sketches_of_a_file_are_those_of_its_layers(adapter_file: Path) -> None:
    adapter, pipe = read_adapter(adapter_file), make_pipeline()
    assert adapter.sketches["unet"].keys() == adapter.deltas["unet"].keys()
    load(pipe, adapter_file)
    for path, shifted in Injection.of(pipe.unet).layers.items():
        found = sketch(shifted.basis, adapter.deltas["unet"][path])
        torch.testing.assert_close(found, adapter.sketches["unet"][path], rtol=1e-5, atol=1e-5)


def lapack(matrix: Tensor) -> Basis:
    """Another solver than the package's."""
    u, sigma, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return Basis(u.mT.float().contiguous(), v.float(), sigma.float())


def other_way(matrix: Tensor) -> Basis:
    """Another solver, which finds other vectors where singular values meet."""
    basis = solver_of_the_package(matrix)
    meet = bool(basis.sigma[0] < basis.sigma[1] * 1.001)
    return turned(basis) if meet else basis


solver_of_the_package = solver.singular_basis


@pytest.mark.usefixtures("empty_cache")
def test_another_solver_that_agrees_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny_pictures()
    monkeypatch.setattr(solver, "singular_basis", lapack)
    pipe = make_tiny_pipeline()
    put(pipe.unet, Adapter({"unet": tiny_adapter().deltas["unet"]}, tiny_adapter().metadata))
    pipe.unload_svfit_weights()
    check_switching(load(pipe, state_dict(tiny_adapter())), expected)


def test_another_solver_that_does_not_is_found_out(
    adapter_file: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not empty_cache.exists()
    monkeypatch.setattr(solver, "singular_basis", other_way)
    refused(make_pipeline(), adapter_file)
    monkeypatch.undo()


def rewrite_cache(pipe: Any, change: Callable[[Basis], Basis]) -> None:
    """Give the cache another basis of the layer, in a file that is right in itself."""
    base = base_weights(pipe.unet, {LAYER: attention_layers(pipe.unet)[LAYER]})
    cache._write(
        cache.cache_directory(), base.digests[LAYER], change(cache.load_bases(base)[LAYER])
    )


def other_vectors(basis: Basis) -> Basis:
    generator = torch.Generator().manual_seed(0)
    return Basis(torch.randn(basis.u.shape, generator=generator).half() / 8, basis.v, basis.sigma)


def reversed_order(basis: Basis) -> Basis:
    return Basis(basis.u.flip(0), basis.v.flip(0), basis.sigma)


def one_side_negated(basis: Basis) -> Basis:
    return Basis(-basis.u, basis.v, basis.sigma)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    "change", [turned, other_vectors, reversed_order, one_side_negated], ids=lambda c: c.__name__
)
def test_a_cache_of_other_vectors_is_found_out(
    change: Callable[[Basis], Basis], adapter_file: Path
) -> None:
    pipe = make_pipeline()
    rewrite_cache(pipe, change)
    refused(pipe, adapter_file)
    for file in cache.cache_directory().iterdir():  # the way out that the message names
        file.unlink()
    load(pipe, adapter_file)


@pytest.mark.usefixtures("empty_cache")
def test_a_turn_by_less_than_rounding_passes(adapter_file: Path) -> None:
    pipe = make_pipeline()
    rewrite_cache(pipe, lambda basis: turned(basis, 1e-3))
    load(pipe, adapter_file)


@pytest.mark.usefixtures("empty_cache")
def test_layers_that_an_earlier_adapter_brought_are_compared_too(adapter_file: Path) -> None:
    pipe = make_pipeline()
    rewrite_cache(pipe, turned)
    bare = state_dict(make_adapter({"unet": make_tiny_unet()}, config=SVFitConfig(target="to_q")))
    pipe.load_svfit_weights(
        {name: tensor for name, tensor in bare.items() if "sketch" not in name},
        "first",
        show_progress=False,
    )
    picture = run_pipeline(pipe)
    with pytest.raises(BaseMismatchError, match=LAYER):
        load(pipe, adapter_file)
    assert pipe.get_list_svfit_adapters() == {"unet": ["first"]}
    assert torch.equal(run_pipeline(pipe), picture)


def as_version_1(file: Path) -> Path:
    """The file as it was written before there were sketches."""
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".sketch")}
    assert len(kept) < len(tensors)
    old = file.with_name("version-1.safetensors")
    save_file(kept, old, header | {"format_version": "1"})
    return old


@pytest.mark.usefixtures("empty_cache")
def test_files_of_version_1_load_and_are_saved_with_sketches(
    adapter_file: Path, tmp_path: Path
) -> None:
    pipe, now = load(make_pipeline(), as_version_1(adapter_file)), make_pipeline()
    load(now, adapter_file)
    assert torch.equal(run_unet(pipe.unet), run_unet(now.unet))
    saved = read_adapter(pipe.save_svfit_weights(tmp_path / "again"))
    for path, expected in read_adapter(adapter_file).sketches["unet"].items():
        assert torch.equal(saved.sketches["unet"][path], expected)
    pipe.unload_svfit_weights()
    rewrite_cache(pipe, turned)
    load(pipe, as_version_1(adapter_file))  # nothing tells


@pytest.mark.usefixtures("empty_cache")
def test_another_base_is_not_compared_by_sketches(adapter_file: Path) -> None:
    pipe = make_tiny_pipeline(3)
    with pytest.raises(BaseMismatchError, match="trained on another base"):
        load(pipe, adapter_file)
    load(pipe, adapter_file, ignore_base_mismatch=True)


@pytest.mark.parametrize("other", [make_tiny_unet(3), None], ids=["another base", "its base"])
def test_a_bare_state_dict_learns_its_base(other: Any, tmp_path: Path) -> None:
    pipe = load(make_tiny_pipeline(), state_dict(replace(tiny_adapter(), sketches={})))
    file = pipe.save_svfit_weights(tmp_path)
    metadata = read_adapter(file).metadata
    assert metadata.fingerprints == tiny_adapter().metadata.fingerprints
    again = make_tiny_pipeline()
    if other is None:
        load(again, file)
        assert torch.equal(run_pipeline(again), run_pipeline(pipe))
        return
    again.unet = other
    with pytest.raises(BaseMismatchError, match="its unet belongs to an unnamed model"):
        load(again, file)
    assert again.get_list_svfit_adapters() == {}
