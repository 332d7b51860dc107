"""What the Inspect page says is true of the file, of the base and of the singular values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.base_model import BaseModel
from app.inspection import (
    LayerShift,
    as_picture,
    as_stretched_picture,
    base_match,
    facts,
    image_bases,
    layer_shifts,
    most_moved,
    split,
    weight_basis,
)
from app.library import AdapterInfo
from svfit_diffusion.files.adapter import Adapter, AdapterMetadata
from svfit_diffusion.spectrum import leading

UNET_LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def pipe(saved_pipe: Path) -> Any:
    return BaseModel(str(saved_pipe), "cpu").view()


def adapter(**metadata: Any) -> Adapter:
    deltas = {"text_encoder": {TEXT_LAYER: torch.full((4,), 0.5)}, "unet": {UNET_LAYER: ramp(64)}}
    return Adapter(deltas, AdapterMetadata(**metadata))


def ramp(length: int) -> torch.Tensor:
    return torch.linspace(-1, 1, length)


def info(misfit: str | None = None, **metadata: Any) -> AdapterInfo:
    return AdapterInfo("rex", Path("rex.safetensors"), 2048, adapter(**metadata), misfit)


def test_facts_are_those_of_the_file_and_unknown_ones_are_left_out() -> None:
    assert dict(facts(info())) == {
        "File size": "2.0 KiB",
        "Values shifted": "68",
        "Layers shifted": "text_encoder 1, unet 1",
        "Base model match": "Fits, but the file does not say which weights it was trained on.",
    }
    known = dict(
        facts(
            info(
                instance_prompt="a photo of sks <b>dog</b>",
                rank={"unet": "0.9"},
                training={"learning_rate": 0.05, "seed": 7, "max_train_steps": None},
                versions={"torch": "2"},
            )
        )
    )
    assert known["Instance prompt"] == "a photo of sks <b>dog</b>"
    assert (known["Rank"], known["Learning rate"], known["Seed"]) == ("unet 0.9", "0.05", "7")
    assert known["Written by"] == "torch 2"
    assert "Steps asked for" not in known and "Target" not in known


def test_base_match_says_which_weights() -> None:
    assert base_match(info(misfit="another base")) == "Does not match: another base"
    assert "unet abcdef012345" in base_match(info(fingerprints={"unet": "abcdef0123456789"}))


def test_layer_shifts_stand_beside_the_singular_values_of_their_weights(pipe: Any) -> None:
    text, unet = layer_shifts(pipe, adapter())
    # Files name CLIP's layers with `text_model.`, which transformers 5 has dropped.
    assert text.name.removeprefix("text_encoder.").removeprefix("text_model.") == (
        TEXT_LAYER.removeprefix("text_model.")
    )
    assert (text.sigma.shape, text.delta.shape) == ((32,), (4,))
    weight = pipe.unet.get_submodule(UNET_LAYER).weight
    np.testing.assert_allclose(unet.sigma, torch.linalg.svdvals(weight), rtol=1e-2, atol=1e-3)
    np.testing.assert_array_equal(unet.delta, ramp(64))
    assert text.moved == pytest.approx(1 / np.linalg.norm(text.sigma[:4]), rel=1e-5)
    assert [shift.moved for shift in most_moved([text, unet], 2)] == sorted(
        (text.moved, unet.moved), reverse=True
    )
    assert len(most_moved([text, unet], 1)) == 1


def test_energy_is_that_of_the_whole_weight() -> None:
    delta = np.zeros(1, np.float32)
    every = LayerShift("unet", "x", np.array([2.0, 1.0, 1.0]), delta, 3, 6.0)
    np.testing.assert_allclose(every.cumulative_energy, [4 / 6, 5 / 6, 1])
    first = LayerShift("unet", "x", np.array([2.0, 1.0]), delta, 3, 6.0)
    np.testing.assert_allclose(first.cumulative_energy, [4 / 6, 5 / 6])


def test_of_large_weights_the_singular_values_of_the_adapter_are_asked_for(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    every = layer_shifts(pipe, adapter())[0]
    for file in empty_cache.glob("*.safetensors"):
        file.unlink()
    monkeypatch.setattr(leading, "_SMALLEST", 32)
    few = Adapter({"text_encoder": {TEXT_LAYER: torch.ones(4)}}, AdapterMetadata())
    (text,) = layer_shifts(pipe, few)
    np.testing.assert_allclose(text.sigma, every.sigma[:4], rtol=1e-4)  # of two solvers
    assert (text.count, every.count) == (32, 32)
    assert text.energy == pytest.approx(every.energy, rel=1e-3)  # of σ² in float32
    assert text.moved == pytest.approx(2 / np.linalg.norm(every.sigma[:4]), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 7, 32, 64])
def test_the_parts_of_a_weight_are_truncated_singular_value_decompositions(
    pipe: Any, rank: int
) -> None:
    parts = split([weight_basis(pipe, "unet", UNET_LAYER)], rank)
    weight = pipe.unet.get_submodule(UNET_LAYER).weight.double()
    u, sigma, vh = torch.linalg.svd(weight)
    leading = u[:, :rank] @ sigma[:rank].diag() @ vh[:rank]
    trailing = u[:, 64 - rank :] @ sigma[64 - rank :].diag() @ vh[64 - rank :]
    scale = float(weight.abs().max())
    for part, expected in ((parts.whole, weight), (parts.leading, leading)):
        np.testing.assert_allclose(part[0], expected, atol=1e-2 * scale)
    np.testing.assert_allclose(parts.trailing[0], trailing, atol=1e-2 * scale)
    energy = sigma.square()
    share = (energy[:rank].sum() / energy.sum()).sqrt()
    assert parts.leading_share == pytest.approx(float(share), rel=1e-2)
    assert (parts.rank, parts.full_rank) == (rank, 64)


def test_ranks_out_of_range_are_brought_into_it() -> None:
    bases = image_bases(Image.new("RGB", (30, 20), "red"))
    assert split(bases, 0).rank == 1
    assert split(bases, 999).rank == 20


def test_a_picture_comes_apart_by_channels_and_back_together() -> None:
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    parts = split(image_bases(picture), 30)
    assert as_picture(parts.whole).tobytes() == picture.tobytes()
    assert as_picture(parts.leading).tobytes() == picture.tobytes()

    stripes = Image.new("RGB", (40, 30), "white")
    stripes.paste("red", (10, 0, 20, 30))
    parts = split(image_bases(stripes), 1)  # of rank 1 in each channel
    assert as_picture(parts.leading).tobytes() == stripes.tobytes()
    assert parts.leading_share == pytest.approx(1)
    assert parts.trailing_share < 1e-6


def test_large_pictures_are_reduced_before_decomposition() -> None:
    bases = image_bases(Image.effect_noise((2000, 1000), 60))
    assert (len(bases), bases[0].u.shape, bases[0].v.shape) == (3, (160, 160), (160, 320))


def test_stretched_pictures_use_the_whole_range() -> None:
    channels = np.zeros((3, 2, 2), np.float32)
    assert as_stretched_picture(channels).getcolors() == [(4, (128, 128, 128))]
    channels[0, 0, 0], channels[0, 0, 1] = 1e-3, -1e-3
    stretched = as_stretched_picture(channels)
    assert stretched.getpixel((0, 0))[0] == 255
    assert stretched.getpixel((1, 0))[0] == 0
