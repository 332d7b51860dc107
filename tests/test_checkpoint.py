"""Adapter files: exact round trips, and a reason for every file that is refused."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from svfit_diffusion.checkpoint import (
    Adapter,
    AdapterMetadata,
    match_layers,
    package_versions,
    parse_adapter,
    read_adapter,
    state_dict,
    write_adapter,
)
from svfit_diffusion.errors import CheckpointError

KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.delta"
METADATA = AdapterMetadata(
    base_model="someone/base",
    base_revision="0123abc",
    fingerprints={"unet": "ab" * 32},
    rank={"unet": "0.99"},
    target={"unet": "attention"},
    instance_prompt='a photo of "sks" dög',
    class_prompt="a photo of a dog",
    training={"lr": 1e-3, "steps": 200, "seeds": [1, 2], "note": None},
    versions=package_versions(),
)


def make_adapter() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return Adapter(
        {
            "unet": {"a.to_q": torch.randn(5, generator=generator), "a.to_k": torch.zeros(1)},
            "text_encoder": {"encoder.layers.0.self_attn.q_proj": torch.tensor([1e-38, -3e38])},
            "text_encoder_2": {"text_model.encoder.layers.1.mlp.fc1": torch.ones(3)},
            "transformer": {"blocks.0.attn.to_v": torch.full((2,), 0.1)},
        },
        METADATA,
    )


def assert_equal(first: Adapter, second: Adapter) -> None:
    assert first.metadata == second.metadata
    assert first.parameter_count == second.parameter_count
    tensors, others = state_dict(first), state_dict(second)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "adapter.safetensors"
    write_adapter(path, make_adapter())
    assert_equal(read_adapter(path), make_adapter())
    assert make_adapter().parameter_count == 5 + 1 + 2 + 3 + 2
    assert list(path.parent.iterdir()) == [path]


def test_text_encoder_paths_are_written_as_published(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", make_adapter())
    names = load_file(tmp_path / "a.safetensors").keys()
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.delta" in names
    assert "text_encoder_2.text_model.encoder.layers.1.mlp.fc1.delta" in names
    assert "unet.a.to_q.delta" in names


def test_the_header_can_be_read_by_others(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", make_adapter())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "svfit"
    assert header["format_version"] == "1"
    assert header["base_model"] == "someone/base"
    assert json.loads(header["training"]) == METADATA.training


def test_a_bare_state_dict_has_unknown_metadata() -> None:
    adapter = parse_adapter({KEY: torch.ones(2)}, {})
    assert adapter.metadata == AdapterMetadata()
    # Headers that other tools write are no reason to refuse.
    assert parse_adapter({KEY: torch.ones(2)}, {"format": "pt"}).metadata == AdapterMetadata()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_shifts_of_any_float_type_become_float32(dtype: torch.dtype) -> None:
    values = torch.tensor([0.1, -2.0]).to(dtype)
    (delta,) = parse_adapter({KEY: values}, {}).deltas["unet"].values()
    assert delta.dtype == torch.float32
    assert torch.equal(delta, values.float())


BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({}, "no tensors"),
    "lora": ({"unet.a.to_q.lora_A.weight": torch.ones(2, 3)}, "LoRA"),
    "kohya": ({"lora_unet_a_to_q.lora_down.weight": torch.ones(2, 3)}, "LoRA"),
    "component": ({"vae.a.delta": torch.ones(2)}, "unknown key 'vae.a.delta'"),
    "no component": ({"a.to_q.delta": torch.ones(2)}, "unknown key"),
    "no path": ({"unet.delta": torch.ones(2)}, "unknown key"),
    "no suffix": ({"unet.a.to_q.weight": torch.ones(2)}, "unknown key"),
    "extra key": ({KEY: torch.ones(2), "step": torch.ones(1)}, "unknown key 'step'"),
    "matrix": ({KEY: torch.ones(2, 2)}, r"\(2, 2\)"),
    "scalar": ({KEY: torch.tensor(1.0)}, r"\(\)"),
    "no values": ({KEY: torch.ones(0)}, r"\(0,\)"),
    "integers": ({KEY: torch.ones(2).long()}, "int64"),
    "nan": ({KEY: torch.tensor([1.0, torch.nan])}, "NaN"),
    "infinite": ({KEY: torch.tensor([1.0, -torch.inf])}, "infinite"),
    "beyond float32": ({KEY: torch.tensor([1e300], dtype=torch.float64)}, "infinite"),
    "no tensor": ({KEY: [1.0, 2.0]}, "expected a float vector"),
    "number key": ({7: torch.ones(2)}, "unknown key"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensors_are_refused_with_the_reason(kind: str) -> None:
    tensors, reason = BAD_TENSORS[kind]
    with pytest.raises(CheckpointError, match=reason):
        parse_adapter(tensors, {})


def test_every_wrong_key_is_listed_up_to_a_limit() -> None:
    bad = {f"wrong{i}": torch.ones(1) for i in range(11)}
    with pytest.raises(CheckpointError) as caught:
        parse_adapter(bad, {})
    assert all(f"wrong{i}'" in str(caught.value) for i in range(8))
    assert "3 more" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"format": "svfit", "format_version": "2"}, "upgrade"),
        ({"format_version": "9"}, "upgrade"),
        ({"format": "svfit", "fingerprints": "not json"}, "fingerprints"),
        ({"format": "svfit", "training": "[1]"}, "training"),
        ({"format": "svfit", "fingerprints": '{"unet": 5}'}, "fingerprints"),
    ],
)
def test_bad_headers_are_refused(header: dict[str, str], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        parse_adapter({KEY: torch.ones(2)}, header)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({KEY: [1.0]}))


def as_torch_file(path: Path) -> None:
    torch.save({KEY: torch.ones(2)}, path)


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404 not found</html>"),
    "huge header": lambda path: path.write_bytes(b"\xff" * 8 + b"{}"),
    "pickle": as_pickle,
    "torch.save": as_torch_file,
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "subject.safetensors"
    write_adapter(path, make_adapter())
    BAD_FILES[kind](path)
    with pytest.raises(CheckpointError, match=r"subject\.safetensors"):
        read_adapter(path)


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("the pickle was run",)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors"])
def test_pickles_are_never_run(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"subject{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"pickle|not a readable safetensors"):
        read_adapter(path)


def fill_disk(error: Exception) -> Callable[..., None]:
    """`save_file` that writes some bytes and then fails."""

    def save(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half a fi")
        raise error

    return save


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_keeps_the_previous_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter(path, make_adapter())
    before = path.read_bytes()
    monkeypatch.setattr("svfit_diffusion.files.save_file", fill_disk(error))
    with pytest.raises(OSError, match="No space left"):
        write_adapter(path, make_adapter())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter(path, make_adapter())
    (tmp_path / "b").touch()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode


def test_strided_views_and_parameters_can_be_saved(tmp_path: Path) -> None:
    shared = torch.arange(8.0)
    views = {"a": shared[::2], "b": torch.nn.Parameter(shared[1::3]), "c": shared.expand(2, 8)[1]}
    adapter = Adapter({"unet": views}, AdapterMetadata())
    write_adapter(tmp_path / "a.safetensors", adapter)
    assert_equal(read_adapter(tmp_path / "a.safetensors"), adapter)


RANKS = {"encoder.layers.0.q_proj": 4, "a.to_q": 3}


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("own", ["", "text_model."])
def test_text_encoder_paths_match_with_and_without_prefix(prefix: str, own: str) -> None:
    ranks = {f"{own}encoder.layers.0.q_proj": 4}
    delta = torch.ones(4)
    matched = match_layers({f"{prefix}encoder.layers.0.q_proj": delta}, ranks, "text_encoder")
    assert list(matched) == list(ranks)
    assert matched.popitem()[1] is delta


@pytest.mark.parametrize(
    ("deltas", "reason"),
    [
        ({"a.to_x": torch.ones(1)}, "no Linear or Conv layer 'a.to_x'"),
        ({"a.to_q": torch.ones(4)}, "4 values, the layer has 3"),
        (
            {
                "encoder.layers.0.q_proj": torch.ones(1),
                "text_model.encoder.layers.0.q_proj": torch.zeros(1),
            },
            "twice",
        ),
    ],
)
def test_shifts_that_do_not_fit_are_refused(deltas: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        match_layers(deltas, RANKS, "text_encoder")


def test_safetensors_files_of_other_tools_with_our_keys_load(tmp_path: Path) -> None:
    save_file({KEY: torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").parameter_count == 2
