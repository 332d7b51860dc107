"""The adapters of one model: what each shifts, and where it comes from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor, nn

from svfit_diffusion.adapters.deltas import copied_deltas
from svfit_diffusion.adapters.layers import Shiftable, ShiftedLayer
from svfit_diffusion.adapters.quantised import quantization_of, spelled
from svfit_diffusion.adapters.selection import check_known
from svfit_diffusion.adapters.weights import WeightPlace
from svfit_diffusion.files.metadata import AdapterMetadata
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.cache import fingerprint


class Registry:
    """The adapters of one model, whether they act or not.

    Attributes:
        layers: shifted layers by module path.
        metadata: what is known of adapters that came from a file, by adapter name.
        spans: the pipeline components that each adapter is on, by adapter name.
    """

    def __init__(self) -> None:
        self.layers: dict[str, ShiftedLayer] = {}
        self.metadata: dict[str, AdapterMetadata] = {}
        self.spans: dict[str, tuple[str, ...]] = {}
        # Of each adapter in order, by module path: those that the layers have, too.
        self._deltas: dict[str, dict[str, nn.Parameter]] = {}

    @property
    def adapter_names(self) -> list[str]:
        """The adapters added, in order."""
        return list(self._deltas)

    def _new_layers(
        self,
        paths: Iterable[str],
        layers: Mapping[str, Shiftable],
        bases: Mapping[str, Basis],
        digests: Mapping[str, str],
    ) -> dict[str, ShiftedLayer]:
        """Those of some layers that no adapter has shifted yet."""
        return {
            path: ShiftedLayer(
                layer := layers[path],
                bases[path],
                digests[path],
                quantization_of(layer, WeightPlace(layer).own),
            )
            for path in paths
            if path not in self.layers
        }

    def _enter(
        self,
        adapter_name: str,
        deltas: Mapping[str, Tensor],
        bases: Mapping[str, Basis],
        new: Mapping[str, ShiftedLayer],
        *,
        trainable: bool,
    ) -> None:
        """Enter an adapter, and the layers that are new with it."""
        self.layers.update(new)
        layers = {path: self.layers[path].layer for path in deltas}
        self._deltas[adapter_name] = {
            path: nn.Parameter(value, requires_grad=trainable)
            for path, value in copied_deltas(deltas, layers, whole=not trainable).items()
        }
        for path, parameter in self._deltas[adapter_name].items():
            shifted = self.layers[path]
            if shifted.basis.rank < parameter.numel():
                shifted.basis = bases[path]
            shifted.add(adapter_name, parameter)

    def _strike(self, adapter_names: Collection[str]) -> list[str]:
        """Strike adapters off, entered whole or in part; the layers that none shifts any more."""
        for name in adapter_names:
            for path in self._deltas.pop(name, {}):
                self.layers[path].deltas.pop(name, None)
            self.metadata.pop(name, None)
            self.spans.pop(name, None)
        idle = [path for path, shifted in self.layers.items() if not shifted.deltas]
        for path in idle:
            del self.layers[path]
        return idle

    def at_hand(self, ranks: Mapping[str, int]) -> dict[str, str]:
        """Digests, by path, of those layers asked for whose basis another adapter brought.

        Those of which a higher rank is wanted are left out.
        """
        return {
            path: self.layers[path].digest
            for path, rank in ranks.items()
            if path in self.layers and self.layers[path].basis.rank >= rank
        }

    def sigma_parameters(self, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The shifts `δ = σ − σ⁰` of an adapter, `(r,)` float32, by module path.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        check_known([adapter_name], self._deltas)
        yield from self._deltas[adapter_name].items()

    def fingerprint(self, adapter_name: str, paths: Iterable[str] | None = None) -> str:
        """One digest of the base weights under an adapter's layers, or under some of them.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        chosen = [path for path, _ in self.sigma_parameters(adapter_name)]
        digests = {path: shifted.digest for path, shifted in self.layers.items()}
        return fingerprint(digests, chosen if paths is None else paths)

    def quantization(self, adapter_name: str) -> str:
        """How the base weights under an adapter's layers are quantised; `""` if none is.

        Raises:
            AdapterNameError: there is no such adapter.
        """
        paths = [path for path, _ in self.sigma_parameters(adapter_name)]
        return spelled(self.layers[path].quantization for path in paths)
