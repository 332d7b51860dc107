"""Adapters on models that run query, key and value fused: the fused copy follows its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_inputs import INPUTS, build, run
from merged import check_output, make_adapter, merged, put
from tiny_families import DENOISERS
from torch import nn

from svfit_diffusion import StateError, SVFitConfig, inject
from svfit_diffusion.adapters.injection import Injection
from svfit_diffusion.adapters.rows import RowLayout
from svfit_diffusion.adapters.targets import fused_projections

FUSING = [
    "auraflow",
    "chroma",
    "cogvideox",
    "flux",
    "flux2",
    "flux3",
    "hunyuan-dit",
    "ideogram4",
    "krea2",
    "longcat",
    "ltx",
    "pixart",
    "qwen-image-2.1",
    "sd",
    "sd3",
    "skyreels",
    "wan",
    "wan-i2v",
    "wan-vace",
]
"""Families of which diffusers fuses something, with inputs to call them."""

NOTHING_FUSED = [
    "cogview3",
    "hunyuan-image",
    "hunyuan-video",
    "joyimage",
    "kandinsky2-prior",
    "qwen-image",
    "sana",
    "stable-audio-3",
]
"""These have the method, which does nothing, or are fused by themselves."""


def copies(model: nn.Module) -> list[tuple[nn.Module, tuple[str, ...], nn.Module]]:
    """Attention modules, the parts of a fused copy, and the copy."""
    return [
        (module, parts, module.get_submodule(name))
        for module in model.modules()
        for name, parts in fused_projections(module).items()
    ]


def check_copies(model: nn.Module) -> None:
    """Every fused copy is the concatenation of its parts, to the last bit."""
    assert copies(model)
    for attention, parts, copy in copies(model):
        expected = torch.cat([attention.get_submodule(part).weight for part in parts])
        assert torch.equal(copy.weight, expected)


@pytest.mark.parametrize("family", FUSING)
def test_fusing_before_and_after_loading(family: str) -> None:
    model: Any = build(family)
    adapter = make_adapter({"transformer": model})
    whole = merged(model, adapter.deltas["transformer"])
    base, expected = run(family, model), run(family, whole)
    for each in (model, whole):
        each.fuse_qkv_projections()
    fused_base, fused_expected = run(family, model), run(family, whole)

    injection = put(model, adapter)  # after fusing
    check_copies(model)
    check_output(run(family, model), fused_base, fused_expected)
    injection.set_active({})
    check_copies(model)
    assert torch.equal(run(family, model), fused_base)
    injection.set_active({"a": 1.0})
    model.unfuse_qkv_projections()
    check_output(run(family, model), base, expected)

    model.fuse_qkv_projections()  # after loading
    check_copies(model)
    check_output(run(family, model), fused_base, fused_expected)
    injection.eject()
    check_copies(model)
    assert torch.equal(run(family, model), fused_base)
    model.unfuse_qkv_projections()
    assert torch.equal(run(family, model), base)


@pytest.mark.parametrize("family", NOTHING_FUSED)
def test_where_fusing_does_nothing_adapters_act_all_the_same(family: str) -> None:
    model: Any = build(family)
    adapter = make_adapter({"transformer": model})
    base, expected = run(family, model), run(family, merged(model, adapter.deltas["transformer"]))
    model.fuse_qkv_projections()
    assert not copies(model)
    injection = put(model, adapter)
    check_output(run(family, model), base, expected)
    injection.set_trainable("a", True)  # nothing to refuse
    check_output(run(family, model), base, expected)


def test_every_family_that_fuses_is_here() -> None:
    # Of these diffusers refuses the call, or fails in it.
    failing = {"if", "unclip", "kandinsky2", "kandinsky5", "ltx2", "prx"}
    # These run like others here: their copies are checked, not their outputs.
    alike = {"animatediff", "consisid", "kandinsky3", "sdxl", "stable-audio", "text-to-video"}
    found = {f for f, build in DENOISERS.items() if hasattr(build(), "fuse_qkv_projections")}
    assert found == failing | alike | {*FUSING, *NOTHING_FUSED}
    assert {*FUSING, *NOTHING_FUSED} <= {*INPUTS}
    for family in alike:
        model: Any = DENOISERS[family]()
        adapter = make_adapter({"transformer": model})
        model.fuse_qkv_projections()
        before = [copy.weight for *_, copy in copies(model)]
        put(model, adapter)
        if before:
            check_copies(model)
            now = [copy.weight for *_, copy in copies(model)]
            assert not any(torch.equal(b, n) for b, n in zip(before, now, strict=True))


@pytest.mark.parametrize("target", ["to_q", "to_v", ("to_q", "to_k"), "to_out.0"])
@pytest.mark.parametrize("family", ["sd", "flux", "wan"])
def test_an_adapter_on_some_of_the_parts(family: str, target: Any) -> None:
    model: Any = build(family)
    adapter = make_adapter({"transformer": model}, config=SVFitConfig(target=target))
    whole = merged(model, adapter.deltas["transformer"])
    for each in (model, whole):
        each.fuse_qkv_projections()
    base = run(family, model)
    injection = put(model, adapter)
    check_copies(model)
    check_output(run(family, model), base, run(family, whole))
    injection.eject()
    assert torch.equal(run(family, model), base)


def test_parts_shifted_by_different_adapters() -> None:
    model: Any = build("flux")
    adapters = [
        make_adapter({"transformer": model}, seed, SVFitConfig(target=target))
        for seed, target in enumerate(["to_q", ("to_k", "to_v", "add_q_proj")])
    ]
    whole = merged(model, adapters[0].deltas["transformer"] | adapters[1].deltas["transformer"])
    for each in (model, whole):
        each.fuse_qkv_projections()
    base = run("flux", model)
    for name, adapter in zip("ab", adapters, strict=True):
        put(model, adapter, name)
    injection = Injection.of(model)
    injection.set_active({"a": 1.0, "b": 1.0})
    check_output(run("flux", model), base, run("flux", whole))
    injection.remove_adapter("a")
    check_copies(model)
    injection.remove_adapter("b")
    assert torch.equal(run("flux", model), base)


OLD_AND_NEW = ["sd", "sd3", "flux", "wan", "hunyuan-dit"]


@pytest.mark.parametrize("family", OLD_AND_NEW)
def test_live_adapters_on_fused_attention_are_refused(family: str) -> None:
    model: Any = build(family)
    model.fuse_qkv_projections()
    base = run(family, model)
    with pytest.raises(StateError, match=r"call unfuse_qkv_projections\(\) first"):
        inject(model, show_progress=False)
    assert Injection.find(model) is None
    assert torch.equal(run(family, model), base)
    model.unfuse_qkv_projections()
    inject(model, show_progress=False).eject()


@pytest.mark.parametrize("family", OLD_AND_NEW)
def test_fusing_under_a_live_adapter_is_refused_when_it_runs(family: str) -> None:
    model: Any = build(family)
    adapter = make_adapter({"transformer": model})
    base, expected = run(family, model), run(family, merged(model, adapter.deltas["transformer"]))
    injection = put(model, adapter)
    injection.set_trainable("a", True)
    model.fuse_qkv_projections()
    with pytest.raises(StateError, match=r"call unfuse_qkv_projections\(\) first"):
        run(family, model)
    model.unfuse_qkv_projections()
    check_output(run(family, model), base, expected)
    injection.eject()
    assert torch.equal(run(family, model), base)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_mixed_batches_on_fused_attention_are_refused(family: str) -> None:
    model: Any = build(family)
    injection = put(model, make_adapter({"transformer": model}))
    model.fuse_qkv_projections()
    before = run(family, model)

    def mix() -> Any:
        return injection.adapters_per_prompt([{"a": 1.0}, {}], RowLayout(2), is_denoiser=True)

    with pytest.raises(StateError, match=r"call unfuse_qkv_projections\(\) first"), mix():
        pass
    assert torch.equal(run(family, model), before)
    model.unfuse_qkv_projections()
    with mix():
        run(family, model)
        model.fuse_qkv_projections()
        with pytest.raises(StateError, match=r"call unfuse_qkv_projections\(\) first"):
            run(family, model)
        model.unfuse_qkv_projections()
        run(family, model)


def test_a_live_output_projection_goes_with_fused_attention() -> None:
    model: Any = build("sd")
    model.fuse_qkv_projections()
    base = run("sd", model)
    config = SVFitConfig(target="to_out.0")
    adapter = make_adapter({"transformer": model}, config=config)
    whole = merged(model, adapter.deltas["transformer"])
    injection = put(model, adapter)
    injection.set_trainable("a", True)
    check_output(run("sd", model), base, run("sd", whole))
