"""A model under PEFT whose layers' singular values adapters shift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from svfit_diffusion.adapters.quantised import full_rank_of
from svfit_diffusion.errors import AdapterNameError, ConfigError, StateError, TargetError
from svfit_diffusion.peft.config import SVFitConfig
from svfit_diffusion.peft.layer import BASE, SVFitLayer, SVFitLinear
from svfit_diffusion.peft.merging import refuse_quantised
from svfit_diffusion.peft.method import PREFIX
from svfit_diffusion.peft.shifts import (
    check_fingerprint,
    fingerprint_of,
    fit_shifts,
    lengths,
    plain_path,
)
from svfit_diffusion.peft.targets import Spectrum, refuse_other_kinds, spectra
from svfit_diffusion.peft.widening import widen
from svfit_diffusion.spectrum.rank import Rank, check_rank_fits
from svfit_diffusion.spectrum.shift import pad_sum


class SVFitModel(BaseTuner):  # type: ignore[misc]
    """A model and its adapters; `peft.get_peft_model` makes it of an `SVFitConfig`."""

    prefix = PREFIX
    tuner_layer_cls = SVFitLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    _named: set[str] | None
    _spectra: dict[str, Spectrum]

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put an adapter on the model; PEFT calls it. On an error nothing is changed.

        Args:
            model: the model.
            adapter_name: whose config is in `peft_config`.
            autocast_adapter_dtype: shifts are float32 in any case.
            low_cpu_mem_usage: leave shifts on the meta device, for a file to fill.
            state_dict: shifts whose names say which layers, instead of the config.

        Raises:
            TargetError: a target is of a kind that cannot be shifted, or all weights are zero.
            ConfigError: the rank exceeds a weight's number of singular values.
            BasisError: a weight cannot be decomposed.
        """
        self._named = None
        if state_dict is not None:
            self._named = {name.rsplit(f".{PREFIX}", 1)[0] for name in state_dict}
        super().inject_adapter(
            model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
        )
        self._spectra = {}  # the layers have them now

    def _prepare_model(self, peft_config: SVFitConfig, model: nn.Module) -> None:
        """Find the spectra of all targets at once, before anything is changed."""
        peft_config = _maybe_include_all_linear_layers(peft_config, model)
        layers = self._targets(peft_config, model)
        ranks = {path: _rank(peft_config, path) for path in layers}
        new = {p: _inner(layer) for p, layer in layers.items() if not isinstance(layer, SVFitLayer)}
        for path, layer in new.items():
            refuse_other_kinds(path, layer)
        for path, layer in layers.items():
            if isinstance(rank := ranks[path], int):
                check_rank_fits(rank, full_rank_of(_inner(layer)), path)
        known = {path: layer for path, layer in layers.items() if path not in new}
        widen(model, known, {path: ranks[path] for path in known})
        self._spectra = spectra(model, new, {path: ranks[path] for path in new})
        found = [spectrum.basis.rank for spectrum in self._spectra.values()]
        if layers and len(new) == len(layers) and not any(found):
            raise TargetError(f"the weights of {', '.join(new)} are zero: nothing can be shifted")

    def _targets(self, config: SVFitConfig, model: nn.Module) -> dict[str, Any]:
        """The modules that an adapter is to be put on, by path, as PEFT finds them."""
        modules = dict(model.named_modules())
        around = tuple(f"{p}." for p, m in modules.items() if isinstance(m, BaseTunerLayer))
        return {
            path: module
            for path, module in modules.items()
            if path
            and not path.startswith(around)
            and (
                path in self._named
                if self._named is not None
                else self._check_target_module_exists(config, path)
            )
        }

    def _create_and_replace(
        self,
        peft_config: SVFitConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        rank, starts_at_zero = _rank(peft_config, current_key), peft_config.init_weights
        if isinstance(target, SVFitLayer):
            target.add(adapter_name, rank, starts_at_zero=starts_at_zero)
            return
        spectrum = self._spectra[current_key]
        if not spectrum.basis.rank:
            return  # zeros have no singular vectors
        is_linear = isinstance(_inner(target), nn.Linear | Conv1D)
        layer = (SVFitLinear if is_linear else SVFitLayer)(target, spectrum)
        layer.add(adapter_name, rank, starts_at_zero=starts_at_zero)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        # Before anything is merged, of a model of which some layers are quantised, too.
        for layer in shifted_layers(self.model).values():
            refuse_quantised(layer.get_base_layer())
        super()._check_merge_allowed()

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: SVFitConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        # Called when an adapter is saved, before its config is.
        config.base_fingerprint = fingerprint_of(shifted_layers(model, adapter_name))
        chosen: dict[str, Tensor] = super()._get_adapter_state_dict(
            model, config, adapter_name, *args, **kwargs
        )
        return chosen

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SVFitConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        layers = shifted_layers(model, adapter_name)
        check_fingerprint(config.base_fingerprint, fingerprint_of(layers))
        counts = {plain_path(p): n for p, n in lengths(layers, state_dict).items()}
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        widen(inner, {plain_path(path): layer for path, layer in layers.items()}, counts)
        fitted = fit_shifts(layers, adapter_name, state_dict)
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, fitted
        )
        return remapped

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
    ) -> None:
        """Add an adapter that is a weighted sum of others, exactly.

        Args:
            adapters: their names.
            weights: the weight of each; its strength counts, too.
            adapter_name: a new name.
            combination_type: `"linear"`.

        Raises:
            AdapterNameError: a name is unknown, or the new one is taken.
            ConfigError: there are not as many weights as names, or the combination is another.
        """
        unknown = [name for name in adapters if name not in self.peft_config]
        if unknown or adapter_name in self.peft_config:
            raise AdapterNameError(
                f"adapter name {(unknown or [adapter_name])[0]!r} is "
                f"{'unknown' if unknown else 'taken'}; there are {', '.join(self.peft_config)}"
            )
        if not adapters or len(adapters) != len(weights) or combination_type != "linear":
            raise ConfigError(
                f"got {len(adapters)} adapters, {len(weights)} weights and {combination_type!r}, "
                f"expected a weight for each adapter and 'linear'"
            )
        parts = dict(zip(adapters, weights, strict=True))
        sums = {
            path: pad_sum(terms)
            for path, layer in shifted_layers(self.model).items()
            if (terms := _terms(layer, parts))
        }
        config = copy(self.peft_config[adapters[0]])
        config.target_modules, config.exclude_modules = set(sums), None
        config.layers_to_transform = config.layers_pattern = config.base_fingerprint = None
        config.rank_pattern = {path: len(shift) for path, shift in sums.items()}
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        for path, layer in shifted_layers(self.model, adapter_name).items():
            layer.svfit_delta[adapter_name].data.copy_(sums[path])

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Let rows of a batch have adapters of their own, if `adapter_names` is given.

        Raises:
            StateError: the model is in training mode.
            AdapterNameError: a name is unknown.
        """
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise StateError("Cannot pass `adapter_names` when the model is in training mode")
        if unknown := sorted({*names} - {*self.peft_config, BASE}):
            raise AdapterNameError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}"
            )
        beams = kwargs.get("num_beams") or 1

        def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Beam search repeats each row, save for an encoder's.
            is_repeated = args and len(args[0]) == beams * len(names)
            rows = [name for name in names for _ in range(beams)] if is_repeated else list(names)
            return args, {**kwargs, "adapter_names": rows}

        takers = [m for m in self.modules() if isinstance(m, SVFitLayer | AuxiliaryTrainingWrapper)]
        handles = [taker.register_forward_pre_hook(give, with_kwargs=True) for taker in takers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def shifted_layers(model: nn.Module, adapter_name: str | None = None) -> dict[str, SVFitLayer]:
    """The layers of a model that adapters shift, or one of them does, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, SVFitLayer)
        and (adapter_name is None or adapter_name in module.svfit_delta)
    }


def _inner(module: Any) -> Any:
    """A layer without what PEFT has put around it."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _terms(layer: SVFitLayer, weights: Mapping[str, float]) -> list[tuple[float, Tensor]]:
    """Weight and shift of those of some adapters that are on a layer, at their strengths."""
    sums = {name: layer.combined([name]) for name in weights}
    return [(weights[name], shift.detach()) for name, shift in sums.items() if shift is not None]


def _rank(config: SVFitConfig, path: str) -> Rank:
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern, path), config.r)
