"""Adapter files: exact round trips, and a reason for every file that is refused."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.files.adapter import (
    Adapter,
    parse_adapter,
    read_adapter,
    state_dict,
    write_adapter,
)
from svfit_diffusion.files.atomic import write_safetensors
from svfit_diffusion.files.metadata import AdapterMetadata, package_versions

ROOT = Path(__file__).resolve().parents[2]
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
    """Shifts of four components, two of which have sketches."""
    generator = torch.Generator().manual_seed(0)
    return Adapter(
        {
            "unet": {"a.to_q": torch.randn(5, generator=generator), "a.to_k": torch.zeros(1)},
            "text_encoder": {"encoder.layers.0.self_attn.q_proj": torch.tensor([1e-38, -65504.0])},
            "text_encoder_2": {"text_model.encoder.layers.1.mlp.fc1": torch.ones(3)},
            "transformer": {"blocks.0.attn.to_v": torch.full((2,), 0.1)},
        },
        METADATA,
        {
            "unet": {"a.to_q": torch.arange(4.0), "a.to_k": torch.zeros(4)},
            "text_encoder": {"encoder.layers.0.self_attn.q_proj": torch.full((4,), -0.5)},
        },
    )


def assert_equal(first: Adapter, second: Adapter) -> None:
    assert first.metadata == second.metadata
    assert first.parameter_count == second.parameter_count
    tensors, others = state_dict(first), state_dict(second)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert first.sketches.keys() == second.sketches.keys()


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "adapter.safetensors"
    write_adapter(path, make_adapter())
    assert_equal(read_adapter(path), make_adapter())
    assert make_adapter().parameter_count == 5 + 0 + 2 + 3 + 2
    assert list(path.parent.iterdir()) == [path]


def test_text_encoder_paths_are_written_as_published(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", make_adapter())
    names = load_file(tmp_path / "a.safetensors").keys()
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.delta" in names
    assert "text_encoder_2.text_model.encoder.layers.1.mlp.fc1.delta" in names
    assert "unet.a.to_q.delta" in names


def test_a_sketch_belongs_to_the_layer_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter(path, make_adapter())
    rows = load_file(path)["unet.sketch"]
    assert rows.tolist() == [[0, 0, 0, 0], [0, 1, 2, 3]]  # to_k, to_q: by name
    sketches = read_adapter(path).sketches
    assert sketches.keys() == {"unet", "text_encoder"}
    assert sketches["unet"]["a.to_q"].tolist() == [0, 1, 2, 3]
    (name,) = sketches["text_encoder"]
    assert name == "text_model.encoder.layers.0.self_attn.q_proj"


def test_files_of_version_1_are_read() -> None:
    header = METADATA.to_header() | {"format_version": "1"}
    adapter = parse_adapter({KEY: torch.ones(2)}, header)
    assert adapter.metadata == METADATA
    assert adapter.sketches == {}


def test_the_header_can_be_read_by_others(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", make_adapter())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "svfit"
    assert header["format_version"] == "2"
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
    "empty": ({}, "holds no shifts"),
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
    "beyond any model": (
        {KEY: torch.tensor([1.0, 3e38])},
        r"a shift of 3e\+38, beyond the ±65504",
    ),
    "just beyond": ({KEY: torch.tensor([-65505.0])}, "beyond the ±65504"),
    "eight bits": ({KEY: torch.ones(2).to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
    "beyond float32": ({KEY: torch.tensor([1e300], dtype=torch.float64)}, "infinite"),
    "no tensor": ({KEY: [1.0, 2.0]}, "is a list, expected a tensor"),
    "number key": ({7: torch.ones(2)}, "unknown key"),
}


SKETCH = "unet.sketch"
BAD_SKETCHES: dict[str, tuple[Any, str]] = {
    "too few": (torch.ones(1, 4), "of 1 layers, expected 2"),
    "too many": (torch.ones(3, 4), "of 3 layers, expected 2"),
    "short": (torch.ones(2, 3), r"\(2, 3\).*expected \(layers, 4\)"),
    "vector": (torch.ones(4), r"\(4,\).*expected \(layers, 4\)"),
    "integers": (torch.ones(2, 4).long(), "int64"),
    "nan": (torch.full((2, 4), torch.nan), "NaN"),
    "no tensor": ([[1.0] * 4] * 2, "is a list"),
}


@pytest.mark.parametrize("kind", BAD_SKETCHES)
def test_bad_sketches_are_refused_with_the_reason(kind: str) -> None:
    rows, reason = BAD_SKETCHES[kind]
    tensors: dict[str, Any] = {KEY: torch.ones(2), "unet.b.delta": torch.ones(1), SKETCH: rows}
    with pytest.raises(CheckpointError, match=rf"unet\.sketch.*{reason}"):
        parse_adapter(tensors, {})


@pytest.mark.parametrize(
    "tensors", [{SKETCH: torch.ones(1, 4)}, {KEY: torch.ones(2), "vae.sketch": torch.ones(1, 4)}]
)
def test_a_sketch_belongs_to_shifts(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"holds no shifts|unknown key 'vae\.sketch'"):
        parse_adapter(tensors, {})


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
        ({"format": "svfit", "format_version": "4"}, "upgrade"),
        ({"format_version": "9"}, "upgrade"),
        ({"format": "svfit", "fingerprints": "not json"}, "fingerprints"),
        ({"format": "svfit", "training": "[1]"}, "training"),
        ({"format": "svfit", "fingerprints": '{"unet": 5}'}, "fingerprints"),
        ({"training": "[" * 20_000 + "]" * 20_000}, "training.*nested"),
        ({"training": '{"a": ' * 40 + "1" + "}" * 40}, "training.*nested more than"),
        ({"training": '{"steps": ' + "9" * 5000 + "}"}, "training.*5,000 digits"),
        ({"versions": '{"torch": "' + "x" * 2**20 + '"}'}, "versions.*characters"),
        ({"base_model": "x" * (2**20 + 1)}, "base_model.*1,048,577 characters"),
        ({"training": r'{"a": "\ud800"}'}, "training.*surrogates"),
    ],
)
def test_bad_headers_are_refused(header: dict[str, str], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        parse_adapter({KEY: torch.ones(2)}, header)


def test_a_message_is_short_however_long_a_name_is() -> None:
    with pytest.raises(CheckpointError, match="unknown key") as caught:
        parse_adapter({"x" * 10**6: torch.ones(1)}, {})
    assert len(str(caught.value)) < 1000


def test_an_adapter_in_memory_does_not_need_its_file(tmp_path: Path) -> None:
    """safetensors maps files, and whoever shortens one in place kills those that look at it."""
    path = tmp_path / "a.safetensors"
    write_adapter(path, make_adapter())
    read = read_adapter(path)
    path.write_bytes(b"")
    assert_equal(read, make_adapter())


WRITE_AND_HASH = """
import hashlib, sys
from pathlib import Path
import torch
from svfit_diffusion.files.adapter import Adapter, write_adapter
from svfit_diffusion.files.metadata import AdapterMetadata

components = {"unet", "text_encoder", "text_encoder_2", "transformer"}  # in an order of its own
layers = {component: {f"layer{i}" for i in range(9)} for component in components}
adapter = Adapter(
    {c: {name: torch.arange(4.0) + 1 for name in names} for c, names in layers.items()},
    AdapterMetadata(
        base_model="base", fingerprints={c: "ab" * 32 for c in components}, training={"lr": 0.1}
    ),
    {c: {name: torch.ones(4) for name in names} for c, names in layers.items()},
)
path = Path(sys.argv[1])
write_adapter(path, adapter)
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_an_adapter_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_AND_HASH, str(tmp_path / f"{seed}.safetensors")],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    digests = {child.communicate(timeout=120)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(digests) == 1


def test_the_same_metadata_make_the_same_file_that_safetensors_reads(tmp_path: Path) -> None:
    entries = [(f"key {i}", f'"σ" \\ \n\x01\x7f\u2028 {i} 😀') for i in range(9)]
    contents = []
    for order in (entries, entries[::-1], entries[3:] + entries[:3]):
        path = tmp_path / "a.safetensors"
        write_safetensors(path, {"b": torch.ones(3), "a": torch.zeros(1).half()}, dict(order))
        contents.append(path.read_bytes())
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == dict(entries)
            assert file.get_tensor("b").tolist() == [1, 1, 1]
    assert len(set(contents)) == 1
    assert int.from_bytes(contents[0][:8], "little") % 8 == 0
    header = contents[0].decode("utf-8", "ignore")
    assert sorted(entries, key=lambda entry: header.index(f'"{entry[0]}"')) == entries


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
    monkeypatch.setattr("svfit_diffusion.files.atomic.save_file", fill_disk(error))
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


def spread(length: int, *positions: int) -> Tensor:
    """A shift `(length,)` that is -1, -2, … at some positions and zero elsewhere."""
    delta = torch.zeros(length)
    delta[list(positions)] = -torch.arange(1.0, len(positions) + 1)
    return delta


SPARSE = Adapter(
    {
        "unet": {
            "a.to_q": spread(640, 0, 3, 100, 639),
            "a.to_k": spread(640, 7),
            "a.to_v": torch.zeros(640),
            "a.to_out.0": torch.linspace(1, 2, 640),
        },
        "text_encoder": {"encoder.layers.0.self_attn.q_proj": spread(768, *range(40, 80))},
    },
    METADATA,
)


def test_what_a_budget_kept_is_written_sparsely(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", SPARSE)
    tensors = load_file(tmp_path / "a.safetensors")
    q_proj = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    expected = {
        "unet.a.to_q.index": torch.tensor([0, 3, 100, 639], dtype=torch.int16),
        "unet.a.to_q.delta": -torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "unet.a.to_k.delta": spread(640, 7)[:8],  # so short that positions would take more room
        "unet.a.to_v.delta": torch.zeros(1),
        "unet.a.to_out.0.delta": torch.linspace(1, 2, 640),
        f"{q_proj}.delta": spread(768, *range(40, 80))[:80],
    }
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in expected.items())


def test_sparse_files_are_read_as_dense_vectors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter(path, SPARSE)
    read = read_adapter(path)
    assert read.metadata == METADATA
    assert read.parameter_count == SPARSE.parameter_count == 4 + 1 + 640 + 40
    for component, deltas in SPARSE.deltas.items():
        for name, delta in deltas.items():
            path_in_file = name if component == "unet" else f"text_model.{name}"
            found = read.deltas[component][path_in_file]
            assert torch.equal(F.pad(found, (0, delta.numel() - found.numel())), delta)
    # Saved again, it is as sparse as it was.
    assert_equal(read, SPARSE)


def test_a_dense_file_is_what_it_always_was(tmp_path: Path) -> None:
    dense = {"a.to_q": torch.linspace(1, 2, 640), "a.to_k": torch.tensor([0.0, -1.0, 0.0, 2.0])}
    write_adapter(tmp_path / "a.safetensors", Adapter({"unet": dense}, METADATA))
    by_hand = {f"unet.{name}.delta": delta for name, delta in dense.items()}
    save_file(by_hand, tmp_path / "b.safetensors", METADATA.to_header())
    assert load_file(tmp_path / "a.safetensors").keys() == by_hand.keys()
    assert (tmp_path / "a.safetensors").stat().st_size == (
        tmp_path / "b.safetensors"
    ).stat().st_size
    assert_equal(read_adapter(tmp_path / "b.safetensors"), read_adapter(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("kept", [1, 8, 60, 160, 400, 426, 427, 600, 639])
def test_sparse_is_never_larger(kept: int, tmp_path: Path) -> None:
    positions = torch.randperm(639, generator=torch.Generator().manual_seed(kept))[: kept - 1]
    delta = spread(640, *positions.tolist(), 639)
    write_adapter(tmp_path / "a.safetensors", Adapter({"unet": {"a.to_q": delta}}, METADATA))
    save_file({"unet.a.to_q.delta": delta}, tmp_path / "b.safetensors", METADATA.to_header())
    sizes = [(tmp_path / name).stat().st_size for name in ("a.safetensors", "b.safetensors")]
    # Where little is kept, much is saved.
    assert sizes[0] <= sizes[1] - (1000 if kept <= 160 else 0)
    (read,) = read_adapter(tmp_path / "a.safetensors").deltas["unet"].values()
    assert torch.equal(read, delta)


def test_an_adapter_of_zeros_stays_one(tmp_path: Path) -> None:
    zeros = Adapter({"unet": {"a.to_q": torch.zeros(3)}}, METADATA)
    write_adapter(tmp_path / "a.safetensors", zeros)
    assert read_adapter(tmp_path / "a.safetensors").deltas["unet"]["a.to_q"].tolist() == [0.0]
    assert zeros.parameter_count == 0


def test_vectors_beyond_the_reach_of_int16_are_dense() -> None:
    for length, is_sparse in ((2**15, True), (2**15 + 1, False)):
        delta = spread(length, 5, length - 1)
        tensors = state_dict(Adapter({"unet": {"a": delta}}, METADATA))
        assert ("unet.a.index" in tensors) == is_sparse
        assert torch.equal(parse_adapter(tensors, {}).deltas["unet"]["a"], delta)


INDEX = KEY.replace(".delta", ".index")
BAD_INDICES: dict[str, tuple[Any, str]] = {
    "long": ([0, 1], "int64, expected an int16"),
    "float": ([0.0, 1.0], "float32, expected an int16"),
    "bool": ([False, True], "bool, expected an int16"),
    "short": (torch.tensor([1], dtype=torch.int16), r"\(1,\) torch.int16, expected .* \(2,\)"),
    "empty": (torch.tensor([], dtype=torch.int16), r"\(0,\) torch.int16"),
    "scalar": (torch.tensor(1, dtype=torch.int16), r"\(\) torch.int16"),
    "matrix": (torch.tensor([[0, 1]], dtype=torch.int16), r"\(1, 2\) torch.int16"),
    "descending": (torch.tensor([4, 3], dtype=torch.int16), "ascend"),
    "twice": (torch.tensor([3, 3], dtype=torch.int16), "ascend"),
    "negative": (torch.tensor([-1, 3], dtype=torch.int16), "ascend"),
    "wraps around": (torch.tensor([2**15 - 1, -(2**15)], dtype=torch.int16), "ascend"),
}


@pytest.mark.parametrize("kind", BAD_INDICES)
def test_bad_positions_are_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    index, reason = BAD_INDICES[kind]
    save_file({KEY: torch.ones(2), INDEX: torch.as_tensor(index)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"to_q\.index.*{reason}"):
        read_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({INDEX: torch.zeros(1, dtype=torch.int16)}, r"to_q\.index' has no '\.delta'"),
        ({KEY: torch.ones(2), INDEX: [0, 1]}, r"to_q\.index' is a list"),
        ({KEY: [1.0], INDEX: torch.zeros(1, dtype=torch.int16)}, r"to_q\.delta' is a list"),
        (
            {KEY: torch.tensor(1.0), INDEX: torch.tensor(0, dtype=torch.int16)},
            r"to_q\.delta' is \(\)",
        ),
        ({KEY: torch.ones(0), INDEX: torch.zeros(0, dtype=torch.int16)}, r"to_q\.delta' is \(0,\)"),
        ({"unet.index": torch.zeros(1, dtype=torch.int16)}, "unknown key 'unet.index'"),
    ],
)
def test_positions_belong_to_values(tensors: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        parse_adapter(tensors, {})


def test_a_small_file_cannot_fill_the_memory() -> None:
    tensors = {}
    for layer in range(513):
        tensors[f"unet.{layer}.delta"] = torch.ones(1)
        tensors[f"unet.{layer}.index"] = torch.tensor([2**15 - 1], dtype=torch.int16)
    with pytest.raises(CheckpointError, match="more than any model has"):
        parse_adapter(tensors, {})
    del tensors["unet.0.delta"], tensors["unet.0.index"]
    assert parse_adapter(tensors, {}).parameter_count == 512


def test_safetensors_files_of_other_tools_with_our_keys_load(tmp_path: Path) -> None:
    save_file({KEY: torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_adapter(tmp_path / "a.safetensors").parameter_count == 2
