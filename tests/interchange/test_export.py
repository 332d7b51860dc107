"""What export refuses, what it adds for other readers, and that nothing is left half written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import merged
import pytest
import tiny
import tiny_adapters
import tiny_pipelines
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from svfit_diffusion import SVFitConfig
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.errors import BaseMismatchError, InterchangeError
from svfit_diffusion.files import atomic
from svfit_diffusion.files.adapter import Adapter, state_dict
from svfit_diffusion.interchange import checking, export_dense, export_lora
from svfit_diffusion.interchange.factors import Factors


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "lora.safetensors"


def adapter_of(pipe: Any, component: str, target: str = "attention") -> Adapter:
    return merged.make_adapter({component: models_of(pipe)[component]}, 0, SVFitConfig(4, target))


def lora_modules(path: Path) -> set[str]:
    """The modules in a LoRA that change something."""
    ups = {n: t for n, t in load_file(path).items() if ".lora_up." in n or ".lora_B." in n}
    return {name.partition(".lora_")[0] for name, up in ups.items() if up.any()}


def test_a_pipeline_that_draws_with_adapters_is_as_before(tiny_pipe: Any, target: Path) -> None:
    merged.load(tiny_pipe)
    snapshot = tiny_adapters.PipelineSnapshot(tiny_pipe)
    export_lora(tiny_pipe, merged.tiny_adapter(), target, rank=2)
    snapshot.check()


def test_offloading_hooks_stay_where_they_are(tiny_pipe: Any, target: Path) -> None:
    hook = CpuOffload("cpu")
    add_hook_to_module(tiny_pipe.vae, hook)
    export_lora(tiny_pipe, merged.tiny_adapter(), target, rank=1)
    assert tiny_pipe.vae._hf_hook is hook


@pytest.mark.parametrize("wrong", ["another change", "a layer less", "a layer more"])
def test_a_file_that_is_read_otherwise_does_not_appear(
    wrong: str, tiny_pipe: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(pipe: Any, file: Path) -> dict[str, Factors]:
        found = read(pipe, file)
        name = next(iter(found))
        if wrong == "another change":
            found[name] = found[name].scaled(1.01)
        elif wrong == "a layer less":
            del found[name]
        else:
            found["unet.conv_in"] = found[name]
        return found

    read = checking.read_lora
    monkeypatch.setattr(checking, "read_lora", misread)
    with pytest.raises(InterchangeError, match="nothing was written"):
        export_lora(tiny_pipe, merged.tiny_adapter(), target)
    assert not list(target.parent.iterdir())


def test_an_encoder_that_diffusers_loads_no_lora_for_is_named(target: Path) -> None:
    pipe = tiny_pipelines.build("flux")
    with pytest.raises(InterchangeError, match=r"text_encoder_2|finds nothing"):
        export_lora(pipe, adapter_of(pipe, "text_encoder_2"), target)
    assert not list(target.parent.iterdir())


def test_a_pipeline_without_a_lora_loader_is_named(target: Path) -> None:
    pipe = tiny_pipelines.build("pixart_sigma")
    with pytest.raises(InterchangeError, match="no LoRA loader for a PixArtSigmaPipeline"):
        export_lora(pipe, adapter_of(pipe, "transformer"), target)
    assert not list(target.parent.iterdir())


def test_a_file_that_is_there_is_replaced_only_on_demand(tiny_pipe: Any, target: Path) -> None:
    target.write_text("mine")
    for export in (export_lora, export_dense):
        with pytest.raises(InterchangeError, match="exists"):
            export(tiny_pipe, merged.tiny_adapter(), target)
    assert target.read_text() == "mine"
    export_lora(tiny_pipe, merged.tiny_adapter(), target, rank=1, overwrite=True)
    assert load_file(target)
    with pytest.raises(InterchangeError, match="no folder"):
        export_lora(tiny_pipe, merged.tiny_adapter(), target.parent / "no" / "x.safetensors")


def test_a_full_disk_leaves_nothing(
    tiny_pipe: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(atomic, "save_file", fail)
    for export in (export_lora, export_dense):
        with pytest.raises(OSError, match=r"cannot write .*No space left"):
            export(tiny_pipe, merged.tiny_adapter(), target)
    assert not list(target.parent.iterdir())


def test_an_adapter_of_another_base_is_refused(target: Path) -> None:
    with pytest.raises(BaseMismatchError):
        export_lora(tiny.make_tiny_pipeline(seed=1), merged.tiny_adapter(), target)
    assert not target.exists()


def test_settings_that_do_not_exist_are_refused(tiny_pipe: Any, target: Path) -> None:
    with pytest.raises(InterchangeError, match="format must be"):
        export_lora(tiny_pipe, merged.tiny_adapter(), target, format="a1111")  # type: ignore[arg-type]
    with pytest.raises(InterchangeError, match="dtype must be"):
        export_lora(tiny_pipe, merged.tiny_adapter(), target, dtype=torch.float64)


def test_an_adapter_of_a_text_encoder_alone_is_written(tiny_pipe: Any, target: Path) -> None:
    adapter = adapter_of(tiny_pipe, "text_encoder")
    export_lora(tiny_pipe, adapter, target)
    assert all(name.startswith("lora_te_") for name in load_file(target))


def test_sd_files_hold_a_layer_that_tells_the_width_of_the_text(
    tiny_pipe: Any, target: Path
) -> None:
    adapter = adapter_of(tiny_pipe, "unet", "attn1.to_q")
    export_lora(tiny_pipe, adapter, target)
    names = {name.partition(".")[0] for name in load_file(target)}
    assert [name for name in names if "attn2_to_k" in name]
    assert all("attn1_to_q" in name for name in lora_modules(target))


def test_flux_files_hold_the_layers_by_which_invokeai_knows_them(target: Path) -> None:
    pipe = tiny_pipelines.build("flux")
    export_lora(pipe, adapter_of(pipe, "transformer", "transformer_blocks.0.attn.to_k"), target)
    assert {name.partition(".lora_")[0] for name in load_file(target)} == {
        "transformer.single_transformer_blocks.0.attn.to_q",
        *(f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")),
        *(f"transformer.transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"),
    }
    assert lora_modules(target) == {"transformer.transformer_blocks.0.attn.to_k"}


def test_sd3_in_kohyas_form_has_the_sheets_fused_layers(target: Path) -> None:
    pipe = tiny_pipelines.build("sd3")
    adapter = adapter_of(pipe, "transformer", "transformer_blocks.0.attn.to_k")
    export_lora(pipe, adapter, target, format="kohya")
    tensors = load_file(target)
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    assert set(tensors) == {f"{name}.{x}" for x in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert tensors[f"{name}.lora_up.weight"].shape == (96, 12)


def test_dense_changes_are_those_of_the_merged_model(tiny_pipe: Any, target: Path) -> None:
    adapter = adapter_of(tiny_pipe, "unet", "all")
    written = export_dense(tiny_pipe, adapter, target, dtype=torch.float32)
    whole = merged.merged(tiny_pipe.unet, adapter.deltas["unet"])
    diffs = load_file(target)
    assert len(diffs) == len(adapter.deltas["unet"]) and written.error == 0
    for path in adapter.deltas["unet"]:
        before, after = (m.get_submodule(path).weight for m in (tiny_pipe.unet, whole))
        change = diffs[f"lora_unet_{path.replace('.', '_')}.diff"]
        # float16 vectors round a change by some 3e-4 of itself.
        assert change.shape == before.shape
        assert (change - (after - before)).norm() < 2e-3 * (after - before).norm()


def test_adapters_are_read_from_where_users_keep_them(
    tiny_pipe: Any, adapter_file: Path, target: Path
) -> None:
    sizes = {
        export_lora(tiny_pipe, source, target, error=0.2, overwrite=True).size
        for source in (adapter_file, str(adapter_file.parent))
    }
    assert len(sizes) == 1


def test_rank_and_error_decide_the_size(tiny_pipe: Any, target: Path) -> None:
    small = export_lora(tiny_pipe, merged.tiny_adapter(), target, rank=2)
    found = load_file(target)
    assert {len(t) for n, t in found.items() if "lora_down" in n} == {2} and small.rank == 2
    within = export_lora(tiny_pipe, merged.tiny_adapter(), target, error=0.1, overwrite=True)
    assert within.error <= 0.1 < small.error and small.size < within.size
    assert set(within.errors) == {
        f"{component}.{path}"
        for component, own in merged.tiny_adapter().deltas.items()
        for path in own
    }


def test_a_lora_without_its_adapters_fingerprint_needs_no_check(
    tiny_pipe: Any, target: Path
) -> None:
    bare = state_dict(replace(merged.tiny_adapter(), sketches={}))
    assert export_lora(tiny_pipe, bare, target).error == 0


def test_a_lora_file_is_no_adapter(tiny_pipe: Any, target: Path) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, target)
    with pytest.raises(ValueError, match="this is a LoRA"):
        export_lora(tiny_pipe, target, target.with_name("y.safetensors"))
