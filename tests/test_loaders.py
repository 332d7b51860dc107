"""The pipeline methods, on pipelines that make images."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from svfit_diffusion import (
    AdapterNameError,
    BaseMismatchError,
    BasisError,
    BatchError,
    CheckpointError,
    ConfigError,
    StateError,
    SVFitConfig,
    inject,
)
from svfit_diffusion import basis as basis_module
from svfit_diffusion.basis import BaseWeights, read_base
from svfit_diffusion.checkpoint import (
    WEIGHTS_NAME,
    Adapter,
    AdapterMetadata,
    read_adapter,
    state_dict,
    write_adapter,
)
from svfit_diffusion.components import models_of, put_adapter
from svfit_diffusion.injection import Injection, attention_layers, sigma_parameters
from svfit_diffusion.loaders import PIPELINE_METHODS

MODELS = ("unet", "text_encoder")


def make_adapter(
    seed: int = 0, scale: float = 0.4, rank: int = 16, parts: tuple[str, ...] = MODELS
) -> Adapter:
    """A random adapter of `make_tiny_pipeline()`, with its fingerprints."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        component: {path: torch.randn(rank, generator=generator) * scale for path in base.digests}
        for component, base in tiny_bases().items()
        if component in parts
    }
    fingerprints = {component: tiny_bases()[component].fingerprint() for component in parts}
    return Adapter(deltas, AdapterMetadata(base_model="tiny", fingerprints=fingerprints))


@functools.cache
def tiny_bases() -> dict[str, BaseWeights]:
    """The attention weights of `make_tiny_pipeline()`, per component."""
    pipe = tiny.make_tiny_pipeline()
    models = {component: getattr(pipe, component) for component in MODELS}
    return {name: read_base(model, attention_layers(model)) for name, model in models.items()}


@pytest.fixture(scope="session")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / WEIGHTS_NAME
    write_adapter(path, make_adapter())
    return path


def load(pipe: Any, source: Any, name: str | None = None, **kwargs: Any) -> None:
    pipe.load_svfit_weights(source, name, show_progress=False, **kwargs)


class Snapshot:
    """What a pipeline is and makes, and a check that it still does."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.image = tiny.run_pipeline(pipe)
        self.state = self._read()

    def _read(self) -> Any:
        state: dict[str, Any] = {}
        for component in MODELS:
            model = getattr(self.pipe, component)
            state[component] = (
                [(name, id(p), p.sum().item()) for name, p in model.named_parameters()],
                [(name, id(m), sorted(vars(m))) for name, m in model.named_modules()],
            )
            injection = Injection.find(model)
            state[f"{component} adapters"] = injection and (
                list(injection.adapter_names),
                injection.active,
                injection.is_fused,
            )
        state["processors"] = {k: id(p) for k, p in self.pipe.unet.attn_processors.items()}
        return state

    def check(self) -> None:
        assert self._read() == self.state
        assert torch.equal(tiny.run_pipeline(self.pipe), self.image)


def images_of(*pipes: Any) -> list[Tensor]:
    return [tiny.run_pipeline(pipe) for pipe in pipes]


def test_every_pipeline_has_every_method() -> None:
    names = {method.__name__ for method in PIPELINE_METHODS}
    assert len(names) == 12
    for method in PIPELINE_METHODS:
        assert getattr(DiffusionPipeline, method.__name__) is method
        assert callable(getattr(StableDiffusionInpaintPipeline, method.__name__))


# --- loading and saving -----------------------------------------------------------------------


SOURCES: dict[str, Callable[[Path], tuple[Any, dict[str, Any]]]] = {
    "file": lambda path: (path, {}),
    "text": lambda path: (str(path), {}),
    "folder": lambda path: (path.parent, {}),
    "subfolder": lambda path: (path.parent.parent, {"subfolder": path.parent.name}),
    "name": lambda path: (str(path.parent), {"weight_name": path.name}),
    "dict": lambda path: (load_file(path), {}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_round_trip_from_every_source(
    kind: str, tiny_pipe: Any, adapter_file: Path, tmp_path: Path
) -> None:
    source, kwargs = SOURCES[kind](adapter_file)
    load(tiny_pipe, source, **kwargs)
    assert tiny_pipe.get_active_svfit_adapters() == ["default_0"]
    path = tiny_pipe.save_svfit_weights(tmp_path / "out")
    assert path == tmp_path / "out" / WEIGHTS_NAME
    saved, original = read_adapter(path), read_adapter(adapter_file)
    assert all(torch.equal(t, state_dict(original)[n]) for n, t in state_dict(saved).items())
    assert state_dict(saved).keys() == state_dict(original).keys()
    if kind != "dict":
        assert saved.metadata == original.metadata
    again = tiny.make_tiny_pipeline()
    load(again, path)
    assert torch.equal(*images_of(tiny_pipe, again))


def test_a_hub_id_is_downloaded(
    tiny_pipe: Any, adapter_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(repo: str, filename: str, **kwargs: Any) -> str:
        calls.append((repo, filename, kwargs))
        return str(adapter_file)

    monkeypatch.setattr("svfit_diffusion.loaders.hf_hub_download", download)
    load(tiny_pipe, "someone/my-dog", "dog", subfolder="v2", revision="main", token="t")
    kwargs = {"subfolder": "v2", "revision": "main", "token": "t"}
    assert calls == [("someone/my-dog", WEIGHTS_NAME, kwargs)]
    assert tiny_pipe.get_active_svfit_adapters() == ["dog"]


@pytest.mark.parametrize("source", ["someone/my-dog", "no such folder/a/b", "", "a b", "/nowhere"])
def test_what_is_neither_here_nor_on_the_hub_is_refused(source: str, tiny_pipe: Any) -> None:
    # The suite is offline, so that the hub's client itself answers.
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(CheckpointError):
        load(tiny_pipe, source)
    snapshot.check()


def test_hub_errors_become_checkpoint_errors(
    tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("svfit_diffusion.loaders.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"someone/my-dog.*hub"):
        load(tiny_pipe, "someone/my-dog")


def test_an_empty_folder_is_refused(tiny_pipe: Any, tmp_path: Path) -> None:
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(CheckpointError, match=WEIGHTS_NAME):
        load(tiny_pipe, tmp_path)
    snapshot.check()


def change(**tensors: Tensor) -> Callable[[], Adapter]:
    """The adapter with a text encoder's tensor added, which a pipeline meets after its UNet's."""

    def make() -> Adapter:
        adapter = make_adapter()
        adapter.deltas["text_encoder"].update(tensors)
        return adapter

    return make


def one_of(length: int) -> Tensor:
    """A shift with a single value, at its end, which a file holds sparsely."""
    return torch.nn.functional.pad(torch.ones(1), (length - 1, 0))


def with_component() -> Adapter:
    adapter = make_adapter()
    adapter.deltas["text_encoder_2"] = {"encoder.layers.0.mlp.fc1": torch.ones(2)}
    return adapter


def of_another_base() -> Adapter:
    adapter = make_adapter()
    adapter.metadata.fingerprints["text_encoder"] = "0" * 64
    return adapter


MISFITS: dict[str, tuple[Callable[[], Adapter], type[Exception], str]] = {
    "layer": (change(no_such_layer=torch.ones(2)), CheckpointError, "no_such_layer"),
    "norm": (change(final_layer_norm=torch.ones(2)), CheckpointError, "final_layer_norm"),
    "rank": (lambda: make_adapter(rank=33), CheckpointError, "33 values, the layer has 32"),
    "sparse": (
        change(**{"encoder.layers.0.mlp.fc1": one_of(1000)}),
        CheckpointError,
        "1000 values, the layer has 32",
    ),
    "nan": (
        change(**{"encoder.layers.0.mlp.fc1": torch.tensor([torch.nan])}),
        CheckpointError,
        "NaN",
    ),
    "component": (with_component, CheckpointError, "text_encoder_2"),
    "base": (of_another_base, BaseMismatchError, "ignore_base_mismatch"),
}


@pytest.mark.parametrize("loaded", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("kind", MISFITS)
def test_a_misfit_leaves_the_pipeline_bit_for_bit(
    kind: str, loaded: bool, tiny_pipe: Any, adapter_file: Path, tmp_path: Path
) -> None:
    make, error, reason = MISFITS[kind]
    write_adapter(tmp_path / WEIGHTS_NAME, make())
    if loaded:
        load(tiny_pipe, adapter_file, "good")
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(error, match=reason):
        load(tiny_pipe, tmp_path, "bad")
    snapshot.check()


BAD_FILES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\x00" * 100,
    "newer": lambda data: data.replace(b'"format_version":"1"', b'"format_version":"2"'),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_leaves_the_pipeline_bit_for_bit(
    kind: str, tiny_pipe: Any, adapter_file: Path, tmp_path: Path
) -> None:
    data = BAD_FILES[kind](adapter_file.read_bytes())
    assert data != adapter_file.read_bytes()
    (tmp_path / WEIGHTS_NAME).write_bytes(data)
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(CheckpointError):
        load(tiny_pipe, tmp_path)
    snapshot.check()


def test_a_failing_svd_leaves_the_pipeline_bit_for_bit(
    tiny_pipe: Any, adapter_file: Path, empty_cache: Path
) -> None:
    tiny_pipe.text_encoder.get_parameter("encoder.layers.1.self_attn.q_proj.weight").data[0] = 1e9
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(BasisError):
        load(tiny_pipe, adapter_file)
    snapshot.check()


def test_another_base_is_refused_unless_told(adapter_file: Path) -> None:
    pipe = tiny.make_tiny_pipeline(seed=5)
    base = tiny.run_pipeline(pipe)
    with pytest.raises(BaseMismatchError, match="tiny"):
        load(pipe, adapter_file)
    assert torch.equal(tiny.run_pipeline(pipe), base)
    load(pipe, adapter_file, ignore_base_mismatch=True)
    assert not torch.equal(tiny.run_pipeline(pipe), base)


def test_a_full_disk_keeps_the_saved_adapter(
    tiny_pipe: Any, adapter_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half a fi")
        raise OSError(errno.ENOSPC, "No space left on device")

    load(tiny_pipe, adapter_file)
    path = tiny_pipe.save_svfit_weights(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("svfit_diffusion.files.save_file", fill)
    with pytest.raises(OSError, match="No space left"):
        tiny_pipe.save_svfit_weights(tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_needs_a_name_where_several_are_loaded(tiny_pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterNameError, match="none"):
        tiny_pipe.save_svfit_weights(tmp_path)
    for seed in (0, 1):
        load(tiny_pipe, state_dict(make_adapter(seed)))
    with pytest.raises(AdapterNameError, match="'default_0', 'default_1'"):
        tiny_pipe.save_svfit_weights(tmp_path)
    with pytest.raises(AdapterNameError, match="nobody"):
        tiny_pipe.save_svfit_weights(tmp_path, "nobody")
    assert list(tmp_path.iterdir()) == []
    path = tiny_pipe.save_svfit_weights(tmp_path, "default_1")
    expected = state_dict(make_adapter(1))
    assert all(torch.equal(expected[name], t) for name, t in load_file(path).items())


def test_what_inject_makes_can_be_saved_and_loaded(tiny_pipe: Any, tmp_path: Path) -> None:
    inject(tiny_pipe.unet, SVFitConfig(rank=0.9, target="all"), show_progress=False)
    with torch.no_grad():
        for _, delta in sigma_parameters(tiny_pipe.unet):
            delta.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    tiny_pipe.save_svfit_weights(tmp_path)
    with pytest.raises(BaseMismatchError):
        load(tiny.make_tiny_pipeline(seed=1), tmp_path)
    again = tiny.make_tiny_pipeline()
    load(again, tmp_path)
    # Trained live and loaded held: two ways to one sum.
    torch.testing.assert_close(*images_of(tiny_pipe, again), rtol=0, atol=1e-4)


# --- adapters ---------------------------------------------------------------------------------


def load_two(pipe: Any) -> None:
    load(pipe, state_dict(make_adapter(0)), "a")
    load(pipe, state_dict(make_adapter(1, rank=8)), "b")


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
        write_adapter(tmp_path / name / WEIGHTS_NAME, adapter)
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
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


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
    snapshot = Snapshot(tiny_pipe)
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
    snapshot = Snapshot(tiny_pipe)
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
    snapshot = Snapshot(tiny_pipe)
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


# --- adapters per prompt ----------------------------------------------------------------------


PROMPTS = ["a photo of a dog", "a cat", "a very red bicycle"]
# Two steps of the tiny pipeline in float32: sums in another order, in pixels from 0 to 1.
SAME = {"rtol": 0, "atol": 2e-5}


def batch_of(
    rows: Sequence[int], images: int = 1, negative: bool = True, **kwargs: Any
) -> dict[str, Any]:
    """Arguments that draw some of `PROMPTS`, each image with a noise of its own."""
    seeds = [10 * row + image for row in rows for image in range(images)]
    # One for each: a picture that all share takes its noise from the first one's generator.
    for name in kwargs.keys() & {"image", "mask_image"}:
        kwargs[name] = [kwargs[name]] * len(seeds)
    if negative:
        kwargs["negative_prompt"] = [f"bad {row}" for row in rows]
    return kwargs | {
        "prompt": [PROMPTS[row] for row in rows],
        "num_images_per_prompt": images,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
    }


def draw_alone(pipe: Any, row: int, names: list[str], weights: Any, **kwargs: Any) -> Tensor:
    pipe.set_svfit_adapters(names, weights)
    images = tiny.run_pipeline(pipe, **batch_of([row], **kwargs))
    pipe.set_svfit_adapters("b", -1.0)
    return images


@pytest.mark.parametrize("kind", ["text", "image", "inpaint"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_mixed_batch_is_each_prompt_alone(
    guidance: float, images: int, kind: str, tiny_pipe: Any
) -> None:
    load_two(tiny_pipe)
    pipe, kwargs = make_variant(tiny_pipe, kind)
    kwargs = kwargs | {"guidance_scale": guidance, "images": images}
    alone = [
        draw_alone(pipe, 0, ["a"], 0.8, **kwargs),
        draw_alone(pipe, 1, [], None, **kwargs),
        draw_alone(pipe, 2, ["a", "b"], [0.5, {"unet": 1.0, "text_encoder": -0.5}], **kwargs),
    ]
    snapshot = Snapshot(tiny_pipe)
    mix = {"a": 1.0, "b": {"unet": 2.0, "text_encoder": -1.0}}
    with pipe.svfit_adapters_per_prompt(
        ["a", None, mix], [0.8, 1.0, 0.5], num_images_per_prompt=images
    ):
        mixed = tiny.run_pipeline(pipe, **batch_of(range(3), **kwargs))
    torch.testing.assert_close(mixed, torch.cat(alone), **SAME)
    base = draw_alone(pipe, 0, [], None, **kwargs)
    assert (mixed[:images] - base).abs().max() > 1e-2
    snapshot.check()


def test_a_mixed_batch_without_negative_prompts(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    alone = [
        draw_alone(tiny_pipe, row, [name], 1.0, negative=False) for row, name in enumerate("ab")
    ]
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        mixed = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1], negative=False))
    torch.testing.assert_close(mixed, torch.cat(alone), **SAME)


def test_adapters_on_different_models_mix(tiny_pipe: Any) -> None:
    load(tiny_pipe, state_dict(make_adapter(0, parts=("unet",))), "a")
    load(tiny_pipe, state_dict(make_adapter(1, parts=("text_encoder",))), "b")
    alone = [draw_alone(tiny_pipe, row, [name], 1.0) for row, name in enumerate("ab")]
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        mixed = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
    torch.testing.assert_close(mixed, torch.cat(alone), **SAME)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_mixed_batch_in_half_precision(dtype: torch.dtype, tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    tiny_pipe.to(dtype)
    alone = [draw_alone(tiny_pipe, row, [name], 1.0) for row, name in enumerate("ab")]
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        mixed = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
    assert mixed.dtype == dtype
    # Rounding of that precision, grown by two steps of two networks.
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=0, atol=40 * torch.finfo(dtype).eps)


def test_the_same_adapter_for_all_is_that_adapter_set_to_the_last_bit(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters("a", 0.7)
    expected = tiny.run_pipeline(tiny_pipe, **batch_of(range(3)))
    tiny_pipe.set_svfit_adapters("b")
    with tiny_pipe.svfit_adapters_per_prompt(["a"] * 3, 0.7):
        assert torch.equal(tiny.run_pipeline(tiny_pipe, **batch_of(range(3))), expected)


@pytest.mark.parametrize("adapters", [[None, None], ["a", "b"], [{}, {"a": 1.0}]])
def test_prompts_of_weight_zero_are_the_base_bit_for_bit(adapters: Any, tiny_pipe: Any) -> None:
    base = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
    load_two(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt(adapters, 0.0):
        assert torch.equal(tiny.run_pipeline(tiny_pipe, **batch_of([0, 1])), base)


def test_a_pipeline_without_adapters_takes_base_prompts_only(tiny_pipe: Any) -> None:
    base = tiny.run_pipeline(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt([None]):
        assert torch.equal(tiny.run_pipeline(tiny_pipe), base)
    with pytest.raises(AdapterNameError), tiny_pipe.svfit_adapters_per_prompt(["a"]):
        pass


def test_an_error_inside_leaves_the_pipeline_as_it_was(tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(ZeroDivisionError), tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        raise ZeroDivisionError
    snapshot.check()


WRONG_BATCHES: dict[str, dict[str, Any]] = {
    "one prompt": {"prompt": "a dog", "generator": None},
    "too many prompts": batch_of([0, 1, 2]),
    "other images": batch_of([0, 1], images=2),
    "images of one prompt": batch_of([0], images=2),
}


@pytest.mark.parametrize("kind", WRONG_BATCHES)
def test_a_batch_of_other_prompts_is_refused(kind: str, tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    snapshot = Snapshot(tiny_pipe)
    with (
        tiny_pipe.svfit_adapters_per_prompt(["a", "b"]),
        pytest.raises(BatchError, match="call the pipeline with a list of 2 prompts"),
    ):
        tiny.run_pipeline(tiny_pipe, **WRONG_BATCHES[kind])
    snapshot.check()


BAD_MIXES: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "unknown": ((["a", "nobody"],), {}, AdapterNameError, "nobody"),
    "unknown in a mix": ((["a", {"nobody": 1.0}],), {}, AdapterNameError, "nobody"),
    "none": (([],), {}, ConfigError, "each prompt"),
    "text": (("ab",), {}, ConfigError, "each prompt"),
    "mapping": (({"a": 1.0},), {}, ConfigError, "each prompt"),
    "number": (([1],), {}, ConfigError, "mapping of names"),
    "few": ((["a", "b"], [1.0]), {}, ConfigError, "2 adapters and 1 weights"),
    "many": ((["a"], [1.0, 1.0]), {}, ConfigError, "1 adapters and 2 weights"),
    "nan": ((["a"], [float("nan")]), {}, ConfigError, "finite"),
    "nan in a mix": (([{"a": float("nan")}],), {}, ConfigError, "finite"),
    "component": (([{"a": {"vae": 1.0}}],), {}, ConfigError, "vae"),
    "no images": ((["a"],), {"num_images_per_prompt": 0}, ConfigError, "at least 1"),
    "half an image": ((["a"],), {"num_images_per_prompt": 1.5}, ConfigError, "at least 1"),
}


@pytest.mark.parametrize("kind", BAD_MIXES)
def test_a_bad_mix_changes_nothing(kind: str, tiny_pipe: Any) -> None:
    args, kwargs, error, reason = BAD_MIXES[kind]
    load_two(tiny_pipe)
    snapshot = Snapshot(tiny_pipe)
    with (
        pytest.raises(error, match=reason),
        tiny_pipe.svfit_adapters_per_prompt(*args, **kwargs),
    ):
        pytest.fail("entered")
    snapshot.check()


@pytest.mark.parametrize("state", ["fused", "disabled"])
def test_a_mix_of_fused_or_disabled_adapters_is_refused(state: str, tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    (tiny_pipe.fuse_svfit if state == "fused" else tiny_pipe.disable_svfit)()
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(StateError, match=state), tiny_pipe.svfit_adapters_per_prompt(["a"]):
        pytest.fail("entered")
    snapshot.check()


def nest(pipe: Any) -> None:
    with pipe.svfit_adapters_per_prompt(["a"]):
        pytest.fail("entered")


@pytest.mark.parametrize(
    "call",
    [
        nest,
        lambda pipe: pipe.set_svfit_adapters("a"),
        lambda pipe: pipe.delete_svfit_adapters("a"),
        lambda pipe: pipe.disable_svfit(),
        lambda pipe: pipe.enable_svfit(),
        lambda pipe: pipe.fuse_svfit(),
        lambda pipe: load(pipe, state_dict(make_adapter(7))),
        lambda pipe: pipe.unet._svfit_injection.set_trainable("a", True),
    ],
)
def test_changes_inside_a_mix_are_refused(call: Callable[[Any], object], tiny_pipe: Any) -> None:
    load_two(tiny_pipe)
    snapshot = Snapshot(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        first = tiny.run_pipeline(tiny_pipe, **batch_of([0, 1]))
        with pytest.raises(StateError, match=r"inside svfit_adapters_per_prompt\(\)"):
            call(tiny_pipe)
        assert torch.equal(tiny.run_pipeline(tiny_pipe, **batch_of([0, 1])), first)
    snapshot.check()


def test_unloading_inside_a_mix_restores_the_base(tiny_pipe: Any) -> None:
    snapshot = Snapshot(tiny_pipe)
    load_two(tiny_pipe)
    with tiny_pipe.svfit_adapters_per_prompt(["a", "b"]):
        tiny_pipe.unload_svfit_weights()
        snapshot.check()
    snapshot.check()


# --- fusing -----------------------------------------------------------------------------------


def test_fusing_and_unfusing_are_exact(tiny_pipe: Any, tmp_path: Path) -> None:
    load_two(tiny_pipe)
    tiny_pipe.set_svfit_adapters(["a", "b"], [1.0, 0.5])
    snapshot = Snapshot(tiny_pipe)
    tiny_pipe.fuse_svfit()
    assert torch.equal(tiny.run_pipeline(tiny_pipe), snapshot.image)
    tiny_pipe.save_pretrained(tmp_path)
    merged = StableDiffusionPipeline.from_pretrained(tmp_path)
    merged.set_progress_bar_config(disable=True)
    assert torch.equal(tiny.run_pipeline(merged), snapshot.image)
    tiny_pipe.unfuse_svfit()
    snapshot.check()


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
    snapshot = Snapshot(tiny_pipe)
    with pytest.raises(StateError, match="fuse"):
        FUSED_CALLS[call](tiny_pipe)
    snapshot.check()
    tiny_pipe.unload_svfit_weights()
    assert torch.equal(*images_of(tiny_pipe, tiny.make_tiny_pipeline()))


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


PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (StableDiffusionPipeline, {}),
    "image": (StableDiffusionImg2ImgPipeline, {"strength": 1.0}),
    "inpaint": (
        StableDiffusionInpaintPipeline,
        {"height": tiny.IMAGE_SIZE, "width": tiny.IMAGE_SIZE},
    ),
}


def make_variant(pipe: Any, kind: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline of another task from the same components, and arguments to call it with."""
    pipeline, kwargs = PIPELINES[kind]
    variant = pipeline(**pipe.components, requires_safety_checker=False)
    variant.set_progress_bar_config(disable=True)
    size = (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    if kind != "text":
        kwargs = kwargs | {"image": Image.new("RGB", size, (200, 90, 40))}
    if kind == "inpaint":
        kwargs = kwargs | {"mask_image": Image.new("L", size, 255)}
    return variant, kwargs


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
    snapshot = Snapshot(tiny.make_tiny_pipeline())
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


# --- many adapters ----------------------------------------------------------------------------


def test_an_adapter_may_be_added_without_becoming_active(tiny_pipe: Any) -> None:
    base = tiny.run_pipeline(tiny_pipe)
    load(tiny_pipe, state_dict(make_adapter(1)), "a", activate=False)
    assert tiny_pipe.get_active_svfit_adapters() == []
    assert torch.equal(tiny.run_pipeline(tiny_pipe), base)
    tiny_pipe.set_svfit_adapters("a")
    chosen = tiny.run_pipeline(tiny_pipe)
    tiny_pipe.unload_svfit_weights()
    load(tiny_pipe, state_dict(make_adapter(1)), "a")
    assert torch.equal(tiny.run_pipeline(tiny_pipe), chosen)


def test_a_second_adapter_reads_no_basis(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tiny_pipe, state_dict(make_adapter(1)), "a")
    alone = tiny.make_tiny_pipeline()
    load(alone, state_dict(make_adapter(2)), "b")

    def refuse(*_: Any) -> Any:
        raise AssertionError("a basis is read again")

    monkeypatch.setattr(basis_module, "_read", refuse)
    monkeypatch.setattr(basis_module, "_digest", refuse)
    load(tiny_pipe, state_dict(make_adapter(2)), "b")
    assert torch.equal(*images_of(tiny_pipe, alone))


def test_a_second_adapter_of_higher_rank_gets_its_basis(tiny_pipe: Any) -> None:
    load(tiny_pipe, state_dict(make_adapter(1, rank=2)), "a")
    load(tiny_pipe, state_dict(make_adapter(2, rank=16)), "b")
    alone = tiny.make_tiny_pipeline()
    load(alone, state_dict(make_adapter(2, rank=16)), "b")
    assert torch.equal(*images_of(tiny_pipe, alone))


@pytest.mark.parametrize("how", ["written to", "exchanged"])
def test_a_weight_that_changed_since_the_first_adapter_is_noticed(tiny_pipe: Any, how: str) -> None:
    path = next(iter(make_adapter().deltas["unet"]))
    load(tiny_pipe, state_dict(make_adapter(1)), "a", activate=False)
    layer = tiny_pipe.unet.get_submodule(path)
    if how == "written to":
        with torch.no_grad():
            layer.weight.mul_(2)
    else:
        layer.weight = torch.nn.Parameter(layer.weight.detach() * 2, requires_grad=False)
    adapter = make_adapter(2)
    with pytest.raises(BaseMismatchError):
        put_adapter(models_of(tiny_pipe), adapter, "b", show_progress=False)
    assert tiny_pipe.get_list_svfit_adapters() == {name: ["a"] for name in MODELS}


def test_deleting_adapters_forgets_layers_that_none_shifts(tiny_pipe: Any) -> None:
    load(tiny_pipe, state_dict(make_adapter(1)), "whole")
    part = {k: v for k, v in state_dict(make_adapter(2)).items() if "attn1" in k}
    load(tiny_pipe, part, "part")
    tiny_pipe.delete_svfit_adapters("whole")
    injection = Injection.find(tiny_pipe.unet)
    assert injection is not None
    assert set(injection.digests) == set(injection.projections)
    load(tiny_pipe, state_dict(make_adapter(1)), "whole")
    alone = tiny.make_tiny_pipeline()
    load(alone, state_dict(make_adapter(1)), "whole")
    assert torch.equal(*images_of(tiny_pipe, alone))
