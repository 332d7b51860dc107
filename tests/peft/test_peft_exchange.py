"""PEFT's adapter files and ours convert into each other without loss."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel, get_peft_model
from peft_kinds import KINDS, layers
from safetensors.torch import load_file, save_file
from tiny import make_tiny_pipeline, run_model
from tiny_adapters import make_adapter, with_sketches

from svfit_diffusion.errors import CheckpointError, InterchangeError
from svfit_diffusion.files.adapter import Adapter, read_adapter, state_dict, write_adapter
from svfit_diffusion.peft import SVFitConfig, read_peft_adapter, write_peft_adapter

KIND = KINDS["Linear"]


def ours() -> Adapter:
    """A trained adapter of two components, sparse here and there, with all that a file says."""
    adapter = with_sketches(make_adapter())
    metadata = replace(
        adapter.metadata,
        rank={"unet": "16", "text_encoder": "0.9"},
        target={"unet": "attention"},
        instance_prompt="a photo of sks Käse",
        training={"learning_rate": 1e-3, "max_train_steps": 500},
    )
    return replace(adapter, metadata=metadata)


def assert_same(found: Adapter, expected: Adapter) -> None:
    assert found.metadata == expected.metadata
    one, two = state_dict(found), state_dict(expected)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], value) for name, value in two.items())


def by_component(folders: list[Path]) -> dict[str, Path]:
    return {folder.name: folder for folder in folders}


def test_ours_there_and_back(tmp_path: Path) -> None:
    folders = write_peft_adapter(ours(), tmp_path)
    assert {path.name for path in folders} == {"unet", "text_encoder"}
    assert_same(read_peft_adapter(by_component(folders)), ours())


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize("rank", ["", "1.0"], ids=["rank unknown", "full rank"])
def test_peft_draws_what_we_draw(component: str, rank: str, tmp_path: Path) -> None:
    adapter = ours()
    paths = list(adapter.deltas[component])
    adapter.deltas[component][paths[0]] = adapter.deltas[component][paths[0]][:3]
    adapter = replace(adapter, metadata=replace(adapter.metadata, rank={component: rank}))
    pipe: Any = make_tiny_pipeline()
    pipe.load_svfit_weights(state_dict(adapter), adapter_name="a")
    expected = run_model(getattr(pipe, component))
    write_peft_adapter(adapter, tmp_path)
    base = getattr(make_tiny_pipeline(), component)
    model = PeftModel.from_pretrained(base, tmp_path / component).eval()
    assert len(layers(model)) == len(paths)
    full = {len(delta) for layer in layers(model) for delta in layer.svfit_delta.values()}
    assert full == {3, 16} if not rank else min(full) >= 16  # of a known rank, zeros come back
    # Ours is in the weights, PEFT's beside them: float32 in another order.
    assert torch.allclose(run_model(model.base_model.model), expected, atol=1e-5)
    assert torch.allclose(run_model(model.merge_and_unload()), expected, atol=1e-6)


def test_peft_there_and_back(tmp_path: Path) -> None:
    config = KIND.config(r=0.9, rank_pattern={"2": 3})
    model = get_peft_model(KIND.build(), config).eval()
    model.save_pretrained(tmp_path / "before")
    write_adapter(tmp_path / "ours.safetensors", read_peft_adapter({"unet": tmp_path / "before"}))
    adapter = read_adapter(tmp_path / "ours.safetensors")
    assert adapter.metadata.rank == {"unet": "0.9"}
    assert adapter.metadata.fingerprints == {"unet": config.base_fingerprint}
    write_peft_adapter(adapter, tmp_path)
    one, two = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("before", "unet"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    before, after = (SVFitConfig.from_pretrained(tmp_path / f) for f in ("before", "unet"))
    assert before == after
    assert torch.equal(KIND.run(KIND.loaded(tmp_path / "unet")), KIND.run(model))


def test_zeros_that_our_files_leave_out_come_back(tmp_path: Path) -> None:
    model = KIND.adapted(r=5)
    layers(model)[0].svfit_delta["default"].data[2:] = 0
    model.save_pretrained(tmp_path / "before")
    write_adapter(tmp_path / "a.safetensors", read_peft_adapter({"unet": tmp_path / "before"}))
    write_peft_adapter(read_adapter(tmp_path / "a.safetensors"), tmp_path)
    loaded = KIND.loaded(tmp_path / "unet")
    assert [len(layer.svfit_delta["default"]) for layer in layers(loaded)] == [5, 5]
    assert torch.equal(KIND.run(loaded), KIND.run(model))


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    write_peft_adapter(ours(), tmp_path)
    with pytest.raises(InterchangeError, match="unet exists; choose another name, or pass"):
        write_peft_adapter(ours(), tmp_path)
    write_peft_adapter(ours(), tmp_path, overwrite=True)


def test_modules_trained_as_a_whole(tmp_path: Path) -> None:
    KINDS["modules_to_save"].adapted().save_pretrained(tmp_path)
    with pytest.raises(InterchangeError, match="modules trained as a whole, which our"):
        read_peft_adapter({"unet": tmp_path})


def test_several_bases(tmp_path: Path) -> None:
    for component in ("unet", "text_encoder"):
        KIND.adapted().save_pretrained(tmp_path / component)
        file = tmp_path / component / "adapter_config.json"
        file.write_text(file.read_text().replace('path": null', f'path": "{component}"'))
    with pytest.raises(InterchangeError, match="of several bases"):
        read_peft_adapter({c: tmp_path / c for c in ("unet", "text_encoder")})
    with pytest.raises(InterchangeError, match="no folder is given"):
        read_peft_adapter({})


DAMAGES = {
    "no config": ("adapter_config.json", None, "adapter_config.json is no readable JSON"),
    "no JSON": ("adapter_config.json", "{", "adapter_config.json is no readable JSON"),
    "deep": ("adapter_config.json", '{"r": ' + "[" * 20_000, "is no readable JSON: it is nested"),
    "digits": ("adapter_config.json", '{"r": ' + "1" * 5000 + "}", "is no readable JSON"),
    "a list": ("adapter_config.json", "[]", "should hold a JSON object, got a list"),
    "a LoRA": ("adapter_config.json", '{"peft_type": "LORA"}', "type 'LORA', expected 'SVFIT'"),
    "no tensors": ("adapter_model.safetensors", None, "is not a readable safetensors file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders(name: str, tmp_path: Path) -> None:
    file, text, words = DAMAGES[name]
    KIND.adapted().save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    if text:
        (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_peft_adapter({"unet": tmp_path})


@pytest.mark.parametrize(
    "changed",
    [
        {"r": "many"},
        {"r": math.nan},
        {"rank_pattern": [1]},
        {"target_modules": 3},
        {"target_modules": [1, "a"]},
        {"exclude_modules": [["a"]]},
        {"base_model_name_or_path": ["a"]},
        {"revision": {}},
        {"base_fingerprint": 1},
    ],
    ids=str,
)
def test_configs_that_no_adapter_has(changed: dict[str, Any], tmp_path: Path) -> None:
    KIND.adapted().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_peft_adapter({"unet": tmp_path})


@pytest.mark.parametrize(
    "configs",
    [
        1,
        [],
        {"unet": 1},
        {"unet": {"nonsense": 1}},
        {"unet": {"peft_type": "LORA"}},
        {"unet": {"peft_type": "SVFIT", "rank_pattern": 3}},
    ],
    ids=str,
)
def test_a_header_with_other_settings_of_peft_writes_nothing(configs: Any, tmp_path: Path) -> None:
    metadata = replace(ours().metadata, training={"peft_configs": configs})
    with pytest.raises(InterchangeError, match=r"PEFT|peft_configs"):
        write_peft_adapter(replace(ours(), metadata=metadata), tmp_path)
    assert not (tmp_path / "unet").exists()


@pytest.mark.parametrize(
    "header",
    [
        {"svfit": "{"},
        {"svfit": "null"},
        {"svfit": '{"rank": 1}'},
        {"svfit_sketches": "1"},
        {"svfit_sketches": '{"0": "x"}'},
        {"svfit_sketches": '{"0": {"a": 1}}'},
        {"svfit_sketches": '{"0": [1.5, 1.5]}'},
    ],
    ids=str,
)
def test_damaged_headers(header: dict[str, str], tmp_path: Path) -> None:
    KIND.adapted().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata=header)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_peft_adapter({"unet": tmp_path})


def test_the_config_is_plain_json(tmp_path: Path) -> None:
    write_peft_adapter(ours(), tmp_path)
    config = json.loads((tmp_path / "unet" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SVFIT" and config["r"] == 16 and config["rank_pattern"] == {}
    assert config["base_model_name_or_path"] == "tiny"


def test_a_base_in_bfloat16_has_the_vectors_of_its_files(saved_pipe: Path, tmp_path: Path) -> None:
    """As our own loader: they are read from where the model came from."""
    unets = [
        UNet2DConditionModel.from_pretrained(saved_pipe / "unet", torch_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    config = SVFitConfig(r=4, target_modules=["to_q"], init_weights=False)
    model = get_peft_model(unets[0], config)
    model.save_pretrained(tmp_path)
    half = PeftModel.from_pretrained(unets[1], tmp_path)  # refused if its fingerprint were another
    for one, two in zip(layers(model), layers(half), strict=True):
        wanted, found = (layer.get_delta_weight("default").float() for layer in (one, two))
        assert (found - wanted).norm() <= 2**-8 * wanted.norm()  # bfloat16's rounding, once
