"""Which models of a pipeline an adapter reaches, and what is said where one is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from family_inputs import build, run
from merged import (
    CLOSE,
    check_output,
    load,
    make_adapter,
    merge_pipeline,
    merged,
    tiny_adapter,
    tiny_pictures,
)
from tiny import TEXT_LENGTH, TEXT_WIDTH, make_tiny_pipeline, make_tiny_text_encoder, run_pipeline
from torch import Tensor, nn

from svfit_diffusion import CheckpointError, ConfigError
from svfit_diffusion.adapters.components import models_of
from svfit_diffusion.files.adapter import COMPONENTS, DENOISERS, Adapter, state_dict


def without_text_encoder() -> Any:
    pipe = make_tiny_pipeline()
    pipe.register_modules(text_encoder=None)
    return pipe


def draw_from_embeddings(pipe: Any) -> Tensor:
    embeddings = torch.randn(1, TEXT_LENGTH, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    return run_pipeline(
        pipe, prompt=None, prompt_embeds=embeddings, negative_prompt_embeds=embeddings * 0
    )


def test_a_missing_component_is_named_with_the_way_out() -> None:
    pipe = without_text_encoder()
    base = draw_from_embeddings(pipe)
    with pytest.raises(CheckpointError, match=r"no text_encoder; .* components=\['unet'\]"):
        load(pipe)
    assert pipe.get_list_svfit_adapters() == {}
    assert torch.equal(draw_from_embeddings(pipe), base)

    load(pipe, components=["unet"])
    whole = make_tiny_pipeline()
    whole.unet = merged(whole.unet, tiny_adapter().deltas["unet"])
    torch.testing.assert_close(draw_from_embeddings(pipe), draw_from_embeddings(whole), **CLOSE)
    pipe.set_svfit_adapters("a", {"unet": 0.5, "text_encoder": 2.0})
    pipe.unload_svfit_weights()
    assert torch.equal(draw_from_embeddings(pipe), base)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_an_adapter_loaded_for_a_part(component: str, tmp_path: Path) -> None:
    pipe = load(make_tiny_pipeline(), components=(component,))
    assert pipe.get_list_svfit_adapters() == {component: ["a"]}
    part = Adapter({component: tiny_adapter().deltas[component]}, tiny_adapter().metadata)
    whole = merge_pipeline(make_tiny_pipeline(), part)
    torch.testing.assert_close(run_pipeline(pipe), run_pipeline(whole), **CLOSE)

    again = make_tiny_pipeline()
    again.load_svfit_weights(pipe.save_svfit_weights(tmp_path), show_progress=False)
    assert list(again.get_list_svfit_adapters()) == [component]
    assert torch.equal(run_pipeline(again), run_pipeline(pipe))


@pytest.mark.parametrize(
    "components", ["unet", [], (), ["text_encoder_2"], ["unet", "vae"], ["U-Net"]], ids=str
)
def test_wrong_components_are_refused(components: Any) -> None:
    pipe = make_tiny_pipeline()
    with pytest.raises(ConfigError, match="the adapter shifts unet, text_encoder: give a list"):
        load(pipe, components=components)
    assert torch.equal(run_pipeline(pipe), tiny_pictures().base)


def test_a_pipeline_without_any_such_model() -> None:
    pipe = make_tiny_pipeline()
    pipe.register_modules(text_encoder=None, unet=None)
    with pytest.raises(CheckpointError, match="no model that adapters can shift"):
        load(pipe)


class StandIn(DiffusionPipeline):
    """Two experts and a third text encoder, as Wan 2.2 and Stable Diffusion 3 have them."""

    def __init__(self, transformer: Any, transformer_2: Any, text_encoder_3: Any) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, transformer_2=transformer_2, text_encoder_3=text_encoder_3
        )


def outputs(pipe: Any) -> list[Tensor]:
    tokens = torch.arange(TEXT_LENGTH)[None]
    with torch.no_grad():
        encoded = pipe.text_encoder_3(tokens)[0]
    return [run("wan", pipe.transformer), run("wan", pipe.transformer_2), encoded]


def make_stand_in() -> Any:
    return StandIn(build("wan"), build("wan"), make_tiny_text_encoder(4))


def test_second_experts_and_third_text_encoders(tmp_path: Path) -> None:
    pipe = make_stand_in()
    base = outputs(pipe)
    adapter = make_adapter(
        {"transformer_2": pipe.transformer_2, "text_encoder_3": pipe.text_encoder_3}
    )
    expected = outputs(merge_pipeline(pipe, adapter))
    pipe.load_svfit_weights(state_dict(adapter), "a", show_progress=False)
    assert list(pipe.get_list_svfit_adapters()) == ["transformer_2", "text_encoder_3"]
    found = outputs(pipe)
    assert torch.equal(found[0], base[0])
    for number in (1, 2):
        check_output(found[number], base[number], expected[number])

    other = make_stand_in()
    other.load_svfit_weights(pipe.save_svfit_weights(tmp_path), show_progress=False)
    for one, two in zip(outputs(other), found, strict=True):
        assert torch.equal(one, two)
    other.set_svfit_adapters("default_0", {"transformer_2": 0.0})
    assert torch.equal(outputs(other)[1], base[1])
    assert torch.equal(outputs(other)[2], found[2])
    pipe.unload_svfit_weights()
    for one, two in zip(outputs(pipe), base, strict=True):
        assert torch.equal(one, two)


def test_every_component_is_found_and_denoisers_come_first() -> None:
    class Everything(DiffusionPipeline):
        def __init__(self) -> None:
            super().__init__()
            for component in COMPONENTS:
                setattr(self, component, nn.Linear(2, 2))

    assert tuple(models_of(Everything())) == COMPONENTS
    assert COMPONENTS[: len(DENOISERS)] == DENOISERS
