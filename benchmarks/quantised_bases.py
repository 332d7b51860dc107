"""How far an adapter goes astray on the same base, quantised.

    OMP_NUM_THREADS=1 python -m benchmarks.quantised_bases

The base is Toybox, which is trained, and the adapter the one of the blue car, which was trained on
it in full precision. The Linear layers of its transformer blocks are quantised, one kind after the
other; the adapter is loaded there by the quantised weights' vectors, as `ignore_base_mismatch` does
where the base's own files are gone. Errors are shares: of a weight `‖W_q − W‖/‖W‖`, of its change
`‖ΔW_q − ΔW‖/‖ΔW‖` (medians over the adapter's layers), of what the base predicts, and of what the
adapter changes of that; `own_vectors` is the latter by the vectors of the full base, which loading
takes from its files. Further rows are random adapters of 64 leading values on random matrices whose
singular values fall. The other way round, an adapter trained on the quantised base and loaded on
the full one, errors of changes are the same.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from benchmarks.basis_by_rank import random_matrix
from benchmarks.quantising import WAYS, quantise
from benchmarks.report import ROOT, Row, print_table, write_report
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.loading import put_adapter
from svfit_diffusion.adapters.quantised import dense_weight
from svfit_diffusion.files.adapter import Adapter, read_adapter
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.leading import leading_basis
from svfit_diffusion.spectrum.shift import shift_matrix

_NAME, _RANK, _WIDTH = "measured", 64, 1536
_BATCH = 4


def share(found: Tensor, right: Tensor, of: Tensor | None = None) -> float:
    """`‖found − right‖ / ‖of‖`, of `right` where nothing else is given."""
    return float((found.float() - right.float()).norm() / (right if of is None else of).norm())


def predictions(unet: Any) -> Tensor:
    """The denoiser's predictions for fixed noise, times and texts."""
    generator = torch.Generator().manual_seed(0)
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    noise = torch.randn(_BATCH, unet.config.in_channels, size, size, generator=generator)
    text = torch.randn(_BATCH, 16, width, generator=generator)
    times = torch.linspace(50, 950, _BATCH)
    with torch.no_grad():
        return unet(noise, times, encoder_hidden_states=text).sample


def with_adapter(unet: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """Put an adapter on, and return the change of each weight that it means there."""
    put_adapter({"unet": unet}, adapter, _NAME, show_progress=False)
    injection = Injection.of(unet)
    injection.set_active({_NAME: 1.0})
    return {
        path: shift_matrix(shifted.basis, shifted.deltas[_NAME].detach())
        for path, shifted in injection.layers.items()
    }


def measure_toybox(kind: str, unet: Any, adapter: Adapter, base: Tensor) -> Row:
    """Errors on a copy of Toybox's UNet that is quantised.

    Raises:
        ImportError: the library is not installed.
    """
    full = copy.deepcopy(unet)
    quantised = quantise(copy.deepcopy(unet), kind)
    base_here = predictions(quantised)
    bare = Adapter(
        adapter.deltas, AdapterMetadata()
    )  # it knows no base, so nothing else is looked for
    changes, changes_here = with_adapter(full, adapter), with_adapter(quantised, bare)
    effect, effect_here = predictions(full) - base, predictions(quantised) - base_here
    with_own = quantise(copy.deepcopy(unet), kind)
    with_adapter(with_own, adapter)
    weights = [
        share(dense_weight(layer, layer.weight), unet.get_submodule(path).weight)
        for path in changes
        if isinstance(layer := quantised.get_submodule(path), nn.Linear)
    ]
    return {
        "base": "Toybox",
        "kind": kind,
        "weight_error": statistics.median(weights),
        "base_error": share(base_here, base),
        "change_error": statistics.median(
            share(changes_here[path], change) for path, change in changes.items()
        ),
        "effect_error": share(effect_here, effect),
        "own_vectors": share(predictions(with_own) - base_here, effect),
    }


def measure_matrix(kind: str, spectrum: str) -> Row:
    """Errors of one random matrix."""
    matrix = random_matrix(_WIDTH, _WIDTH, spectrum, "cpu").float()
    layer: Any = nn.Linear(_WIDTH, _WIDTH, bias=False).requires_grad_(False)
    layer.weight.data = matrix.clone()
    block = quantise(nn.ModuleDict({"transformer_blocks": nn.Sequential(layer)}), kind)
    layer = block["transformer_blocks"][0]
    weight = dense_weight(layer, layer.weight)
    delta = torch.randn(_RANK, generator=torch.Generator().manual_seed(1))
    change, change_here = (
        shift_matrix(_leading(own), delta) for own in (matrix.half(), weight.half())
    )
    return {
        "base": f"{_WIDTH}², {spectrum}, rank {_RANK}",
        "kind": kind,
        "weight_error": share(weight, matrix),
        "change_error": share(change_here, change),
    }


def _leading(matrix: Tensor) -> Basis:
    basis = leading_basis(matrix, _RANK)
    assert basis is not None
    return basis


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(ROOT / "samples" / "toybox")
    unet = pipe.unet.eval().requires_grad_(False)
    whole = read_adapter(next((ROOT / "samples" / "adapters" / "blue_car").glob("*.safetensors")))
    adapter = Adapter({"unet": whole.deltas["unet"]}, whole.metadata)
    base = predictions(unet)
    rows: list[Row] = []
    absent: dict[str, str] = {}
    for kind in WAYS:
        try:
            rows.append(measure_toybox(kind, unet, adapter, base))
            rows += [measure_matrix(kind, spectrum) for spectrum in ("falling", "steep")]
        except ImportError as error:
            absent[kind] = str(error)
    rows.sort(key=lambda row: row["base"])
    errors = ["weight_error", "base_error", "change_error", "effect_error", "own_vectors"]
    print_table(rows, ["base", "kind", *errors])
    print(write_report("quantised_bases", rows, not_installed=absent))


if __name__ == "__main__":
    main()
