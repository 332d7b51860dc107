"""Toybox-Flow's builder: its stages end to end with tiny sizes, and what they promise."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from samples.toybox_builder import flow, flow_data, flow_train, flow_vae, flow_world, pool, vae
from samples.toybox_builder.art import HELD_OUT_SETS
from samples.toybox_builder.concepts import CORE_CONCEPTS, Concept, Sprite
from samples.toybox_builder.flow import Plan, new_model, run_stage
from samples.toybox_builder.flow_export import FLOW_SAMPLING, assemble_flow, save_flow
from samples.toybox_builder.flow_guidance import GuidedFlow
from samples.toybox_builder.flow_latents import load_frozen
from samples.toybox_builder.flow_model import FlowModel, Shape, pack
from samples.toybox_builder.flow_subjects import FLOW_SUBJECTS
from samples.toybox_builder.flow_train import Noisy
from samples.toybox_builder.flow_world import FLOW_CONCEPTS
from samples.toybox_builder.pool import Recipe, load_pool
from samples.toybox_builder.scenes import SCENES, draw_scene
from samples.toybox_builder.subjects import Subject
from samples.toybox_builder.tokenizer import MAX_LENGTH, sequence_tokenizer, train_tokenizer
from samples.toybox_builder.training import Schedule, Training
from samples.toybox_builder.variation import other_hues, vary

HELD_BACK = 4
CPU = torch.device("cpu")
SHAPE = Shape(channels=4, heads=2, head_width=16, double=1, single=1, text_width=32)
PLAN = Plan(
    parts=2,
    part=12,
    recipe=Recipe(size=128, sprite_size=32, backgrounds=1, tilted=0.5, accompanied=0.5, varied=0.5),
    vae=Schedule(steps=4, batch_size=2),
    shape=SHAPE,
    schedule=Schedule(steps=4, batch_size=4),
    guiding=Schedule(steps=2, batch_size=4),
)
CAPTIONS = ["a photo of a red dog on the beach", "a cartoon of a cat with a blue ball"] * 300


def _sprites(work: Path, concepts: tuple[Concept, ...], size: int) -> list[Sprite]:
    """Discs, in place of the art, which has to be fetched."""
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    disc = np.zeros((size, size, 4), np.uint8)
    disc[rows**2 + columns**2 < 0.9] = (200, 120, 40, 255)
    return [Sprite(concept, "fluent-3d", disc) for concept in CORE_CONCEPTS[:3]]


def _teacher(folder: Path) -> AutoencoderKL:
    """An autoencoder that halves pictures twice, to one channel."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(16,) * 3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=1,
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
    ).save_pretrained(folder)
    return load_frozen(folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder in which everything up to the autoencoder is done, and its plan."""
    folder = tmp_path_factory.mktemp("work")
    _teacher(folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        for module in (flow_data, flow_train, flow_vae):
            patch.setattr(module, "HELD_BACK", HELD_BACK)
        patch.setattr(pool, "fetch_sprites", _sprites)
        for stage in ("pool", "vae", "latents"):
            _run(stage, folder)
        yield folder


def _run(stage: str, folder: Path) -> None:
    run_stage(stage, folder, replace(PLAN, teacher=folder / "teacher"), CPU, threads=1)


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


def test_latents_are_those_of_our_own_autoencoder(work: Path) -> None:
    part = work / "pool" / "000"
    latents = torch.from_numpy(np.load(part / "latents.npy")).float()
    assert latents.shape == (PLAN.part, 4, 16, 16)
    own = AutoencoderKL.from_pretrained(work / "vae").eval()
    with torch.no_grad():
        exact = own.encode(vae.to_tensor(load_pool(part).images)).latent_dist.mean
    # Half precision holds three digits.
    torch.testing.assert_close(latents, exact, atol=2e-3, rtol=2e-3)


def test_folded_latents_are_standard(work: Path) -> None:
    """By the pictures that they were measured on."""
    lessons = flow_vae.Lessons.load(work, load_frozen(work / "teacher"), CPU, parts=1)
    folded = lessons.anchors(vae.as_pictures(lessons.images))
    assert folded.shape == (PLAN.part, 4, 16, 16)
    # The statistics were taken of latents in half precision.
    assert abs(folded.mean()) < 0.01
    assert abs(folded.std() - 1) < 0.02


def test_autoencoder_starts_with_the_teachers_outer_levels(tmp_path: Path) -> None:
    teacher = _teacher(tmp_path)
    ours = flow_vae.new_flow_vae(teacher)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        hidden, theirs = (v.encoder.conv_in(pictures) for v in (ours, teacher))
        for block, their_block in zip(
            ours.encoder.down_blocks[:2], teacher.encoder.down_blocks[:2], strict=True
        ):
            hidden, theirs = block(hidden), their_block(theirs)
        assert torch.equal(hidden, theirs)
        features = torch.randn(2, 16, 8, 8)
        drawn, theirs = features, features
        for number in (1, 2):
            drawn = ours.decoder.up_blocks[number + 1](drawn)
            theirs = teacher.decoder.up_blocks[number](theirs)
        assert torch.equal(drawn, theirs)
        spread = ours.encode(pictures).latent_dist.std
    # A posterior that is nearly a point: exp(-8 / 2).
    assert spread.max() < 0.02


def test_autoencoder_learns(work: Path) -> None:
    """More steps from a checkpoint lower the error."""
    lessons = flow_vae.Lessons.load(work, load_frozen(work / "teacher"), CPU, parts=2)

    def error(autoencoder: AutoencoderKL) -> float:
        with torch.no_grad():
            return float(lessons.loss(autoencoder, 16, torch.Generator().manual_seed(1)))

    torch.manual_seed(PLAN.seed)
    fresh = flow_vae.new_flow_vae(lessons.teacher)
    assert error(AutoencoderKL.from_pretrained(work / "vae")) < 0.99 * error(fresh)


def _trained(work: Path, name: str, stops: tuple[int, ...]) -> Training:
    """Train through runs that each end at one of the stops."""
    for stop in stops:
        made = new_model(work, PLAN)
        examples = flow_data.FlowExamples.load(work, made)
        training = flow_train.train_flow(
            made, examples, flow_train.flow_loss, work / name, PLAN.schedule, 0, CPU, until=stop
        )
    return training


def test_resuming_equals_not_stopping(work: Path) -> None:
    once = _trained(work, "once.pt", (4,))
    twice = _trained(work, "twice.pt", (1, 4))
    assert once.step == twice.step == 4
    for ours, theirs in zip(once.average.values, twice.average.values, strict=True):
        assert torch.equal(ours, theirs)


def test_training_changes_the_weights(work: Path) -> None:
    _trained(work, "once.pt", (4,))
    learned = new_model(work, PLAN)
    assert flow_train.load_learned(learned, work / "once.pt") == 4
    fresh = new_model(work, PLAN)
    for part, untrained in zip(learned.modules.values(), fresh.modules.values(), strict=True):
        changed = [
            not torch.equal(ours, theirs)
            for ours, theirs in zip(part.parameters(), untrained.parameters(), strict=True)
        ]
        assert sum(changed) > 0.5 * len(changed)


def test_what_is_not_trained_is_named(work: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        flow_train.load_learned(new_model(work, PLAN), work / "none.pt")


def test_far_tokens_stay_unheard(work: Path) -> None:
    """Training must not touch the bias that hides them."""
    _trained(work, "once.pt", (4,))
    learned = new_model(work, PLAN)
    flow_train.load_learned(learned, work / "once.pt")
    block = learned.sequence_encoder.encoder.block[0].layer[0]
    assert (block.SelfAttention.relative_attention_bias.weight == -1000).any(1).sum() == 2


def test_guidance_is_told_by_the_teacher(model: FlowModel) -> None:
    """What a scale adds grows with what it has over one, and by the difference of the prompt."""
    objective = GuidedFlow(model)
    texts = model.tokenise(["a photo of a red dog", "a cat on the beach"])
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = flow_data.Batch(latents, torch.ones(2, 1, 16, 16), *texts)
    pushes = []
    for scale in (1.0, 2.0, 4.0):
        noisy = Noisy.draw(batch, torch.Generator().manual_seed(1))
        noisy.guidance[:] = scale
        pushes.append(objective.push(noisy, batch))
    assert not pushes[0].any()
    conditions = model.encode(*texts)
    one, padding = torch.ones(2), noisy.padding
    with_prompt = model.velocity(noisy.tokens, noisy.levels, one, conditions, padding)
    empty = model.encode(*model.tokenise(["", ""]))
    without = model.velocity(noisy.tokens, noisy.levels, one, empty, padding)
    assert (with_prompt - without).std() > 0.01
    # Batches of two and of four round differently, in float32.
    torch.testing.assert_close(pushes[1], with_prompt - without, atol=1e-4, rtol=0)
    torch.testing.assert_close(pushes[2], 3 * pushes[1], atol=1e-4, rtol=0)


def test_half_of_a_batch_is_not_guided(model: FlowModel) -> None:
    """The rest learns the velocity of the pictures as it is, told a scale of one."""
    objective = GuidedFlow(model)
    texts = model.tokenise(["a photo of a red dog"] * 4)
    batch = flow_data.Batch(torch.randn(4, 4, 16, 16), torch.ones(4, 1, 16, 16), *texts)
    told: list[torch.Tensor] = []
    learned: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        velocity = FlowModel.velocity

        def keep(self: FlowModel, *arguments: Any) -> torch.Tensor:
            told.append(arguments[2])
            return velocity(self, *arguments)

        def error(self: Noisy, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            learned.append(target - self.velocity)
            return predicted.mean()

        patch.setattr(FlowModel, "velocity", keep)
        patch.setattr(Noisy, "error", error)
        objective(model, batch, torch.Generator().manual_seed(0))
    teacher, student = told
    assert (teacher == 1).all()
    assert (student[2:] == 1).all()
    assert (student[:2] > 1).all()
    assert not learned[0][2:].any()
    assert learned[0][:2].any()


def test_stages_to_the_end(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guided, exported, looked at, and read again by diffusers as a user would."""
    for name in ("FLOW_SAMPLING", "UNDISTILLED"):
        quick = getattr(flow, name) | {"num_inference_steps": 1}
        monkeypatch.setattr(flow, name, quick)
    for stage in ("train", "samples", "guide", "samples", "export"):
        _run(stage, work)
    assert (work / f"grid_{PLAN.schedule.steps:06d}.png").exists()
    assert (work / f"grid_{PLAN.schedule.steps + PLAN.guiding.steps:06d}.png").exists()
    pipeline = FluxPipeline.from_pretrained(work / "toybox_flow")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.dtype == torch.float32
    picture = pipeline("a dog", height=64, width=64, num_inference_steps=1).images[0]
    assert picture.size == (64, 64)
    stored = load_file(next((work / "toybox_flow" / "transformer").glob("*.safetensors")))
    assert {value.dtype for value in stored.values()} == {torch.float16}
    index = json.loads((work / "toybox_flow" / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    assert index["tokenizer_2"][1] == "PreTrainedTokenizerFast"


def test_training_begins_with_the_weights_of_a_pipeline(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[FlowModel] = []
    monkeypatch.setattr(flow, "train_flow", lambda model, *_: begun.append(model))
    tokenizer = sequence_tokenizer(work / "tokenizer")
    torch.manual_seed(5)
    started = FlowModel(new_model(work, PLAN).tokenizer, tokenizer, SHAPE)
    save_flow(assemble_flow(started, AutoencoderKL.from_pretrained(work / "vae")), tmp_path / "p")
    run_stage("train", work, replace(PLAN, start=tmp_path / "p"), CPU, threads=1)
    for name, module in started.modules.items():
        for key, value in begun[0].modules[name].state_dict().items():
            # As stored in half precision.
            assert torch.equal(value, module.state_dict()[key].half().float()), (name, key)


def test_other_designs_are_of_the_same_size_and_of_no_end() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:48j, -1:1:48j]
    disc = np.zeros((48, 48, 4), np.uint8)
    disc[rows**2 + columns**2 < 0.6] = (200, 120, 40, 255)
    disc[:, 30:, :3] = 0
    designs = [vary(disc, rng) for _ in range(20)]
    assert {design.shape for design in designs} == {disc.shape}
    assert len({design.tobytes() for design in designs}) == 20
    covered = [(design[..., 3] > 128).mean() / (disc[..., 3] > 128).mean() for design in designs]
    assert 0.55 < min(covered) < max(covered) < 1.3
    hues = {other_hues(disc, rng)[24, 24].tobytes() for _ in range(20)}
    assert len(hues) > 15
    assert not other_hues(disc, rng)[24, 36, :3].any()  # black stays black


def test_other_designs_have_names(work: Path) -> None:
    recipe = replace(PLAN.recipe, varied=1.0, accompanied=0.0)
    ((_, part),) = pool.draw_parts(work, FLOW_CONCEPTS, {1: 40}, 1, recipe)
    named = re.compile(r" (?:an? )?(?!an? )[a-z]{2,4} (?:dog|cat|bear)")
    shares = [bool(named.search(text)) for texts in part.captions for text in texts]
    assert 0.7 < sum(shares) / len(shares) < 0.9
    assert not any(colour for _, colour, _ in part.labels)


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
    pipeline = assemble_flow(model, AutoencoderKL(block_out_channels=(32,) * 4, latent_channels=4))
    pipeline.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}

    def keep(module: Any, arguments: Any, given: dict[str, Any], output: Any) -> None:
        seen.update(given, output=output[0])

    handle = model.transformer.register_forward_hook(keep, with_kwargs=True)
    prompts = ["a photo of a red dog", "a cat"]
    settings = FLOW_SAMPLING | {"num_inference_steps": 1}
    pipeline(prompts, **settings | {"max_sequence_length": length}, output_type="latent")
    handle.remove()
    conditions = model.encode(*model.tokenise(prompts))
    ours = model.velocity(
        seen["hidden_states"],
        seen["timestep"],
        seen["guidance"],
        conditions,
        padding=torch.tensor(length - MAX_LENGTH),
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
    few, many = (
        model.velocity(tokens, level, level, conditions, torch.tensor(count)) for count in (8, 488)
    )
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


@pytest.mark.parametrize("subject", FLOW_SUBJECTS, ids=lambda subject: subject.name)
def test_subjects_are_held_out(subject: Subject) -> None:
    """Things that the base knows, in art and places that neither it nor the photos show."""
    assert subject.class_name in {concept.name for concept in FLOW_CONCEPTS}
    assert subject.art_set in HELD_OUT_SETS
    assert not set(subject.scenes) & set(subject.contexts)
    scenes = {scene.name for scene in SCENES}
    assert {*subject.scenes, *subject.contexts} <= scenes
    assert sum(other.name == subject.name for other in FLOW_SUBJECTS) == 1
