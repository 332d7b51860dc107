"""`svfit info`, `merge`, `convert` and `diff`: adapter files as they are and made of each other."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svfit_diffusion.cli.options import (
    AsJson,
    Dtype,
    Overwrite,
    Revision,
    Variant,
    base_of,
    read,
    save,
    show,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from svfit_diffusion.files.adapter import Adapter

Source = Annotated[str, typer.Argument(help="A file, a folder or an id on huggingface.co.")]
Output = Annotated[
    Path, typer.Option(help="The adapter to write: a .safetensors file, or a folder.")
]
OptionalBase = Annotated[
    str,
    typer.Option(
        "--base",
        "--pretrained_model_name_or_path",
        help="Base model to check it against: a folder, a single file or an id.",
    ),
]
Layers = Annotated[int, typer.Option(min=0, help="How many layers to list, the largest first.")]


def info(
    adapter: Source,
    base: OptionalBase = "",
    layers: Layers = 10,
    revision: Revision = None,
    variant: Variant = None,
    as_json: AsJson = False,
) -> None:
    """Say what an adapter file knows: base, prompts, training, which layers move."""
    found = read(adapter)
    facts = _facts(adapter, found)
    if base:
        facts |= _checked(found, base, revision, variant, layers)
    else:
        facts["largest_shifts"] = _largest(
            {name: float(delta.norm()) for name, delta in _shifts(found).items()}, layers
        )
    show(facts, as_json)


def merge(
    adapters: Annotated[
        list[str], typer.Argument(help="Adapters, each as adapter:strength such as blue_car:0.7.")
    ],
    output: Output,
    overwrite: Overwrite = False,
) -> None:
    """Make one adapter that does what several do together."""
    from svfit_diffusion.interchange import merge_adapters

    merged = merge_adapters([weighted(text) for text in adapters])
    path = save(merged, output, overwrite)
    print(f"{path}: {merged.parameter_count:,} values, {path.stat().st_size:,} bytes")


def convert(
    adapter: Source,
    output: Output,
    rank: Annotated[int | None, typer.Option(min=1, help="Values to keep in each layer.")] = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Values to keep in all layers together.")
    ] = None,
    smallest: Annotated[float, typer.Option(min=0, help="Drop values below this.")] = 0.0,
    dtype: Annotated[Dtype, typer.Option(help="Type of the values in the file.")] = Dtype.float32,
    overwrite: Overwrite = False,
) -> None:
    """Make a smaller adapter, and say what that costs."""
    from dataclasses import replace

    from svfit_diffusion.interchange import reduce_adapter

    reduction = reduce_adapter(read(adapter), rank=rank, budget=budget, smallest=smallest)
    deltas = {
        component: {path: delta.to(dtype.torch) for path, delta in own.items()}
        for component, own in reduction.adapter.deltas.items()
    }
    path = save(replace(reduction.adapter, deltas=deltas), output, overwrite)
    print(
        f"{path}: {reduction.adapter.parameter_count:,} values, {path.stat().st_size:,} bytes; "
        f"error {reduction.error:.3g} of the change"
    )


def diff(
    first: Source,
    second: Source,
    layers: Layers = 10,
    as_json: AsJson = False,
) -> None:
    """Say how far apart two adapters of one base are, over all and by layer."""
    from svfit_diffusion.interchange import merge_adapters

    one, other = (_shifts(merge_adapters([(source, 1.0)])) for source in (first, second))
    apart = _shifts(merge_adapters([(first, 1.0), (second, -1.0)]))
    norms = {name: float(delta.norm()) for name, delta in apart.items()}
    facts: dict[str, Any] = {
        "norm_of_first": _norm(one),
        "norm_of_second": _norm(other),
        "distance": _norm(apart),
        "cosine": _cosine(one, other),
        "only_in_first": sorted(one.keys() - other.keys()),
        "only_in_second": sorted(other.keys() - one.keys()),
        "largest_differences": _largest(norms, layers),
    }
    show(facts, as_json)


def _facts(source: str, adapter: Adapter) -> dict[str, Any]:
    path = _local(source)
    known = adapter.metadata
    facts: dict[str, Any] = {}
    if path:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        facts |= {"file": str(path), "bytes": path.stat().st_size, "sha256": digest}
    facts |= {
        "values": adapter.parameter_count,
        "layers": {component: len(own) for component, own in adapter.deltas.items()},
        **({"words": {c: w.identifier for c, w in adapter.words.items()}} if adapter.words else {}),
        **{name: value for name, value in vars(known).items() if value},
    }
    return facts


def _local(source: str) -> Path | None:
    from svfit_diffusion.files.adapter import WEIGHTS_NAME

    path = Path(source)
    path = path / WEIGHTS_NAME if path.is_dir() else path
    return path if path.is_file() else None


def _checked(
    adapter: Adapter, base: str, revision: str | None, variant: str | None, layers: int
) -> dict[str, Any]:
    """Whether an adapter belongs to a base, and by how much it moves its layers."""
    from svfit_diffusion.adapters.components import models_of
    from svfit_diffusion.errors import CheckpointError
    from svfit_diffusion.interchange.based import based
    from svfit_diffusion.training.base import load_base

    pipe = load_base(base_of(base, revision, variant))
    try:
        with based(models_of(pipe), adapter) as found:
            moved = {
                name: float(
                    layer.delta.norm() / layer.basis.sigma[: layer.delta.numel()].cpu().norm()
                )
                for name, layer in found.items()
            }
    except CheckpointError as error:
        return {"base_match": f"no: {error}"}
    return {"base_match": "yes", "share_moved": _largest(moved, layers)}


def _shifts(adapter: Adapter) -> dict[str, Tensor]:
    """Shifts by `<component>.<module path>`."""
    return {
        f"{c}.{path}": delta for c, own in adapter.deltas.items() for path, delta in own.items()
    }


def _largest(values: dict[str, float], count: int) -> dict[str, float]:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    return dict(ordered[:count])


def _norm(shifts: dict[str, Tensor]) -> float:
    return sum(float(delta.square().sum()) for delta in shifts.values()) ** 0.5


def _cosine(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the two changes, whose bases are one; zeros count where one has no value."""
    common = [(one[name], other[name]) for name in one.keys() & other.keys()]
    product = sum(float(a[: len(b)] @ b[: len(a)]) for a, b in common)
    return product / (_norm(one) * _norm(other) or 1.0)
