"""A word of the subject's own, learned beside the shifts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from own_words import draw
from tiny_pipelines.aura_flow import aura_flow
from tiny_pipelines.flux import flux, ovis_image
from tiny_pipelines.gemma import lumina2
from tiny_pipelines.hidream import hidream
from tiny_pipelines.pixart import pixart_sigma
from tiny_pipelines.qwen_image import krea2, qwen_image
from tiny_pipelines.stable_diffusion import sd3, sdxl
from tiny_pipelines.z_image import z_image
from tiny_training import advance, make_config, make_trainer, shifts

from svfit_diffusion import ConfigError, DataError
from svfit_diffusion.training import Trainer
from svfit_diffusion.training.state import resume, save_checkpoint

WORD: dict[str, Any] = {"train_identifier": "sks"}
EVERYTHING: dict[str, Any] = {
    "budget": 90,
    "use_ema": True,
    "optimizer": "prodigy",
    "learning_rate": 1.0,
}


def vectors(trainer: Trainer) -> torch.Tensor:
    (found,) = [p.detach() for p in trainer.sigma_parameters() if p.dim() == 3]
    return found


@pytest.mark.parametrize("encoder", [False, True])
def test_what_is_saved_draws_what_was_learned(tmp_path: Path, encoder: bool) -> None:
    trainer = make_trainer(tmp_path, 3, **WORD, train_text_encoder=encoder)
    assert (vectors(trainer).abs().amax(-1) > 0).all()  # at each reader, and at both places
    with trainer.generating() as pipe:
        expected = draw(pipe, "a photo of sks dog")
    other = tiny.make_tiny_pipeline()
    other.set_progress_bar_config(disable=True)
    base = draw(other, "a photo of sks dog")
    other.load_svfit_weights(trainer.save(tmp_path), show_progress=False)
    assert torch.equal(draw(other, "a photo of sks dog"), expected)
    assert not torch.equal(expected, base)


@pytest.mark.parametrize("word", [WORD, {}])
def test_what_is_saved_and_drawn_is_of_the_strength_asked_for(
    tmp_path: Path, word: dict[str, Any]
) -> None:
    prompt = "a photo of sks dog"
    trainer = make_trainer(tmp_path, 2, **word, output_strength=0.4, train_text_encoder=True)
    with trainer.generating() as pipe:
        drawn = draw(pipe, prompt)
    advance(trainer, 2)  # as if nothing had been drawn
    straight = make_trainer(tmp_path, 4, **word, train_text_encoder=True)
    assert torch.equal(shifts(trainer), shifts(straight))
    other = tiny.make_tiny_pipeline()
    other.set_progress_bar_config(disable=True)
    half = make_trainer(tmp_path, 2, **word, train_text_encoder=True).save(tmp_path / "whole")
    other.load_svfit_weights(half, "whole", show_progress=False)
    other.set_svfit_adapters("whole", 0.4)
    assert torch.equal(draw(other, prompt), drawn)
    other.unload_svfit_weights()
    with trainer.generating() as pipe:
        drawn = draw(pipe, prompt)
    other.load_svfit_weights(trainer.save(tmp_path), show_progress=False)
    # Scaled before or after it is cast: the last bits.
    torch.testing.assert_close(draw(other, prompt), drawn, rtol=0, atol=1e-4)


def test_a_transformer_learns_too(tmp_path: Path) -> None:
    config = make_config(tmp_path, **WORD, resolution=32)
    trainer = Trainer(config, pipe=flux(), show_progress=False)
    advance(trainer, 2)
    assert (vectors(trainer).abs().amax(-1) > 0).all()


@pytest.mark.parametrize(
    "base",
    [
        tiny.make_tiny_pipeline,
        *(sdxl, flux, sd3, qwen_image, pixart_sigma),
        *(z_image, lumina2, krea2, aura_flow, ovis_image),
    ],
)
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, base: Any) -> None:
    found = []
    for checkpointing in (False, True):
        config = make_config(
            tmp_path,
            **WORD,
            gradient_checkpointing=checkpointing,
            resolution=32,
            with_prior_preservation=True,
            class_prompt="a dog",
            num_class_images=2,
        )
        trainer = Trainer(config, pipe=base(), show_progress=False)
        advance(trainer, 3)
        found.append(shifts(trainer))
    # Recomputed sums come in the same order.
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_a_resumed_run_is_the_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight = make_trainer(tmp_path, 5, **WORD, **changes)
    path = save_checkpoint(make_trainer(tmp_path, 2, **WORD, **changes), tmp_path)
    resumed = make_trainer(tmp_path, **WORD, **changes)
    resume(resumed, path)
    advance(resumed, 3)
    assert torch.equal(shifts(straight), shifts(resumed))


def test_a_budget_counts_shifts_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 6, **WORD, budget=50)
    kept = sum(int(s.count_nonzero()) for s in trainer.subject.shifts())
    assert kept == 50
    assert trainer.adapter().parameter_count == 50 + vectors(trainer).count_nonzero()


def test_drift_is_of_singular_values_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1, **WORD)
    before = trainer.subject.drift()
    with torch.no_grad():
        for parameter in trainer.sigma_parameters():
            if parameter.dim() == 3:
                parameter.mul_(100)
    assert trainer.subject.drift() == before


def test_without_it_nothing_is_on_the_models(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 1)
    assert all(p.dim() == 1 for p in trainer.sigma_parameters())
    assert trainer.adapter().words == {}
    assert not trainer.pipe.text_encoder._forward_hooks
    assert shifts(trainer).any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_identifier": " "}, ConfigError, "train_identifier is empty"),
        ({"train_identifier": "zwx"}, DataError, "no photo's prompt says train_identifier 'zwx'"),
        (
            {"with_base_prior": True, "class_prompt": "a sks dog"},
            ConfigError,
            "class_prompt 'a sks dog' says train_identifier",
        ),
        ({"group_offload": True}, ConfigError, "does not go with group_offload"),
    ],
)
def test_bad_settings(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, **{**WORD, **changes})


def test_bases_that_have_no_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is for Stable Diffusion 1, 2, XL and 3"):
        Trainer(make_config(tmp_path, **WORD), pipe=hidream(), show_progress=False)
