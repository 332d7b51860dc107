"""Ways in which a basis file can be wrong, each a function that makes one so."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svfit_diffusion.spectrum.cache import load_bases, read_base


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def change(path: Path, header: dict[str, str] | None = None, **tensors: Any) -> None:
    """Write the file again with other contents; None drops a tensor."""
    with safe_open(path, framework="pt") as file:
        kept = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() | (header or {})
    kept = {n: t for n, t in (kept | tensors).items() if t is not None}
    path.unlink()
    save_file(kept, path, metadata)


def foreign(path: Path) -> None:
    """The valid file of another weight of the same shape, by this one's name."""
    d_out, d_in = (load_file(path)[name].shape[1] for name in ("u", "v"))
    other = read_base({"other": torch.randn(d_out, d_in)})
    with tempfile.TemporaryDirectory() as folder:
        load_bases(other, show_progress=False, cache=Path(folder))
        next(Path(folder).iterdir()).replace(path)


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def no_checksum(path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path, {"format": "svfit-basis-4"})


def other_format(path: Path) -> None:
    change(path, {"format": "svfit-basis-0"})


def truncated_rank(path: Path) -> None:
    tensors = load_file(path)
    probes = tensors.pop("probes")[:, :-1].contiguous()
    change(path, probes=probes, **{name: tensor[:-1] for name, tensor in tensors.items()})


def no_sigma(path: Path) -> None:
    change(path, sigma=None)


def no_probes(path: Path) -> None:
    change(path, probes=None)


def other_probes(path: Path) -> None:
    change(path, probes=load_file(path)["probes"] * 2)


def full_precision(path: Path) -> None:
    change(path, **{name: tensor.float() for name, tensor in load_file(path).items()})


def integers(path: Path) -> None:
    change(path, sigma=torch.arange(load_file(path)["sigma"].numel(), 0, -1))


def flip_last_vector(path: Path) -> None:
    """Negate half of the vector of the smallest singular value."""
    u = load_file(path)["u"].clone()
    u[-1, ::2] *= -1
    change(path, u=u)


def nan_inside(path: Path) -> None:
    v = load_file(path)["v"].clone()
    v[-1, 0] = torch.nan
    change(path, v=v)


def swapped(path: Path) -> None:
    """Two triplets exchanged: every product is right, the order is not."""
    tensors = load_file(path)
    probes = tensors.pop("probes").flip(1)
    change(path, probes=probes, **{name: tensor.flip(0) for name, tensor in tensors.items()})


DAMAGES = [
    truncate,
    empty,
    garble_header,
    foreign,
    one_bit,
    no_checksum,
    other_format,
    truncated_rank,
    no_sigma,
    no_probes,
    other_probes,
    full_precision,
    integers,
    flip_last_vector,
    nan_inside,
    swapped,
]
