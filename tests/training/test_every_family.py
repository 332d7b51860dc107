"""Every family trains: shifts alone change, runs resume, adapters load, memory can be saved."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from PIL import Image
from torch import Tensor, nn

from svfit_diffusion import BatchError, ConfigError, StateError
from svfit_diffusion.families import family_of
from svfit_diffusion.training import Trainer, TrainingConfig
from svfit_diffusion.training.state import resume, save_checkpoint

EVERY_FAMILY = pytest.mark.parametrize("name", list(tiny_pipelines.BUILDERS))
WITH_TEXT = [
    n for n in tiny_pipelines.BUILDERS if family_of(tiny_pipelines.build(n)).trained_text_encoders
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos of unlike shapes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for i, size in enumerate([(48, 48), (64, 32), (32, 64)]):
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


def settings(name: str, photos: Path, output: Path, **changes: Any) -> TrainingConfig:
    """Two steps on the smallest images that the family takes."""
    multiple = family_of(tiny_pipelines.build(name)).size_multiple
    wanted: dict[str, Any] = {
        "pretrained_model_name_or_path": name,
        "instance_data_dir": str(photos),
        "instance_prompt": "a photo of sks dog",
        "output_dir": str(output),
        "resolution": -(-32 // multiple) * multiple,
        "max_train_steps": 2,
        "train_batch_size": 2,
        "lr_warmup_steps": 0,
        "lr_scheduler": "constant",
        "num_inference_steps": 2,
        "num_class_images": 2,
        "seed": 3,
        "train_text_encoder": False,
    }
    return TrainingConfig(**wanted | changes)


def make_trainer(config: TrainingConfig) -> Trainer:
    name = config.pretrained_model_name_or_path
    return Trainer(config, pipe=tiny_pipelines.build(name), show_progress=False)


def deltas(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.sigma_parameters()]


def states(pipe: Any) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.clone() for key, value in part.state_dict().items()}
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
    }


def picture(pipe: Any, config: TrainingConfig) -> Tensor:
    family = family_of(pipe)
    side = config.resolution or family.native_size
    arguments = family.generation_arguments((side, side), 2)
    generator = torch.Generator().manual_seed(1)
    output = pipe(prompt="a photo of sks dog", generator=generator, output_type="pt", **arguments)
    return output.images.float()


@EVERY_FAMILY
def test_two_steps_change_the_shifts_and_nothing_else(
    name: str, photos: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(settings(name, photos, tmp_path))
    before = states(trainer.pipe)
    records = list(trainer.steps())
    assert [record.step for record in records] == [1, 2]
    assert all(torch.isfinite(torch.tensor(record.loss)) for record in records)
    after = states(trainer.pipe)
    for component, state in before.items():
        for key, value in state.items():
            assert torch.equal(after[component][key], value), f"{component}.{key}"
    moved = [bool(delta.any()) for delta in deltas(trainer)]
    assert sum(moved) > 0.8 * len(moved)  # a last block's text side can be without a way out
    trainer.subject.withdraw()
    assert not trainer.pipe.get_list_svfit_adapters()


@EVERY_FAMILY
def test_bfloat16_trains_float32_shifts(name: str, photos: Path, tmp_path: Path) -> None:
    trainer = make_trainer(settings(name, photos, tmp_path, mixed_precision="bf16"))
    assert trainer.family.model.dtype == torch.bfloat16
    records = list(trainer.steps())
    assert all(torch.isfinite(torch.tensor(record.loss)) for record in records)
    assert all(delta.dtype == torch.float32 for delta in deltas(trainer))
    assert any(bool(delta.any()) for delta in deltas(trainer))


@EVERY_FAMILY
def test_a_resumed_run_is_the_uninterrupted_one(name: str, photos: Path, tmp_path: Path) -> None:
    whole = make_trainer(settings(name, photos, tmp_path))
    list(whole.steps())
    first = make_trainer(settings(name, photos, tmp_path))
    next(iter(first.steps()))
    folder = save_checkpoint(first, tmp_path)
    second = make_trainer(settings(name, photos, tmp_path))
    resume(second, folder)
    list(second.steps())
    for a, b in zip(deltas(whole), deltas(second), strict=True):
        assert torch.equal(a, b)


@EVERY_FAMILY
def test_the_saved_adapter_gives_the_trained_models_picture(
    name: str, photos: Path, tmp_path: Path
) -> None:
    config = settings(name, photos, tmp_path, learning_rate=0.5)
    trainer = make_trainer(config)
    list(trainer.steps())
    base = picture(tiny_pipelines.build(name), config)
    with trainer.generating() as pipe:
        trained = picture(pipe, config)
    other = tiny_pipelines.build(name)
    other.load_svfit_weights(trainer.save(tmp_path), show_progress=False)
    assert torch.equal(picture(other, config), trained)
    assert not torch.equal(trained, base)
    other.unload_svfit_weights()
    assert torch.equal(picture(other, config), base)


@EVERY_FAMILY
def test_gradient_checkpointing_changes_no_gradient(
    name: str, photos: Path, tmp_path: Path
) -> None:
    if not family_of(tiny_pipelines.build(name)).checkpointing:
        with pytest.raises(ConfigError, match="gradient_checkpointing"):
            make_trainer(settings(name, photos, tmp_path, gradient_checkpointing=True))
        return
    found = []
    for checkpointing in (False, True):
        config = settings(name, photos, tmp_path, gradient_checkpointing=checkpointing)
        trainer = make_trainer(config)
        if not checkpointing:
            trainer.family.model.train()  # as checkpointing needs it: dropout is zero in all
        instance, _ = trainer.objective.losses([0, 1])
        instance.backward()
        found.append([p.grad for p in trainer.sigma_parameters()])
    for plain, recomputed in zip(*found, strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            # The same operations twice, in float32; summed in another order at most.
            torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-7)


@EVERY_FAMILY
def test_prior_preservation_and_the_bases_own_prior(
    name: str, photos: Path, tmp_path: Path
) -> None:
    config = settings(
        name,
        photos,
        tmp_path,
        with_prior_preservation=True,
        with_base_prior=True,
        class_prompt="a photo of a dog",
        learning_rate=0.5,
    )
    trainer = make_trainer(config)
    records = list(trainer.steps())
    assert len(trainer.photo_sets[1].photos) == 2
    # The base's prior is zero while δ is; the class images' loss is not.
    assert all(record.prior_loss and record.prior_loss > 0 for record in records)
    alone = make_trainer(dataclasses.replace(config, with_prior_preservation=False))
    priors = [record.prior_loss for record in alone.steps()]
    assert priors[0] == 0.0
    assert priors[1] is not None and priors[1] > 0


@EVERY_FAMILY
def test_photos_keep_their_shapes_in_buckets(name: str, photos: Path, tmp_path: Path) -> None:
    side = settings(name, photos, tmp_path).resolution or 0
    # Some tiny models know few positions.
    few = {"sd3": 1, "sd3_without_t5": 1, "aura_flow": 1, "hidream": 0.5}
    side = int(side * few.get(name, 2))
    config = settings(
        name, photos, tmp_path, aspect_buckets=True, resolution=side, train_batch_size=3
    )
    trainer = make_trainer(config)
    sizes = {trainer.photo_sets[0].latent(trainer.photo_sets[0].draw(3, i)).size for i in range(3)}
    shapes = {size.target[1] / size.target[0] for size in sizes}
    assert len(shapes) > 1 and max(shapes) > 1
    multiple = trainer.family.size_multiple
    assert all(edge % multiple == 0 for size in sizes for edge in size.target)
    assert all(torch.isfinite(torch.tensor(record.loss)) for record in trainer.steps())


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_encoders_are_trained_along(name: str, photos: Path, tmp_path: Path) -> None:
    trainer = make_trainer(settings(name, photos, tmp_path, train_text_encoder=True))
    list(trainer.steps())
    for component in trainer.family.trained_text_encoders:
        assert any(bool(p.detach().any()) for p in trainer.subject.parameters(component)), component


@pytest.mark.parametrize("name", [n for n in tiny_pipelines.BUILDERS if n not in WITH_TEXT])
def test_text_encoders_that_cannot_be_trained_are_refused(
    name: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot be trained"):
        make_trainer(settings(name, photos, tmp_path, train_text_encoder=True))


@EVERY_FAMILY
def test_a_resolution_that_does_not_fit_is_refused(name: str, photos: Path, tmp_path: Path) -> None:
    config = settings(name, photos, tmp_path)
    with pytest.raises(ConfigError, match="use a multiple of"):
        make_trainer(dataclasses.replace(config, resolution=(config.resolution or 0) + 1))


@EVERY_FAMILY
def test_adapters_per_prompt_are_right_or_refused(name: str, photos: Path, tmp_path: Path) -> None:
    config = settings(name, photos, tmp_path, learning_rate=0.5)
    trainer = make_trainer(config)
    list(trainer.steps())
    path = trainer.save(tmp_path)
    pipe = tiny_pipelines.build(name)
    pipe.load_svfit_weights(path, "a", show_progress=False)
    family, side = family_of(pipe), config.resolution or 0
    arguments = family.generation_arguments((side, side), 2, 1.0) | {"output_type": "pt"}
    prompts = ["a photo of sks dog", "a photo of sks cat"]

    def draw(prompts: list[str], seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(prompt=prompts, generator=generators, **copy.copy(arguments)).images.float()

    try:
        with pipe.svfit_adapters_per_prompt(["a", None]):
            mixed = draw(prompts, [1, 2])
    except (BatchError, StateError) as error:
        assert "prompt" in str(error)
        return
    with_adapter = draw(prompts, [1, 2])
    if not torch.equal(draw(prompts, [1, 2]), with_adapter):
        pytest.skip("the family's batches differ from one call to the next")
    pipe.disable_svfit()
    without = draw(prompts, [1, 2])
    effect = (with_adapter - without).abs().amax()
    assert effect > 0
    # Factored and merged products round apart by some float32 roundings, grown over two steps.
    tolerance = 0.02 * float(effect) + 1e-5
    assert (mixed[0] - with_adapter[0]).abs().max() <= tolerance
    assert (mixed[1] - without[1]).abs().max() <= tolerance
