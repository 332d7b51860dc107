"""Which adapters act, how strongly, and fused or not, on pipelines that make images."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file
from tiny_adapters import (
    MODELS,
    PIPELINES,
    PipelineSnapshot,
    images_of,
    load,
    load_two,
    make_adapter,
    make_variant,
    tiny_bases,
    with_sketches,
)

from svfit_diffusion import AdapterNameError, ConfigError, StateError
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.loading import put_adapter
from svfit_diffusion.files.adapter import (
    WEIGHTS_NAME,
    Adapter,
    read_adapter,
    state_dict,
    write_adapter,
)
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.pipeline_methods import METHODS


def test_every_pipeline_has_every_method() -> None:
    names = {name for own in METHODS.values() for name in own}
    assert len(names) == 12
    for module, own in METHODS.items():
        for name in own:
            assert getattr(DiffusionPipeline, name) is getattr(import_module(module), name)
            assert callable(getattr(StableDiffusionInpaintPipeline, name))


def test_names_and_activity(tiny_pipe: Any) -> None:
    assert tiny_pipe.get_active_svfit_adapters() == []
    assert tiny_pipe.get_list_svfit_adapters() == {}
    load(tiny_pipe, state_dict(make_adapter(0, parts=("unet",))), "a")
    load(tiny_pipe, state_dict(make_adapter(1, parts=("text_encoder",))), "b")
    load(tiny_pipe, state_dict(make_adapter(2)))
    assert tiny_pipe.get_active_svfit_adapters() == ["default_0"]
    assert tiny_pipe.get_list_svfit_adapters() == {
        "unet": ["a", "default_0"],
        "text_encoder": ["b", "default_0"],
    }
    tiny_pipe.set_svfit_adapters(["b", "a"])
    assert set(tiny_pipe.get_active_svfit_adapters()) == {"a", "b"}
    with pytest.raises(AdapterNameError, match="'a' is taken"):
        load(tiny_pipe, state_dict(make_adapter(3)), "a")
    tiny_pipe.delete_svfit_adapters(["a", "b"])
    assert tiny_pipe.get_active_svfit_adapters() == []
    assert tiny_pipe.get_list_svfit_adapters() == {
        "unet": ["default_0"],
        "text_encoder": ["default_0"],
    }


def test_weights_are_linear_in_the_shift(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters(["a", "b"], [0.5, -2.0])
    first, second = make_adapter(0).deltas, make_adapter(1, rank=8).deltas
    mixed = {}
    for component in MODELS:
        mixed[component] = {p: 0.5 * delta for p, delta in first[component].items()}
        for path, delta in second[component].items():
            mixed[component][path][:8] -= 2.0 * delta
    other = tiny.make_tiny_pipeline()
    load(other, state_dict(Adapter(mixed, AdapterMetadata())))
    torch.testing.assert_close(*images_of(tiny_pipe, other), rtol=0, atol=1e-5)


def make_pruned(seed: int, kept: int) -> Adapter:
    """An adapter of full rank with at most `kept` values per layer, the last layer's all zero."""
    adapter = make_adapter(seed)
    generator = torch.Generator().manual_seed(seed)
    for component, base in tiny_bases().items():
        for path in base.weights:
            delta = torch.zeros(min(base.matrix(path).shape))
            chosen = torch.randperm(delta.numel(), generator=generator)[:kept]
            delta[chosen] = 0.5 * torch.randn(len(chosen), generator=generator)
            adapter.deltas[component][path] = delta
        adapter.deltas[component][path] = torch.zeros(delta.numel())
    return adapter


def test_sparse_adapters_mix_fuse_and_save_like_dense_ones(tiny_pipe: Any, tmp_path: Path) -> None:
    other = tiny.make_tiny_pipeline()
    for name, adapter in (("a", make_pruned(0, 4)), ("b", make_pruned(1, 1))):
        write_adapter(tmp_path / name / WEIGHTS_NAME, with_sketches(adapter))
        load(tiny_pipe, tmp_path / name, name)
        put_adapter(models_of(other), adapter, name, show_progress=False)
    assert any(name.endswith(".index") for name in load_file(tmp_path / "a" / WEIGHTS_NAME))
    base = tiny.run_pipeline(tiny.make_tiny_pipeline())
    for pipe in (tiny_pipe, other):
        pipe.set_svfit_adapters(["a", "b"], [0.5, -2.0])
    mixed = images_of(tiny_pipe, other)
    assert (mixed[0] - base).abs().max() > 1e-2
    torch.testing.assert_close(*mixed, rtol=0, atol=1e-5)
    for pipe in (tiny_pipe, other):
        pipe.fuse_svfit()
    torch.testing.assert_close(*images_of(tiny_pipe, other), rtol=0, atol=1e-5)
    tiny_pipe.unload_svfit_weights()
    load(tiny_pipe, tmp_path / "a", "a")
    again = load_file(tiny_pipe.save_svfit_weights(tmp_path / "again"))
    first = load_file(tmp_path / "a" / WEIGHTS_NAME)
    assert again.keys() == first.keys()
    for name, tensor in first.items():
        # Sketches are sums of as many products as a shift has values, or has left.
        tolerance = 1e-6 if name.endswith(".sketch") else 0
        torch.testing.assert_close(again[name], tensor, rtol=tolerance, atol=tolerance)


def test_weights_per_component(tiny_pipe: Any) -> None:
    load(tiny_pipe, state_dict(make_adapter()), "a")
    tiny_pipe.set_svfit_adapters("a", {"unet": 0.0})
    only_text = tiny.make_tiny_pipeline()
    load(only_text, state_dict(make_adapter()), "a")
    only_text.unet = tiny.make_tiny_unet()
    assert torch.equal(*images_of(tiny_pipe, only_text))
    tiny_pipe.set_svfit_adapters("a", {"unet": 0.0, "text_encoder": 0.0})
    assert torch.equal(*images_of(tiny_pipe, tiny.make_tiny_pipeline()))


@pytest.mark.parametrize("weights", [0, 0.0, [0.0, 0.0], [{"unet": 0, "text_encoder": 0}, 0]])
def test_weight_zero_is_the_base(weights: Any, tiny_pipe: Any) -> None:
    base = tiny.run_pipeline(tiny_pipe)
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters(["a", "b"], weights)
    assert torch.equal(tiny.run_pipeline(tiny_pipe), base)


BAD_CALLS: dict[str, tuple[Callable[[Any], object], type[Exception]]] = {
    "unknown": (lambda pipe: pipe.set_svfit_adapters(["a", "nobody"]), AdapterNameError),
    "delete": (lambda pipe: pipe.delete_svfit_adapters(["a", "nobody"]), AdapterNameError),
    "few": (lambda pipe: pipe.set_svfit_adapters(["a", "b"], [1.0]), ConfigError),
    "many": (lambda pipe: pipe.set_svfit_adapters("a", [1.0, 2.0]), ConfigError),
    "component": (lambda pipe: pipe.set_svfit_adapters("a", {"unett": 0.5}), ConfigError),
    "text": (lambda pipe: pipe.set_svfit_adapters("a", ["1.0"]), ConfigError),
    "nan": (lambda pipe: pipe.set_svfit_adapters("a", float("nan")), ConfigError),
    "unfuse": (lambda pipe: pipe.unfuse_svfit(), StateError),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_a_bad_call_changes_nothing(kind: str, tiny_pipe: Any) -> None:
    call, error = BAD_CALLS[kind]
    load_two(tiny_pipe)
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(error):
        call(tiny_pipe)
    snapshot.check()


def test_disable_and_enable(tiny_pipe: Any, adapter_file: Path) -> None:
    base = tiny.run_pipeline(tiny_pipe)
    load(tiny_pipe, adapter_file)
    shifted = tiny.run_pipeline(tiny_pipe)
    tiny_pipe.disable_svfit()
    assert torch.equal(tiny.run_pipeline(tiny_pipe), base)
    assert tiny_pipe.get_active_svfit_adapters() == ["default_0"]
    tiny_pipe.enable_svfit()
    assert torch.equal(tiny.run_pipeline(tiny_pipe), shifted)
    tiny_pipe.disable_svfit()
    load(tiny_pipe, state_dict(make_adapter(1)), "b")
    assert not torch.equal(tiny.run_pipeline(tiny_pipe), base)


def test_methods_on_a_pipeline_without_adapters(tiny_pipe: Any) -> None:
    snapshot = PipelineSnapshot(tiny_pipe)
    tiny_pipe.enable_svfit()
    tiny_pipe.disable_svfit()
    tiny_pipe.unload_svfit_weights()
    tiny_pipe.set_svfit_adapters([])
    for call in (tiny_pipe.fuse_svfit, tiny_pipe.unfuse_svfit):
        with pytest.raises(StateError):
            call()
    snapshot.check()


@pytest.mark.parametrize("fused", [False, True])
def test_unloading_restores_everything(fused: bool, tiny_pipe: Any) -> None:
    snapshot = PipelineSnapshot(tiny_pipe)
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters(["a", "b"], 0.7)
    if fused:
        tiny_pipe.fuse_svfit()
    assert not torch.equal(tiny.run_pipeline(tiny_pipe), snapshot.image)
    tiny_pipe.unload_svfit_weights()
    snapshot.check()
    tiny_pipe.unload_svfit_weights()
    snapshot.check()
    load_two(tiny_pipe)
    tiny_pipe.delete_svfit_adapters("a")
    tiny_pipe.delete_svfit_adapters("b")
    snapshot.check()


# --- fusing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True], ids=["set", "fused"])
def test_a_saved_pipeline_is_merged_and_unloading_gives_the_base_back(
    fused: bool, tiny_pipe: Any, tmp_path: Path
) -> None:
    base = PipelineSnapshot(tiny_pipe)
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters(["a", "b"], [1.0, 0.5])
    shifted = tiny.run_pipeline(tiny_pipe)
    assert not torch.equal(shifted, base.image)
    if fused:
        tiny_pipe.fuse_svfit()
        assert torch.equal(tiny.run_pipeline(tiny_pipe), shifted)
    tiny_pipe.save_pretrained(tmp_path)
    merged = StableDiffusionPipeline.from_pretrained(tmp_path)
    merged.set_progress_bar_config(disable=True)
    assert torch.equal(tiny.run_pipeline(merged), shifted)
    if fused:
        tiny_pipe.unfuse_svfit()
        assert torch.equal(tiny.run_pipeline(tiny_pipe), shifted)
    assert tiny_pipe.get_active_svfit_adapters() == ["a", "b"]
    tiny_pipe.unload_svfit_weights()
    base.check()


def test_fusing_at_a_scale_is_activating_at_that_weight(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters(["a", "b"], [1.0, 0.5])
    tiny_pipe.fuse_svfit(scale=0.5)
    fused = tiny.run_pipeline(tiny_pipe)
    tiny_pipe.unfuse_svfit()
    tiny_pipe.set_svfit_adapters(["a", "b"], [0.5, 0.25])
    assert torch.equal(tiny.run_pipeline(tiny_pipe), fused)


FUSED_CALLS: dict[str, Callable[[Any], object]] = {
    "fuse": lambda pipe: pipe.fuse_svfit(),
    "set": lambda pipe: pipe.set_svfit_adapters(["unet only", "text only"]),
    "delete": lambda pipe: pipe.delete_svfit_adapters(["unet only", "text only"]),
    "enable": lambda pipe: pipe.enable_svfit(),
    "disable": lambda pipe: pipe.disable_svfit(),
    "load": lambda pipe: load(pipe, state_dict(make_adapter(7))),
    "load unet": lambda pipe: load(pipe, state_dict(make_adapter(7, parts=("unet",)))),
}


@pytest.mark.parametrize("call", FUSED_CALLS)
@pytest.mark.parametrize("active", [["unet only"], ["text only"], ["unet only", "text only"]])
def test_changes_while_fused_are_refused_and_nothing_half_done(
    active: list[str], call: str, tiny_pipe: Any
) -> None:
    load(tiny_pipe, state_dict(make_adapter(0, parts=("unet",))), "unet only")
    load(tiny_pipe, state_dict(make_adapter(1, parts=("text_encoder",))), "text only")
    tiny_pipe.set_svfit_adapters(active)
    tiny_pipe.fuse_svfit()
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(StateError, match="fuse"):
        FUSED_CALLS[call](tiny_pipe)
    snapshot.check()
    tiny_pipe.unload_svfit_weights()
    assert torch.equal(*images_of(tiny_pipe, tiny.make_tiny_pipeline()))


def test_unfused_adapters_can_be_changed_again(tiny_pipe: Any) -> None:
    base = PipelineSnapshot(tiny_pipe)
    load_two(tiny_pipe)
    tiny_pipe.fuse_svfit(scale=-2.0)
    tiny_pipe.unfuse_svfit()
    tiny_pipe.delete_svfit_adapters(["a", "b"])
    base.check()


def test_saving_while_fused_saves_the_same_adapter(
    tiny_pipe: Any, adapter_file: Path, tmp_path: Path
) -> None:
    load(tiny_pipe, adapter_file)
    tiny_pipe.fuse_svfit()
    saved = read_adapter(tiny_pipe.save_svfit_weights(tmp_path))
    original = read_adapter(adapter_file)
    assert saved.metadata == original.metadata
    assert all(torch.equal(t, state_dict(original)[n]) for n, t in state_dict(saved).items())


# --- pipelines --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_zero_shift_makes_the_base_image_in_every_pipeline(
    kind: str, solver: str, tiny_pipe: Any
) -> None:
    if solver == "dpm":
        tiny_pipe.scheduler = DPMSolverMultistepScheduler.from_config(tiny_pipe.scheduler.config)
    variant, kwargs = make_variant(tiny_pipe, kind)
    base = tiny.run_pipeline(variant, **kwargs)
    load(variant, state_dict(make_adapter(scale=0.0)))
    assert torch.equal(tiny.run_pipeline(variant, **kwargs), base)
    load(variant, state_dict(make_adapter()))
    assert not torch.equal(tiny.run_pipeline(variant, **kwargs), base)
    variant.unload_svfit_weights()
    assert torch.equal(tiny.run_pipeline(variant, **kwargs), base)


def test_pipelines_of_the_same_components_share_adapters(tiny_pipe: Any) -> None:
    variant, kwargs = make_variant(tiny_pipe, "image")
    load(tiny_pipe, state_dict(make_adapter()), "a")
    assert variant.get_active_svfit_adapters() == ["a"]
    shifted = tiny.run_pipeline(variant, **kwargs)
    variant.disable_svfit()
    assert not torch.equal(tiny.run_pipeline(variant, **kwargs), shifted)
    snapshot = PipelineSnapshot(tiny.make_tiny_pipeline())
    assert torch.equal(tiny.run_pipeline(tiny_pipe), snapshot.image)
    variant.delete_svfit_adapters("a")
    assert tiny_pipe.get_list_svfit_adapters() == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_changing_precision_after_loading(dtype: torch.dtype, adapter_file: Path) -> None:
    pipe, base = tiny.make_tiny_pipeline(), tiny.make_tiny_pipeline()
    load(pipe, adapter_file)
    exact = tiny.run_pipeline(pipe)
    for target, tolerance in ((dtype, 0.1), (torch.float32, 0.1)):
        pipe.to(target)
        base.to(target)
        image = tiny.run_pipeline(pipe)
        assert image.dtype == target or target != torch.float32
        assert (image.float() - exact).abs().max() < tolerance
        assert not torch.equal(image, tiny.run_pipeline(base))
    # What is left is the base of that precision, exactly.
    pipe.to(dtype)
    pipe.unload_svfit_weights()
    assert torch.equal(*images_of(pipe, base.to(dtype)))


def test_unfusing_after_a_change_of_precision(adapter_file: Path) -> None:
    pipe, base = tiny.make_tiny_pipeline(), tiny.make_tiny_pipeline().to(torch.float16)
    load(pipe, adapter_file)
    pipe.fuse_svfit()
    pipe.to(torch.float16)
    pipe.unfuse_svfit()
    pipe.set_svfit_adapters([])
    assert torch.equal(*images_of(pipe, base))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_adapters_load_on_a_base_loaded_in_half_precision(
    dtype: torch.dtype, saved_pipe: Path, adapter_file: Path
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(saved_pipe, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    base = tiny.run_pipeline(pipe)
    load(pipe, adapter_file)
    shifted = tiny.run_pipeline(pipe)
    assert torch.isfinite(shifted).all()
    assert not torch.equal(shifted, base)
    pipe.set_svfit_adapters("default_0", 0.0)
    assert torch.equal(tiny.run_pipeline(pipe), base)


def test_a_compiled_model_in_the_pipeline_is_reached(tiny_pipe: Any, adapter_file: Path) -> None:
    unet = tiny_pipe.unet
    tiny_pipe.unet = torch.compile(unet, backend="eager")
    load(tiny_pipe, adapter_file, "a")
    assert Injection.find(unet) is not None
    tiny_pipe.unload_svfit_weights()
    assert Injection.find(unet) is None
