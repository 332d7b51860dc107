"""Adapter files: write, read and validate.

An adapter is one safetensors file: a vector `<component>.<module path>.delta` `(r,)` float32 per
shifted layer, and metadata in the header. Paths in text encoders are written as
`text_model.encoder.layers.0…`, as every published LoRA does, and accepted with or without
`text_model.`. Files of other kinds (pickles above all) are refused.

A layer of which a budget kept little is written sparsely: `.delta` `(k,)` holds the values kept and
`<component>.<module path>.index` `(k,)` int16 their positions from 0, ascending. Zeros at the end
of a vector are left out. In memory every vector is dense.

`<component>.sketch` `(layers, 4)` float32 holds `spectrum.sketch.sketch` of each of a component's
layers, in the order of their sorted names, so that loading can tell whether the singular vectors at
hand are those of the training. Files of format version 1 have none.

Files of format version 3 hold a word of the subject's own, as `own_word` tells; others are written
as version 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from svfit_diffusion.errors import CheckpointError, InterchangeError, listed
from svfit_diffusion.files.adapter_tensors import (
    POSITIONS,
    SKETCH,
    VALUES,
    WORD,
    problems_in,
    split_suffix,
)
from svfit_diffusion.files.atomic import make_folder, write_safetensors
from svfit_diffusion.files.metadata import (
    FORMAT,
    FORMAT_VERSION,
    READABLE_VERSIONS,
    WORDS_VERSION,
    AdapterMetadata,
)
from svfit_diffusion.files.own_word import OwnWord, words_header, words_in
from svfit_diffusion.files.reading import read_safetensors

WEIGHTS_NAME = "pytorch_svfit_weights.safetensors"
DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""Pipeline components that draw."""
COMPONENTS = (
    *DENOISERS,
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
)
"""Pipeline components that adapters may shift."""

_MAX_SPARSE_LENGTH = 2**15  # what int16 counts
_MAX_VALUES = 2**24  # several times what any model has; a small file must not fill the memory
_HEADER_ENTRY_BYTES = 60  # type, shape and offsets of a tensor; its name comes on top
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Adapter:
    """A trained adapter, as a file holds it.

    Attributes:
        deltas: shift `(r,)` float32 by module path, per component; r is at most the layer's rank.
        metadata: where it comes from.
        sketches: of the shifts `(4,)` float32 by module path, per component, as far as known.
        words: the subject's own, per component that reads one.
    """

    deltas: dict[str, dict[str, Tensor]]
    metadata: AdapterMetadata
    sketches: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    words: dict[str, OwnWord] = field(default_factory=dict)

    @property
    def parameter_count(self) -> int:
        """Number of values that do something: all that were trained, or kept by a budget."""
        values = [delta for paths in self.deltas.values() for delta in paths.values()]
        values += [word.vectors for word in self.words.values()]
        return sum(int(own.count_nonzero()) for own in values)


def scaled(adapter: Adapter, strength: float) -> Adapter:
    """An adapter that does at strength 1 what this one does at a strength."""
    if strength == 1:
        return adapter
    deltas, sketches = (
        {c: {path: vector * strength for path, vector in own.items()} for c, own in parts.items()}
        for parts in (adapter.deltas, adapter.sketches)
    )
    words = {c: replace(w, vectors=w.vectors * strength) for c, w in adapter.words.items()}
    return replace(adapter, deltas=deltas, sketches=sketches, words=words)


def state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter under the names that a file gives them, sparse where smaller."""
    named = {
        f"{component}.{_published_path(component, path)}": delta
        for component, deltas in adapter.deltas.items()
        for path, delta in deltas.items()
    }
    tensors = {
        name + suffix: tensor
        for name, delta in named.items()
        for suffix, tensor in _packed(name, delta).items()
    }
    for component, sketches in adapter.sketches.items():
        published = {_published_path(component, path): s for path, s in sketches.items()}
        rows = [published[path] for path in sorted(published)]
        tensors[component + SKETCH] = torch.stack(rows).float()
    return tensors | {component + WORD: word.vectors for component, word in adapter.words.items()}


def file_header(adapter: Adapter) -> dict[str, str]:
    """What an adapter's file says of it."""
    said = adapter.metadata.to_header()
    if adapter.words:
        said["format_version"] = WORDS_VERSION
    return said | words_header(adapter.words)


def refuse_words(adapter: Adapter, what: str) -> None:
    """Raise `InterchangeError` if an adapter holds a word of its own; `what` completes "cannot …",
    where only shifts have a place.
    """
    if adapter.words:
        word = next(iter(adapter.words.values()))
        raise InterchangeError(
            f"cannot {what}: besides shifts the adapter holds a word of the subject's own, "
            f"{word.identifier!r}, which has no place there; pipelines load it with "
            f"load_svfit_weights, or train without train_identifier"
        )


def _packed(name: str, delta: Tensor) -> dict[str, Tensor]:
    """The tensors that hold a shift `(r,)` in the fewest bytes, by suffix."""
    kept = delta.nonzero().flatten()
    dense = delta[: max(kept.tolist(), default=0) + 1]
    index = kept.to(torch.int16)
    index_bytes = index.nbytes + len(name + POSITIONS) + _HEADER_ENTRY_BYTES
    is_smaller = delta[kept].nbytes + index_bytes < dense.nbytes
    if is_smaller and kept.numel() and dense.numel() <= _MAX_SPARSE_LENGTH:
        return {VALUES: delta[kept], POSITIONS: index}
    return {VALUES: dense}


def _published_path(component: str, path: str) -> str:
    # transformers 5 dropped the `text_model.` level of CLIPTextModel.
    if component.startswith("text_encoder") and path.startswith("encoder.layers."):
        return f"text_model.{path}"
    return path


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write an adapter file, whole or not at all.

    Raises:
        StorageError: there is no room or no permission; a file that was there is untouched.
    """
    make_folder(path.parent)
    write_safetensors(path, state_dict(adapter), file_header(adapter))


def read_adapter(path: Path) -> Adapter:
    """Read and validate an adapter file.

    Raises:
        CheckpointError: it is missing, truncated, a pickle, a LoRA, of a newer format, or holds
            keys or values that no adapter has.
    """
    if not path.is_file():
        raise CheckpointError(f"no adapter file at {path}")
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path} looks like a pickle, which can run code when loaded; "
            f"SVFit adapters are .safetensors files"
        )
    tensors, header = read_safetensors(path)
    try:
        return parse_adapter(tensors, header)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def parse_adapter(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Adapter:
    """Make an adapter of named tensors, checking every name, shape and value.

    Args:
        tensors: `<component>.<module path>.delta` vectors, `.index` beside those that are sparse.
        header: file metadata, empty for a bare state dict.

    Raises:
        CheckpointError: as `read_adapter`.
    """
    if any("lora" in str(name) for name in tensors):
        raise CheckpointError(
            "this is a LoRA, not an SVFit adapter; load it with pipe.load_lora_weights(...)"
        )
    if any(str(name).endswith(".svfit_delta") for name in tensors):
        raise CheckpointError(
            "this is an SVFit adapter of PEFT's form, which is read by "
            "svfit_diffusion.peft.read_peft_adapter"
        )
    version = header.get("format_version", FORMAT_VERSION)
    if header.get("format", FORMAT) == FORMAT and version not in READABLE_VERSIONS:
        raise CheckpointError(
            f"adapter format version {version[:20]} is not known to this svfit-diffusion, which "
            f"reads versions {' and '.join(READABLE_VERSIONS)}; upgrade the package"
        )
    problems = list(problems_in(tensors, COMPONENTS))
    if problems:
        raise CheckpointError(listed("not an SVFit adapter", problems))
    if not any(split_suffix(str(name))[1] == VALUES for name in tensors):
        raise CheckpointError("holds no shifts, expected one `.delta` vector per layer")
    lengths = {n: int(t[-1]) + 1 for n, t in tensors.items() if split_suffix(n)[1] == POSITIONS}
    if sum(lengths.values()) > _MAX_VALUES:
        raise CheckpointError(
            f"its positions reach over {sum(lengths.values())} singular values, more than any "
            f"model has; the file is damaged or made to exhaust the memory"
        )
    deltas: dict[str, dict[str, Tensor]] = {}
    for name, values in tensors.items():
        layer, suffix = split_suffix(name)
        if suffix == VALUES:
            component, _, path = layer.partition(".")
            index = tensors.get(layer + POSITIONS)
            # A copy: what is mapped goes when someone else shortens the file.
            dense = _unpacked(values.to(torch.float32, copy=True), index)
            deltas.setdefault(component, {})[path] = dense
    metadata = AdapterMetadata.from_header(header)
    words = words_in(tensors, header)
    astray = [component for component in words if component not in deltas]
    if astray:
        raise CheckpointError(f"holds a word for {astray[0]}, and no shifts of it")
    return Adapter(deltas, metadata, _sketches(tensors, deltas), words)


def _sketches(
    tensors: Mapping[str, Tensor], deltas: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """The sketch of each layer, per component that has them.

    Raises:
        CheckpointError: there are not as many sketches as layers.
    """
    sketches = {}
    for name, rows in tensors.items():
        component, suffix = split_suffix(name)
        if suffix == SKETCH:
            paths = sorted(deltas.get(component, {}))
            if len(rows) != len(paths):
                raise CheckpointError(f"{name!r} is of {len(rows)} layers, expected {len(paths)}")
            own = rows.to(torch.float32, copy=True)
            sketches[component] = dict(zip(paths, own, strict=True))
    return sketches


def _unpacked(values: Tensor, index: Tensor | None) -> Tensor:
    """The shift `(r,)` that `_packed` gave as these values, at these positions if there are any."""
    if index is None:
        return values
    positions = index.long()
    dense = values.new_zeros(int(positions[-1]) + 1)
    dense[positions] = values
    return dense
