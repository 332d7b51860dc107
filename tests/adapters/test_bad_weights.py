"""Weights without a basis, and errors in the midst of loading: all is as it was before."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from merged import check_switching, load, tiny_pictures
from tiny import make_tiny_pipeline, run_pipeline
from torch import Tensor, nn

from svfit_diffusion import BasisError, inject
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.adapters.injection import Injection

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


class Quantised(nn.Parameter):
    """As libraries of quantised weights derive their own parameters."""


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of one."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def distributed(weight: Tensor) -> nn.Parameter:
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    return frozen(distribute_tensor(weight, mesh, [Replicate()]))


def frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def with_one(value: float) -> Callable[[Tensor], nn.Parameter]:
    def make(weight: Tensor) -> nn.Parameter:
        weight = weight.clone()
        weight[3, 5] = value
        return frozen(weight)

    return make


BAD: dict[str, tuple[Callable[[Tensor], nn.Parameter], str]] = {
    "float8": (lambda w: frozen(w.to(torch.float8_e4m3fn)), "float8_e4m3fn"),
    "float8 e5m2": (lambda w: frozen(w.to(torch.float8_e5m2)), "float8_e5m2"),
    "int8": (lambda w: frozen(w.to(torch.int8)), "int8"),
    "complex": (lambda w: frozen(w.to(torch.complex64)), "complex64"),
    "sparse": (lambda w: frozen(w.to_sparse()), "sparse_coo"),
    "sparse rows": (lambda w: frozen(w.to_sparse_csr()), "sparse_csr"),
    "meta": (lambda w: frozen(w.to("meta")), "not in memory"),
    "quantised": (lambda w: Quantised(w, requires_grad=False), "Quantised"),
    "NaN": (with_one(torch.nan), "NaN"),
    "infinite": (with_one(-torch.inf), "infinity"),
    "beyond float16": (with_one(1e5), "65504"),
}


def contents(pipe: Any) -> dict[str, Any]:
    """Every object that hangs on the models' modules, and copies of the weights' values."""
    found: dict[str, Any] = {}
    for component, model in models_of(pipe).items():
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                tables = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks")
                entries = value.items() if name in tables else [("", value)]
                for key, entry in entries:
                    place = f"{component}.{path}.{name}.{key}"
                    found[place] = entry
                    if isinstance(entry, nn.Parameter) and entry.layout == torch.strided:
                        found[f"{place} values"] = entry.detach().clone()
    return found


def check_unchanged(pipe: Any, before: dict[str, Any]) -> None:
    now = contents(pipe)
    assert now.keys() == before.keys()
    for place, value in before.items():
        if place.endswith(" values"):
            assert now[place].is_meta or same_bits(now[place], value), place
        else:
            assert now[place] is value, place


def same_bits(one: Tensor, other: Tensor) -> bool:
    # NaN is not equal to itself, and float8 has no comparison.
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_weight_is_named_and_nothing_touched(kind: str) -> None:
    pipe = make_tiny_pipeline()
    layer = pipe.unet.get_submodule(LAYER)
    make, message = BAD[kind]
    layer.weight = make(layer.weight.data)
    before = contents(pipe)
    for attempt in (lambda: load(pipe), lambda: inject(pipe.unet, show_progress=False)):
        with pytest.raises(BasisError, match=rf"{LAYER}: .*{message}"):
            attempt()
        check_unchanged(pipe, before)
    load(pipe, components=["text_encoder"])  # whose weights are good
    pipe.unload_svfit_weights()
    check_unchanged(pipe, before)


@pytest.mark.usefixtures("one_process")
def test_a_distributed_weight() -> None:
    pipe = make_tiny_pipeline()
    layer = pipe.unet.get_submodule(LAYER)
    layer.weight = distributed(layer.weight.data)
    before = contents(pipe).keys()
    with pytest.raises(BasisError, match=f"{LAYER}: .*DTensor"):
        load(pipe)
    assert contents(pipe).keys() == before


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_a_parametrised_weight(norm: str) -> None:
    pipe = make_tiny_pipeline()
    getattr(torch.nn.utils.parametrizations, norm)(pipe.unet.get_submodule(LAYER))
    before = contents(pipe)
    with pytest.raises(BasisError, match=rf"{LAYER}: .*remove_parametrizations"):
        load(pipe)
    check_unchanged(pipe, before)


def test_a_weight_that_turns_bad_under_an_adapter_is_a_foreign_change() -> None:
    pipe = load(make_tiny_pipeline())
    torch.nn.utils.parametrizations.weight_norm(pipe.unet.get_submodule(LAYER))
    picture = run_pipeline(pipe)
    with pytest.raises(RuntimeError, match="parametrisation"):
        pipe.disable_svfit()
    assert torch.equal(run_pipeline(pipe), picture)


POINTS = [
    "svfit_diffusion.spectrum.solver:singular_basis",
    "svfit_diffusion.spectrum.cache:_read",
    "svfit_diffusion.adapters.verification:sketch",
    "svfit_diffusion.adapters.loading:match_layers",
    "svfit_diffusion.adapters.injection:Injection.add_adapter",
    "svfit_diffusion.adapters.registry:copied_deltas",
    "svfit_diffusion.adapters.registry:ShiftedLayer",
    "svfit_diffusion.adapters.layers:ShiftedLayer.add",
    "svfit_diffusion.adapters.layers:shifted_weight",
    "svfit_diffusion.adapters.applied:Applied.see",
    "svfit_diffusion.adapters.applied:exchange_for",
    "svfit_diffusion.adapters.applied:nobody_draws",
    "svfit_diffusion.adapters.applied:commit",
    "svfit_diffusion.adapters.applied:Applied.finish",
    "svfit_diffusion.adapters.weights:give_back",
    "torch:cat",
    "torch:empty_like",
]
"""Functions that fail, by module; some run in this way only, some at loading only."""


class Failing:
    """A function whose n-th call fails, once."""

    def __init__(self, function: Callable[..., Any], number: int, error: BaseException) -> None:
        self._function = function
        self._calls = itertools.count(1)
        self._number = number
        self._error = error
        self.has_failed = False

    def __get__(self, instance: Any, _: type | None = None) -> Any:
        # As a method does: bound to its object.
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if next(self._calls) == self._number:
            self.has_failed = True
            raise self._error
        return self._function(*args, **kwargs)


@pytest.mark.parametrize("loaded", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("point", POINTS)
def test_an_error_at_any_point_leaves_all_as_it_was(
    point: str,
    loaded: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _, names = point.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for attribute in outer:
        owner = getattr(owner, attribute)
    pipe, expected = make_tiny_pipeline(), tiny_pictures()
    if loaded:
        load(pipe)
    before = contents(pipe)
    picture = run_pipeline(pipe) if loaded else expected.base
    if module.startswith("svfit_diffusion.spectrum"):
        monkeypatch.setenv("SVFIT_CACHE", str(tmp_path))
    # The first call, and one for the second of the two models, where there are so many.
    for number, error in {1: KeyboardInterrupt(), 40: RuntimeError("out of memory")}.items():
        failing = Failing(getattr(owner, name), number, error)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing)
            try:
                load(pipe, "b")
            except type(error):
                pass
        if not failing.has_failed:
            pipe.delete_svfit_adapters("b")
            pipe.set_svfit_adapters(["a"] if loaded else [])
        check_unchanged_but_own_copies(pipe, before, loaded)
        assert torch.equal(run_pipeline(pipe), picture)
        assert list(pipe.get_list_svfit_adapters().values()) == ([["a"]] * 2 if loaded else [])
    monkeypatch.undo()
    load(pipe, "b")
    pipe.set_svfit_adapters("b")
    pipe.delete_svfit_adapters(["a"] if loaded else [])
    pipe.set_svfit_adapters("b")
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, rtol=0, atol=1e-3)
    pipe.unload_svfit_weights()
    assert torch.equal(run_pipeline(pipe), expected.base)


def check_unchanged_but_own_copies(pipe: Any, before: dict[str, Any], loaded: bool) -> None:
    """With an adapter set, its weights may have been computed anew, to the same bits."""
    if not loaded:
        check_unchanged(pipe, before)
        return
    now = contents(pipe)
    assert now.keys() == before.keys()
    for place, value in before.items():
        if place.endswith(" values"):
            assert same_bits(now[place], value), place


@pytest.mark.parametrize("name", ["select", "add_adapter"])
def test_injecting_fails_as_a_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_tiny_pipeline()
    before = contents(pipe)
    error = RuntimeError("out of memory")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(Injection, name, Failing(getattr(Injection, name), 1, error))
        inject(pipe.unet, show_progress=False)
    check_unchanged(pipe, before)
    check_switching(load(pipe), tiny_pictures())
