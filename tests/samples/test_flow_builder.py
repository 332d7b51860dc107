"""Toybox-Flow's builder: its stages end to end with tiny sizes, and what they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from samples.toybox_builder import flow_data, flow_train, flow_world, pool, vae
from samples.toybox_builder.concepts import CORE_CONCEPTS, Concept, Sprite
from samples.toybox_builder.flow import Plan, _model, run_stage
from samples.toybox_builder.flow_export import FLOW_SAMPLING, assemble_flow
from samples.toybox_builder.flow_model import FlowModel, Shape, pack
from samples.toybox_builder.flow_train import FlowTraining, Noisy, Schedule
from samples.toybox_builder.pool import Recipe, load_pool
from samples.toybox_builder.scenes import SCENES, draw_scene
from samples.toybox_builder.tokenizer import MAX_LENGTH, sequence_tokenizer, train_tokenizer
from samples.toybox_builder.vae import Design

HELD_BACK = 4
CPU = torch.device("cpu")
SHAPE = Shape(channels=4, heads=2, head_width=16, double=1, single=1, text_width=32)
PLAN = Plan(
    parts=2,
    part=12,
    recipe=Recipe(sprite_size=32, backgrounds=1, mirrored=0.5, tilted=0.5, accompanied=0.5),
    vae=Design(64, (16, 16, 16), 4, 0.5, 0.5, (2, 2), standard=True),
    vae_minutes=0.05,
    shape=SHAPE,
    schedule=Schedule(steps=4, batch_size=4),
)
CAPTIONS = ["a photo of a red dog on the beach", "a cartoon of a cat with a blue ball"] * 300


def _sprites(work: Path, concepts: tuple[Concept, ...], size: int) -> list[Sprite]:
    """Discs, in place of the art, which has to be fetched."""
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    disc = np.zeros((size, size, 4), np.uint8)
    disc[rows**2 + columns**2 < 0.9] = (200, 120, 40, 255)
    return [Sprite(concept, "fluent-3d", disc) for concept in CORE_CONCEPTS[:3]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder in which everything up to the latents is done."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        for module in (vae, flow_data, flow_train):
            patch.setattr(module, "HELD_BACK", HELD_BACK)
        patch.setattr(pool, "fetch_sprites", _sprites)
        for stage in ("pool", "vae", "latents"):
            run_stage(stage, folder, PLAN, CPU, threads=1)
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FlowModel:
    """A model whose every part matters to its output."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, folder)
    made = FlowModel(tokenizer, sequence_tokenizer(folder), SHAPE)
    for parameter in made.transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    for module in made.modules.values():
        module.eval().requires_grad_(False)
    return made


def test_latents_are_standard(work: Path) -> None:
    latents = np.load(work / "pool" / "000" / "latents.npy")[-HELD_BACK:].astype(np.float32)
    assert latents.shape == (HELD_BACK, 4, 16, 16)
    # They were standardised by these very pictures; half precision holds three digits.
    assert abs(latents.mean()) < 0.01
    assert abs(latents.std() - 1) < 0.02


def test_standardising_changes_no_picture() -> None:
    torch.manual_seed(0)
    autoencoder = vae.new_vae(PLAN.vae).eval()
    pictures = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        before = autoencoder.encode(pictures).latent_dist
        drawn = autoencoder.decode(before.mean).sample
        vae.standardise(autoencoder, before.mean)
        after = autoencoder.encode(pictures).latent_dist
        # The same sums in another order, in float32.
        torch.testing.assert_close(autoencoder.decode(after.mean).sample, drawn, atol=1e-4, rtol=0)
        std = before.mean.std((0, 2, 3))[None, :, None, None]
        torch.testing.assert_close(after.std * std, before.std, atol=1e-5, rtol=1e-4)
    assert after.mean.mean((0, 2, 3)).abs().max() < 1e-4


def _trained(work: Path, name: str, stops: tuple[int, ...]) -> FlowTraining:
    """Train through runs that each end at one of the stops."""
    for stop in stops:
        made = _model(work, PLAN)
        training = FlowTraining(made, work / name, PLAN.schedule, PLAN.seed)
        training.run(flow_data.FlowExamples.load(work, made), flow_train.flow_loss, CPU, until=stop)
    return training


def test_resuming_equals_not_stopping(work: Path) -> None:
    once = _trained(work, "once.pt", (4,))
    twice = _trained(work, "twice.pt", (1, 4))
    assert once.step == twice.step == 4
    for ours, theirs in zip(once.average.values, twice.average.values, strict=True):
        assert torch.equal(ours, theirs)


def test_training_learns_and_shows(work: Path) -> None:
    fresh = {
        name: value.clone() for name, value in _model(work, PLAN).transformer.named_parameters()
    }
    run_stage("train", work, PLAN, CPU, threads=1)
    run_stage("samples", work, PLAN, CPU, threads=1)
    assert (work / "grid_000004.png").exists()
    training = FlowTraining(_model(work, PLAN), work / "flow.pt", PLAN.schedule, PLAN.seed)
    learned = training.model.transformer.state_dict()
    assert not torch.equal(learned["proj_out.weight"], fresh["proj_out.weight"])


def test_pool_parts_are_drawn_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.glob("pool/*/images.npy")}
    assert len(before) == PLAN.parts

    def refuse(*arguments: Any) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(pool, "_draw_chunk", refuse)
    flow_world.draw_flow_pool(work, PLAN.parts, 1, PLAN.recipe, PLAN.part)
    assert before == {path: path.stat().st_mtime_ns for path in work.glob("pool/*/images.npy")}


def test_companions_are_named(work: Path) -> None:
    """In all captions of a picture, or in none."""
    parts = [load_pool(folder) for folder in flow_world.part_folders(work)]
    companion = re.compile(r" (dog|cat|bear) with an? (\w+ )?(dog|cat|bear)")
    named = [
        [bool(companion.search(text)) for text in texts]
        for part in parts
        for texts in part.captions
    ]
    assert all(all(row) or not any(row) for row in named)
    assert {any(row) for row in named} == {True, False}


@pytest.mark.parametrize("length", [MAX_LENGTH, 32, 512])
def test_velocity_is_what_the_pipeline_computes(model: FlowModel, length: int) -> None:
    """The stand-in for padding is exact, for every length of the sequence."""
    pipeline = assemble_flow(model, AutoencoderKL(block_out_channels=(32,) * 3, latent_channels=4))
    pipeline.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}

    def keep(module: Any, arguments: Any, given: dict[str, Any], output: Any) -> None:
        seen.update(given, output=output[0])

    handle = model.transformer.register_forward_hook(keep, with_kwargs=True)
    prompts = ["a photo of a red dog", "a cat"]
    settings = FLOW_SAMPLING | {"height": 64, "width": 64, "num_inference_steps": 1}
    pipeline(prompts, **settings | {"max_sequence_length": length}, output_type="latent")
    handle.remove()
    conditions = model.encode(*model.tokenise(prompts))
    ours = model.velocity(
        seen["hidden_states"],
        seen["timestep"],
        seen["guidance"],
        conditions,
        padding=length - MAX_LENGTH,
    )
    # Sums of 512 in another order, in float32. At 24 tokens the last ones lack neighbours that
    # are padding, which moves them a little.
    tolerance = 1e-4 if length > MAX_LENGTH else 0.05
    assert seen["output"].std() > 0.1
    torch.testing.assert_close(ours, seen["output"], atol=tolerance, rtol=0)


def test_padding_counts(model: FlowModel) -> None:
    """The test above could not fail if padding had no weight."""
    conditions = model.encode(*model.tokenise(["a photo of a red dog"]))
    tokens, level = torch.randn(1, 64, 16), torch.tensor([0.5])
    few, many = (model.velocity(tokens, level, level, conditions, count) for count in (8, 488))
    assert (few - many).abs().max() > 1e-3


def test_noise_and_picture_add_up() -> None:
    batch = flow_data.Batch(
        torch.randn(6, 4, 16, 16),
        torch.ones(6, 1, 16, 16),
        torch.zeros(6, 1),
        torch.zeros(6, 1),
    )
    noisy = Noisy.draw(batch, torch.Generator().manual_seed(0))
    restored = noisy.tokens - noisy.levels[:, None, None] * noisy.velocity
    torch.testing.assert_close(restored, pack(batch.latents), atol=1e-5, rtol=0)
    assert noisy.padding in flow_train.PADDINGS
    assert noisy.levels.min() > 0
    assert noisy.levels.max() < 1


def test_both_tokenizers_agree(model: FlowModel) -> None:
    text = "a photo of a sks Dog, ☃!"
    pieces = model.tokenizer.tokenize(text)
    assert model.sequence_tokenizer.tokenize(text) == pieces
    assert isinstance(model.tokenizer, CLIPTokenizer)
    ids = model.sequence_tokenizer(text, padding="max_length", max_length=MAX_LENGTH).input_ids
    assert ids[len(pieces)] == model.sequence_tokenizer.eos_token_id
    assert set(ids[len(pieces) + 1 :]) == {model.sequence_tokenizer.pad_token_id}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_scene_is_the_same_at_every_size(scene: Any) -> None:
    """Laid out alike: enlarged, a small one has nearly the colours of a large one, in coarse."""
    small, large = (draw_scene(scene, np.random.default_rng(3), size) for size in (64, 128))
    assert small.shape == (64, 64, 3)
    assert large.shape == (128, 128, 3)
    difference = small.mean((0, 1)) - large.mean((0, 1))
    # Random numbers are drawn in another order where their count depends on the size.
    assert np.abs(difference).max() < 40
