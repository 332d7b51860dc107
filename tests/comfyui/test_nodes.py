"""The node's MODEL and CLIP are the merged models of diffusers, layer by layer."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_comfyui import FakeComfyUI, FakePatcher, module_of
from hosted import CASES
from merged import make_adapter
from own_words import worded
from safetensors.torch import save_file
from torch import Tensor

import svfit_diffusion.comfyui
from svfit_diffusion import (
    BaseMismatchError,
    BasisError,
    CheckpointError,
    ConfigError,
    InterchangeError,
    SVFitConfig,
)
from svfit_diffusion.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, host, patches
from svfit_diffusion.files.adapter import Adapter, write_adapter
from svfit_diffusion.spectrum import solver

NAME = "my-dog/pytorch_svfit_weights.safetensors"
(Node,) = NODE_CLASS_MAPPINGS.values()
Tensors = dict[str, Tensor]
TARGETS = ("attention", "all")


def put(comfyui: FakeComfyUI, adapter: Adapter, name: str = NAME) -> Path:
    path = comfyui.folder / name
    write_adapter(path, adapter)
    return path


def load(model: Any, clip: Any = None, strengths: Any = (1.0, 1.0), **kwargs: Any) -> Any:
    """Run a new node as ComfyUI does: the menu first, then the node, in inference mode."""
    assert NAME in Node.INPUT_TYPES()["required"]["adapter"][0]
    with torch.inference_mode():
        return Node().load(model, NAME, *strengths, clip=clip, **kwargs)


def check(found: Tensors, base: Tensors, expected: Tensors, share: float = 1e-3) -> int:
    """Weights are those of a merge, but for `share` of each change; returns how many changed.

    In float32 the vectors' float16 rounding is left, some 3e-4 of a change.
    """
    assert found.keys() == base.keys() == expected.keys()
    changed = 0
    for key, weight in found.items():
        own = base[key].to(weight.dtype)
        change = expected[key].double() - base[key].double()
        if change.norm() == 0:
            assert torch.equal(weight, own), key
        else:
            off = weight.double() - own.double() - change
            assert off.norm() <= share * change.norm(), key
            changed += 1
    return changed


@pytest.mark.parametrize(
    ("family", "target"),
    [("toybox", "attention"), *[(f, t) for f in CASES if f != "toybox" for t in TARGETS]],
)
def test_the_weights_are_those_of_the_merged_models(
    family: str, target: str, comfyui: FakeComfyUI
) -> None:
    case = CASES[family]
    adapter = make_adapter(case.models, config=SVFitConfig(target=target))
    put(comfyui, adapter)
    model, clip = case.hosted()
    with_adapter = load(model, clip, (0.75, -1.5))
    base, expected = case.tensors(), case.merged(adapter, 0.75, -1.5)
    found = {"MODEL": with_adapter[0].patched(), "CLIP": with_adapter[1].patcher.patched()}
    changed = {side: check(found[side], base[side], expected[side]) for side in base}
    assert changed["MODEL"] and bool(changed["CLIP"]) == bool(case.encoders)
    # What was connected stays as it was.
    assert not model.patches and not clip.patcher.patches


CASE = CASES["sd"]
KEY = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture
def adapter(comfyui: FakeComfyUI) -> Adapter:
    made = make_adapter(CASE.models)
    put(comfyui, made)
    return made


def no_solver(*_: Any) -> Any:
    raise AssertionError("singular vectors are computed")


@pytest.mark.parametrize("family", ["toybox", "flux", "z_image"])
def test_comfyui_and_diffusers_share_the_cache(
    family: str, comfyui: FakeComfyUI, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[family]
    put(comfyui, make_adapter(case.models))
    files = sorted(empty_cache.iterdir())
    assert files
    monkeypatch.setattr(solver, "singular_basis", no_solver)
    for dtype in (torch.float32, torch.float16):
        assert load(*case.hosted(dtype))[0].patches
    assert sorted(empty_cache.iterdir()) == files


def test_diffusers_takes_the_vectors_that_the_node_has_computed(
    adapter: Adapter,
    comfyui: FakeComfyUI,
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(*CASE.hosted())
    layers = sum(map(len, adapter.deltas.values()))
    assert len(list(empty_cache.iterdir())) == layers
    total = [[2 * len(deltas)] * 2 for deltas in adapter.deltas.values()]
    assert comfyui.steps == total  # a bar for the MODEL and one for the CLIP, each to its end
    monkeypatch.setattr(solver, "singular_basis", no_solver)
    pipe = CASE.make()
    pipe.load_svfit_weights(comfyui.folder / NAME, show_progress=False)


@pytest.mark.usefixtures("adapter")
def test_half_precision_bases_get_half_precision_patches() -> None:
    model, _ = load(*CASE.hosted(torch.float16))
    changes = [entry[1][1][0] for entries in model.patches.values() for entry in entries]
    assert {change.dtype for change in changes} == {torch.float16}
    full, _ = load(*CASE.hosted())
    for key, entries in full.patches.items():
        (change,), (half,) = entries[0][1][1], model.patches[key][0][1][1]
        assert change.dtype == torch.float32
        # Of a change of some 0.05 a number, float16 keeps all but 2⁻¹¹ of itself.
        torch.testing.assert_close(half.float(), change, rtol=2**-11, atol=1e-7)


def test_other_patches_and_a_loaded_model_do_not_matter(adapter: Adapter) -> None:
    model, clip = CASE.hosted()
    change = torch.full_like(model.model.get_parameter(KEY), 0.25)
    before = model.clone()
    before.add_patches({KEY: ("diff", (change,))}, 2.0)
    before.load_to_gpu()
    found, _ = load(before, clip)
    expected = CASE.merged(adapter)["MODEL"]
    expected[KEY] = expected[KEY] + 2.0 * change
    assert check(found.patched(), CASE.tensors()["MODEL"], expected)


def test_strength_0_leaves_a_side_alone(adapter: Adapter, comfyui: FakeComfyUI) -> None:
    model, clip = CASE.hosted()
    found = load(model, clip, (0.0, 0.0))
    assert found[0] is model and found[1] is clip and not comfyui.steps
    found = load(model, clip, (0.0, 1.0))
    assert found[0] is model and len(found[1].patcher.patches) == len(
        adapter.deltas["text_encoder"]
    )
    found = load(model, clip, (1.0, 0.0))
    assert found[1] is clip and len(found[0].patches) == len(adapter.deltas["unet"])


def test_a_word_of_its_own_has_no_place_there(comfyui: FakeComfyUI) -> None:
    put(comfyui, worded("unet"))
    with pytest.raises(InterchangeError, match=r"load it in ComfyUI: .* subject's own, 'sks'"):
        load(*CASE.hosted())


def test_text_encoders_need_a_clip(adapter: Adapter) -> None:
    model, _ = CASE.hosted()
    with pytest.raises(ConfigError, match=r"shifts text_encoder too: connect a CLIP.*_clip to 0"):
        load(model)
    found = load(model, None, (1.0, 0.0))
    assert found[1] is None and len(found[0].patches) == len(adapter.deltas["unet"])


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_an_adapter_of_one_side_leaves_the_other(component: str, comfyui: FakeComfyUI) -> None:
    put(comfyui, make_adapter({component: CASE.models[component]}))
    model, clip = CASE.hosted()
    found = load(model, clip)
    assert (found[0] is model) == (component == "text_encoder")
    assert (found[1] is clip) == (component == "unet")
    if component == "unet":
        assert load(model)[0].patches


def test_other_strengths_make_no_new_patches(
    adapter: Adapter,
    comfyui: FakeComfyUI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    original = patches.make_patches

    def count(*args: Any) -> Any:
        made.append(args[0])
        return original(*args)

    monkeypatch.setattr("svfit_diffusion.comfyui.nodes.make_patches", count)
    node, (model, clip) = Node(), CASE.hosted()
    Node.INPUT_TYPES()
    strong, _ = node.load(model, NAME, 1.0, 1.0, clip)
    weak, _ = node.load(model.clone(), NAME, 0.5, 0.0, clip)
    assert len(made) == 2  # of the MODEL and of the CLIP
    whole, half = strong.patched(), weak.patched()
    for key, own in model.patched().items():
        torch.testing.assert_close(half[key], (own + whole[key]) / 2, rtol=0, atol=1e-6)
    other, _ = CASE.hosted()
    node.load(other, NAME, 1.0, 0.0)
    assert len(made) == 3
    changed = Node.IS_CHANGED(adapter=NAME, model=None, strength_model=1.0)
    doubled = {c: {p: 2 * d for p, d in deltas.items()} for c, deltas in adapter.deltas.items()}
    put(comfyui, replace(adapter, deltas=doubled, sketches={}))
    assert Node.IS_CHANGED(adapter=NAME, model=None, strength_model=1.0) != changed
    node.load(other, NAME, 1.0, 0.0)
    assert len(made) == 4


def test_layers_that_a_budget_has_emptied_get_no_patch(comfyui: FakeComfyUI) -> None:
    adapter = make_adapter({"unet": CASE.models["unet"]})
    idle = sorted(adapter.deltas["unet"])[:3]
    for path in idle:
        adapter.deltas["unet"][path].zero_()
        adapter.sketches["unet"][path].zero_()
    put(comfyui, adapter)
    found, _ = load(CASE.hosted()[0])
    assert len(found.patches) == len(adapter.deltas["unet"]) - 3


def model_with(change: Callable[[Tensors], Any]) -> FakePatcher:
    """A MODEL with other tensors."""
    tensors = CASE.tensors()["MODEL"]
    change(tensors)
    return FakePatcher(module_of(tensors))


def double_one(tensors: Tensors) -> None:
    tensors[KEY] = 2 * tensors[KEY]


def test_another_base_is_refused_unless_told(adapter: Adapter) -> None:
    model, clip = model_with(double_one), CASE.hosted()[1]
    with pytest.raises(BaseMismatchError, match=r"its unet belongs to.*switch on ignore_base_mism"):
        load(model, clip)
    assert not model.patches
    found, _ = load(model, clip, ignore_base_mismatch=True)
    assert len(found.patches) == len(adapter.deltas["unet"])


def test_other_singular_vectors_are_refused(adapter: Adapter, comfyui: FakeComfyUI) -> None:
    path = next(iter(adapter.deltas["unet"]))
    adapter.sketches["unet"][path] += 0.1 * adapter.deltas["unet"][path].norm()
    put(comfyui, adapter)
    with pytest.raises(BaseMismatchError, match=rf"in 1 of \d+ layers of the unet.*{path}"):
        load(*CASE.hosted())


def test_a_quantised_model_is_refused_without_another_to_take_vectors_from(
    adapter: Adapter,
) -> None:
    model, clip = CASE.hosted()
    quantised, _ = CASE.hosted(torch.float8_e4m3fn)
    with pytest.raises(BasisError, match=r"attn1.to_.* is quantised .*float8.* basis_model, or"):
        load(quantised, clip, ignore_base_mismatch=True)
    found, _ = load(quantised, clip, basis_model=model)
    assert found.model is quantised.model
    assert found.patches.keys() == load(model, clip)[0].patches.keys()


class Packed(Tensor):
    """A weight as quantised ones come: of another class, whatever type it says it is of."""


@pytest.mark.usefixtures("adapter")
def test_a_weight_of_a_class_of_its_own_is_quantised() -> None:
    model = CASE.hosted()[0]
    entries = {key: [(t.as_subclass(Packed), None)] for key, t in model.patched().items()}
    model.get_key_patches = lambda: entries  # type: ignore[method-assign, assignment]
    with pytest.raises(BasisError, match="quantised"):
        load(model, None, (1.0, 0.0), ignore_base_mismatch=True)


def test_weights_are_read_as_their_layers_say(adapter: Adapter) -> None:
    halves = {key: tensor / 2 for key, tensor in CASE.tensors()["MODEL"].items()}
    model = FakePatcher(module_of(halves), lambda weight, inplace=False, **_: 2 * weight)
    found, _ = load(model, None, (1.0, 0.0))
    expected = CASE.merged(adapter)["MODEL"]
    assert check(found.patched(), CASE.tensors()["MODEL"], expected)


def drop_one(tensors: Tensors) -> None:
    del tensors[KEY]


def test_layers_without_a_weight_are_listed(adapter: Adapter, comfyui: FakeComfyUI) -> None:
    model, clip = CASE.hosted()
    with pytest.raises(CheckpointError, match=r"unet\.down_blocks\.1.*to_q has no weight here"):
        load(model_with(drop_one), clip)
    with pytest.raises(CheckpointError, match=r"(?s)to_q has no weight here.*and \d+ more"):
        load(CASES["qwen"].hosted()[0], None, (1.0, 0.0))
    path = "encoder.layers.0.self_attn.q_proj"
    twice = {f"text_encoder.{way}{path}.delta": torch.ones(2) for way in ("", "text_model.")}
    save_file(twice, comfyui.folder / NAME)
    with pytest.raises(CheckpointError, match="q_proj is given twice"):
        load(model, clip)
    save_file({f"text_encoder.{path}.delta": torch.ones(99)}, comfyui.folder / NAME)
    with pytest.raises(CheckpointError, match="99 values, the layer has 32"):
        load(model, clip)


def test_a_patch_that_comfyui_does_not_take_is_no_secret(adapter: Adapter) -> None:
    assert adapter
    model, _ = CASE.hosted()
    with pytest.raises(InterchangeError, match=r"no weight for.*\n.*input_blocks\.3.*to_q"):
        load(model_with(drop_one), None, (1.0, 0.0), basis_model=model)


def test_models_made_in_inference_mode_do_as_well(adapter: Adapter) -> None:
    with torch.inference_mode():  # as ComfyUI's loaders run
        model, clip = CASE.hosted()
    assert model.model.state_dict()[KEY].is_inference()
    found = load(model, clip)[0].patched()
    assert check(found, CASE.tensors()["MODEL"], CASE.merged(adapter)["MODEL"])


def test_a_model_of_an_unknown_family_is_refused(adapter: Adapter) -> None:
    assert adapter
    model = FakePatcher(module_of({"diffusion_model.blocks.0.q.weight": torch.ones(4, 4)}))
    with pytest.raises(ConfigError, match=r"supported are Stable Diffusion"):
        load(model, None, (1.0, 0.0))


@pytest.mark.parametrize("kind", ["cut", "text", "lora"])
def test_a_bad_file_is_refused(kind: str, adapter: Adapter, comfyui: FakeComfyUI) -> None:
    assert adapter
    path = comfyui.folder / NAME
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    else:
        save_file({"unet.mid_block.to_q.lora_A.weight": torch.ones(1, 4)}, path)
    model, clip = CASE.hosted()
    with pytest.raises(CheckpointError, match=r"my-dog"):
        load(model, clip)
    assert not model.patches and not clip.patcher.patches


def test_the_menu_shows_adapters_in_folders_and_nothing_else(comfyui: FakeComfyUI) -> None:
    for name in ("a.safetensors", "b/c.safetensors", "b/README.md", "picture.png"):
        (comfyui.folder / name).parent.mkdir(exist_ok=True)
        (comfyui.folder / name).touch()
    elsewhere = comfyui.folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "d.safetensors").touch()
    sys.modules["folder_paths"].add_model_folder_path("svfit", str(elsewhere))
    for _ in range(2):
        files = Node.INPUT_TYPES()["required"]["adapter"][0]
        assert sorted(files) == ["a.safetensors", "b/c.safetensors", "d.safetensors"]


@pytest.mark.usefixtures("adapter")
def test_comfyui_s_device_is_used_only_if_it_has_float64(comfyui: FakeComfyUI) -> None:
    comfyui.device = torch.device("mps")
    load(*CASE.hosted())
    assert not comfyui.freed
    comfyui.device = torch.device("cuda")
    assert host.compute_device() == comfyui.device
    host.make_room(5, comfyui.device)
    assert comfyui.freed == [(5, comfyui.device)]


def test_a_copy_of_the_folder_is_a_custom_node(tmp_path: Path) -> None:
    own = Path(svfit_diffusion.comfyui.__file__).parent
    copy = shutil.copytree(own, tmp_path / "custom_nodes" / "svfit-nodes")
    # As ComfyUI loads a folder: by its path.
    spec = importlib.util.spec_from_file_location(
        str(copy), copy / "__init__.py", submodule_search_locations=[str(copy)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS["LoadSVFitAdapter"] is Node
    assert module.NODE_DISPLAY_NAME_MAPPINGS == NODE_DISPLAY_NAME_MAPPINGS
    inputs = Node.INPUT_TYPES()
    names = {name for group in inputs.values() for name in group}
    arguments = Node.load.__code__.co_varnames[1 : Node.load.__code__.co_argcount]
    assert getattr(Node, Node.FUNCTION) is Node.load and names == set(arguments)
