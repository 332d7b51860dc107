"""Offloading and adapters, in either order: pictures are the merged model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from merged import CHANGES, CLOSE, check_switching, load, tiny_pictures
from tiny import make_tiny_pipeline, run_pipeline

from svfit_diffusion import StateError, inject
from svfit_diffusion.adapters.injection import Injection

CPU = torch.device("cpu")


def offload_groups(pipe: Any, kind: str, **settings: Any) -> None:
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks, **settings
    )


def offload_sequentially(pipe: Any) -> None:
    # The UNet alone: diffusers' own call asks for a device that is not the CPU.
    cpu_offload(pipe.unet, CPU)


WAYS: dict[str, Callable[[Any], None]] = {
    "whole models": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "blocks": lambda pipe: offload_groups(pipe, "block_level"),
    "leaves": lambda pipe: offload_groups(pipe, "leaf_level"),
    "sequential": offload_sequentially,
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("way", WAYS)
def test_an_offloaded_pipeline_switches_adapters(way: str, order: str) -> None:
    pipe = make_tiny_pipeline()
    if order == "before":
        WAYS[way](pipe)
    load(pipe)
    if order == "after":
        WAYS[way](pipe)
    check_switching(pipe, tiny_pictures())


@pytest.mark.parametrize("way", WAYS)
def test_offloading_may_end_and_begin_between_switches(way: str) -> None:
    pipe, expected = load(make_tiny_pipeline()), tiny_pictures()
    WAYS[way](pipe)
    run_pipeline(pipe)
    pipe.disable_svfit()
    if way in ("blocks", "leaves"):
        for model in (pipe.unet, pipe.text_encoder, pipe.vae):
            for module in model.modules():
                if hasattr(module, "_diffusers_hook"):
                    module._diffusers_hook.remove_hook("group_offloading", recurse=False)
    else:
        pipe.remove_all_hooks()
        pipe.to("cpu")
    pipe.enable_svfit()
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, **CLOSE)
    WAYS[way](pipe)
    torch.testing.assert_close(run_pipeline(pipe), expected.adapted, **CLOSE)
    pipe.unload_svfit_weights()
    assert torch.equal(run_pipeline(pipe), expected.base)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_on_disk_an_adapter_acts_but_cannot_be_changed(kind: str, tmp_path: Path) -> None:
    pipe = load(make_tiny_pipeline())
    offload_groups(pipe, kind, offload_to_disk_path=str(tmp_path))
    adapted = run_pipeline(pipe)
    torch.testing.assert_close(adapted, tiny_pictures().adapted, **CLOSE)
    for change in CHANGES:
        with pytest.raises(StateError, match="offloaded"):
            change(pipe)
    with pytest.raises(StateError, match="to disk"):
        pipe.unload_svfit_weights(keep_changed_weights=True)
    assert pipe.get_list_svfit_adapters() == {"unet": ["a"], "text_encoder": ["a"]}
    assert torch.equal(run_pipeline(pipe), adapted)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_a_base_on_disk_takes_no_adapter(kind: str, tmp_path: Path) -> None:
    pipe = make_tiny_pipeline()
    offload_groups(pipe, kind, offload_to_disk_path=str(tmp_path))
    with pytest.raises(StateError, match="before enable_group_offload"):
        load(pipe)
    assert pipe.get_list_svfit_adapters() == {}
    assert torch.equal(run_pipeline(pipe), tiny_pictures().base)


@pytest.mark.parametrize("way", ["leaves", "sequential"])
def test_layers_that_come_and_go_are_neither_trained_nor_mixed(way: str) -> None:
    pipe = load(make_tiny_pipeline())
    WAYS[way](pipe)
    before = run_pipeline(pipe)
    with (
        pytest.raises(StateError, match="enable_model_cpu_offload"),
        pipe.svfit_adapters_per_prompt(["a", None]),
    ):
        pass
    with pytest.raises(StateError, match="enable_model_cpu_offload"):
        inject(pipe.unet, adapter_name="new", show_progress=False)
    assert Injection.of(pipe.unet).adapter_names == ["a"]
    assert torch.equal(run_pipeline(pipe), before)


@pytest.mark.parametrize("way", ["whole models", "blocks"])
def test_a_mixed_batch_of_offloaded_models(way: str) -> None:
    pipe = load(make_tiny_pipeline())

    def draw() -> Any:
        prompts = ["a photo of a dog", "a photo of a dog"]
        seeds = [torch.Generator().manual_seed(3) for _ in prompts]
        return run_pipeline(pipe, prompt=prompts, generator=seeds)

    WAYS[way](pipe)
    with pipe.svfit_adapters_per_prompt(["a", None]):
        adapted, base = draw()
    expected = tiny_pictures()
    # Sums of a batch of two in another order, 1e-6.
    torch.testing.assert_close(adapted, expected.adapted[0], **CLOSE)
    torch.testing.assert_close(base, expected.base[0], rtol=0, atol=1e-5)
    assert torch.equal(run_pipeline(pipe), run_pipeline(load(make_tiny_pipeline())))
