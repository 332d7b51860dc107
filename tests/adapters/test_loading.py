"""Loading and saving: from every source, exactly, and with a reason for all that is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tiny_adapters import (
    MODELS,
    PipelineSnapshot,
    images_of,
    load,
    make_adapter,
    tiny_bases,
    with_sketches,
)
from torch import Tensor

from svfit_diffusion import (
    AdapterNameError,
    BaseMismatchError,
    BasisError,
    CheckpointError,
    StateError,
    SVFitConfig,
    inject,
    sigma_parameters,
)
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
from svfit_diffusion.spectrum import cache

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
    assert saved.sketches.keys() == {*MODELS}
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

    monkeypatch.setattr("svfit_diffusion.adapters.sources.hf_hub_download", download)
    load(tiny_pipe, "someone/my-dog", "dog", subfolder="v2", revision="main", token="t")
    kwargs = {"subfolder": "v2", "revision": "main", "token": "t"}
    assert calls == [("someone/my-dog", WEIGHTS_NAME, kwargs)]
    assert tiny_pipe.get_active_svfit_adapters() == ["dog"]


@pytest.mark.parametrize("source", ["someone/my-dog", "no such folder/a/b", "", "a b", "/nowhere"])
def test_what_is_neither_here_nor_on_the_hub_is_refused(source: str, tiny_pipe: Any) -> None:
    # The suite is offline, so that the hub's client itself answers.
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(CheckpointError):
        load(tiny_pipe, source)
    snapshot.check()


def test_hub_errors_become_checkpoint_errors(
    tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("svfit_diffusion.adapters.sources.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"someone/my-dog.*hub"):
        load(tiny_pipe, "someone/my-dog")


def test_an_empty_folder_is_refused(tiny_pipe: Any, tmp_path: Path) -> None:
    snapshot = PipelineSnapshot(tiny_pipe)
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
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(error, match=reason):
        load(tiny_pipe, tmp_path, "bad")
    snapshot.check()


BAD_FILES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\x00" * 100,
    "newer": lambda data: data.replace(b'"format_version":"2"', b'"format_version":"4"'),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_leaves_the_pipeline_bit_for_bit(
    kind: str, tiny_pipe: Any, adapter_file: Path, tmp_path: Path
) -> None:
    data = BAD_FILES[kind](adapter_file.read_bytes())
    assert data != adapter_file.read_bytes()
    (tmp_path / WEIGHTS_NAME).write_bytes(data)
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(CheckpointError):
        load(tiny_pipe, tmp_path)
    snapshot.check()


def test_other_singular_vectors_than_those_of_the_training_are_refused(
    tiny_pipe: Any, tmp_path: Path
) -> None:
    adapter = with_sketches(make_adapter())
    path = next(iter(adapter.deltas["unet"]))
    # As far off as vectors turned by a tenth of the shift.
    adapter.sketches["unet"][path] += 0.1 * adapter.deltas["unet"][path].norm()
    write_adapter(tmp_path / WEIGHTS_NAME, adapter)
    snapshot = PipelineSnapshot(tiny_pipe)
    with pytest.raises(BaseMismatchError, match=rf"1 of \d+ layers of the unet.*{path}.*10%"):
        load(tiny_pipe, tmp_path)
    snapshot.check()
    # On another base they are expected to differ.
    load(tiny.make_tiny_pipeline(seed=5), tmp_path, ignore_base_mismatch=True)


def test_files_of_version_1_still_load(tiny_pipe: Any, adapter_file: Path, tmp_path: Path) -> None:
    adapter = make_adapter()
    header = adapter.metadata.to_header() | {"format_version": "1"}
    save_file(state_dict(adapter), tmp_path / WEIGHTS_NAME, header)
    load(tiny_pipe, tmp_path)
    other = tiny.make_tiny_pipeline()
    load(other, adapter_file)
    assert torch.equal(*images_of(tiny_pipe, other))


def test_a_failing_svd_leaves_the_pipeline_bit_for_bit(
    tiny_pipe: Any, adapter_file: Path, empty_cache: Path
) -> None:
    tiny_pipe.text_encoder.get_parameter("encoder.layers.1.self_attn.q_proj.weight").data[0] = 1e9
    snapshot = PipelineSnapshot(tiny_pipe)
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
    monkeypatch.setattr("svfit_diffusion.files.atomic.save_file", fill)
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
    expected = state_dict(with_sketches(make_adapter(1)))
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
    # Trained live and loaded as weights: two ways to one sum.
    torch.testing.assert_close(*images_of(tiny_pipe, again), rtol=0, atol=1e-4)


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

    monkeypatch.setattr(cache, "_read", refuse)
    monkeypatch.setattr(cache, "_digest", refuse)
    load(tiny_pipe, state_dict(make_adapter(2)), "b")
    assert torch.equal(*images_of(tiny_pipe, alone))


def test_a_second_adapter_of_higher_rank_gets_its_basis(tiny_pipe: Any) -> None:
    load(tiny_pipe, state_dict(make_adapter(1, rank=2)), "a")
    load(tiny_pipe, state_dict(make_adapter(2, rank=16)), "b")
    alone = tiny.make_tiny_pipeline()
    load(alone, state_dict(make_adapter(2, rank=16)), "b")
    assert torch.equal(*images_of(tiny_pipe, alone))


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("how", ["written to", "exchanged"])
def test_a_weight_that_changed_since_the_first_adapter_is_noticed(
    tiny_pipe: Any, how: str, active: bool
) -> None:
    path = next(iter(make_adapter().deltas["unet"]))
    load(tiny_pipe, state_dict(make_adapter(1)), "a", activate=active)
    layer = tiny_pipe.unet.get_submodule(path)
    if how == "written to":
        with torch.no_grad():
            layer.weight.mul_(2)
    else:
        layer.weight = torch.nn.Parameter(layer.weight.detach() * 2, requires_grad=False)
    changed = layer.weight.clone()
    for call in (
        lambda: load(tiny_pipe, state_dict(make_adapter(2)), "b"),
        lambda: tiny_pipe.set_svfit_adapters("a"),
        tiny_pipe.unload_svfit_weights,
    ):
        with pytest.raises(StateError, match=rf"{path}.*keep_changed_weights=True"):
            call()
    assert tiny_pipe.get_list_svfit_adapters() == {name: ["a"] for name in MODELS}
    tiny_pipe.unload_svfit_weights(keep_changed_weights=True)
    assert tiny_pipe.get_list_svfit_adapters() == {}
    assert torch.equal(layer.weight, changed)
    with pytest.raises(BaseMismatchError):
        put_adapter(models_of(tiny_pipe), make_adapter(2), "b", show_progress=False)
    assert tiny_pipe.get_list_svfit_adapters() == {}


def test_deleting_adapters_forgets_layers_that_none_shifts(tiny_pipe: Any) -> None:
    load(tiny_pipe, state_dict(make_adapter(1)), "whole")
    part = {k: v for k, v in state_dict(make_adapter(2)).items() if "attn1" in k}
    load(tiny_pipe, part, "part")
    tiny_pipe.delete_svfit_adapters("whole")
    injection = Injection.find(tiny_pipe.unet)
    assert injection is not None
    assert {f"unet.{path}.delta" for path in injection.layers} == {
        name for name in part if name.startswith("unet.")
    }
    digests = tiny_bases()["unet"].digests
    assert all(shifted.digest == digests[path] for path, shifted in injection.layers.items())
    load(tiny_pipe, state_dict(make_adapter(1)), "whole")
    alone = tiny.make_tiny_pipeline()
    load(alone, state_dict(make_adapter(1)), "whole")
    assert torch.equal(*images_of(tiny_pipe, alone))
