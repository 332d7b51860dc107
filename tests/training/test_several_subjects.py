"""Several subjects in one pass: each is trained as alone, whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_pipelines
import torch
from PIL import Image
from tiny_training import shifts
from torch import Tensor

from svfit_diffusion import BatchError, ConfigError, DataError, StateError
from svfit_diffusion.families import family_of
from svfit_diffusion.training import SharedPass, Trainer, TrainingConfig, shared_pass
from svfit_diffusion.training.objective import Losses, losses_in_one_pass

NAMES = ("rex", "mia", "tom")


def make_photos(folder: Path, seed: int, count: int) -> Path:
    """Photos of noise and of unlike shapes."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for i, (width, height) in enumerate([(48, 48), (64, 32), (32, 64)][:count]):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


def make_configs(folder: Path, **changes: Any) -> dict[str, TrainingConfig]:
    """Settings of three subjects, unlike in photos, prompt, seed, batch, steps, rate, optimizer."""
    own: dict[str, dict[str, Any]] = {
        "rex": {"seed": 0},
        "mia": {"seed": 1, "learning_rate": 0.02, "train_batch_size": 1, "max_train_steps": 4},
        "tom": {"seed": 2, "optimizer": "adafactor", "max_train_steps": 2},
    }
    common: dict[str, Any] = {
        "pretrained_model_name_or_path": "tiny",
        "train_text_encoder": False,
        "train_batch_size": 2,
        "max_train_steps": 3,
        "lr_warmup_steps": 0,
        "num_inference_steps": 1,
        "num_validation_images": 1,
    }
    return {
        name: TrainingConfig(
            instance_data_dir=str(make_photos(folder / name, i, 3 - i % 2)),
            instance_prompt=f"a photo of {name}",
            output_dir=str(folder / "out" / name),
            **common | own[name] | changes,
        )
        for i, name in enumerate(NAMES)
    }


def alone(config: TrainingConfig, pipe: Any = None) -> Tensor:
    """The shifts of a run of one subject."""
    trainer = Trainer(config, pipe=pipe or tiny.make_tiny_pipeline(), show_progress=False)
    list(trainer.steps())
    return shifts(trainer)


def make_shared(configs: dict[str, TrainingConfig], pipe: Any = None) -> SharedPass:
    common = next(iter(configs.values()))
    shared = SharedPass(common, pipe or tiny.make_tiny_pipeline(), show_progress=False)
    for name, config in configs.items():
        shared.join(name, config)
    return shared


def assert_alike(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    """The same sums in another order: their last bits differ, 1e-7 of float32, which Adam magnifies
    where a gradient is small, since it divides by that. In the cases below 6e-5 was the most.
    """
    assert expected.abs().max() > 0
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    "changes",
    [
        {"train_text_encoder": True},
        {"train_text_encoder": True, "gradient_checkpointing": True, "aspect_buckets": True},
        {"train_text_encoder": True, "with_base_prior": True, "class_prompt": "a dog"},
        {"budget": 70, "gradient_accumulation_steps": 2, "use_ema": True},
        {"target": ["all"], "rank": "0.9", "cache_latents": False, "offload": True},
        {"train_identifier": "a", "gradient_checkpointing": True, "aspect_buckets": True},
        {"train_identifier": "photo", "with_base_prior": True, "class_prompt": "a dog"},
        {"with_prior_preservation": True, "class_prompt": "a dog", "num_class_images": 2},
    ],
    ids=[
        "text encoder",
        "checkpointing, buckets",
        "base prior",
        "budget",
        "all layers",
        "words",
        "words, base prior",
        "prior",
    ],
)
def test_each_is_trained_as_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    configs = make_configs(tmp_path, **changes)
    expected = {name: alone(config) for name, config in configs.items()}
    shared = make_shared(configs)
    records = list(shared.steps())
    for name, config in configs.items():
        own = [record.step for owner, record in records if owner == name]
        assert own == list(range(1, (config.max_train_steps or 0) + 1))
        assert_alike(shifts(shared.trainers[name]), expected[name])
        if "budget" in changes:
            assert 0 < int(shifts(shared.trainers[name]).count_nonzero()) <= 70
    # Unlike each other, or there would be little to tell apart.
    assert (expected["rex"] - expected["mia"]).norm() > 0.1 * expected["mia"].norm()


@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen_image", "sana"])
def test_other_families_too(name: str, tmp_path: Path) -> None:
    pipe = tiny_pipelines.build(name)
    multiple = family_of(pipe).size_multiple
    changes: dict[str, Any] = {
        "resolution": -(-32 // multiple) * multiple,
        "train_text_encoder": bool(family_of(pipe).trained_text_encoders),
        # So large that steps are as gradients are: some of these are zero but for rounding.
        "adam_epsilon": 1.0,
        "optimizer": "AdamW",
        "max_train_steps": 2,
    }
    configs = make_configs(tmp_path, **changes)
    del configs["tom"]
    shared = make_shared(configs, pipe)
    list(shared.steps())
    for subject, config in configs.items():
        expected = alone(config, tiny_pipelines.build(name))
        assert_alike(shifts(shared.trainers[subject]), expected, 1e-5)


def test_where_layers_fold_rows_one_at_a_time_is_trained(tmp_path: Path) -> None:
    configs = make_configs(tmp_path, resolution=32, max_train_steps=1)
    shared = make_shared(configs, tiny_pipelines.build("krea2"))
    with pytest.raises(BatchError, match=r"subjects_at_once=1"):
        shared.step()
    for name in ("rex", "mia"):
        shared.leave(name)
    assert shared.step()["tom"].step == 1


def test_one_that_diverges_is_dropped_and_the_others_know_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = make_configs(tmp_path, train_text_encoder=True)
    expected = {name: alone(configs[name]) for name in ("rex", "tom")}
    shared = make_shared(configs)
    shared.step()
    before = shifts(shared.trainers["mia"])

    def spoiled(*asked: Any) -> list[Losses]:
        losses = losses_in_one_pass(*asked)
        if len(losses) == len(NAMES):
            losses[1] = (losses[1][0] * torch.nan, losses[1][1])
        return losses

    monkeypatch.setattr(shared_pass, "losses_in_one_pass", spoiled)
    assert set(shared.step()) == {"rex", "tom"}
    assert list(shared.failures) == ["mia"]
    assert "step 2" in str(shared.failures["mia"])
    list(shared.steps())
    assert torch.equal(shifts(shared.trainers["mia"]), before)
    for name, own in expected.items():
        assert_alike(shifts(shared.trainers[name]), own)


def test_drawing_saving_coming_and_going_disturb_nobody(tmp_path: Path) -> None:
    """A subject may come when others are under way, take the place of one, and be drawn alone."""
    configs = make_configs(tmp_path, train_text_encoder=True, optimizer="AdamW")
    pipe = tiny.make_tiny_pipeline()
    before = tiny.run_pipeline(pipe)
    shared = make_shared({name: configs[name] for name in ("rex", "mia")}, pipe)
    shared.step()
    shared.join("tom", configs["tom"])
    shared.step()
    tom, mia = shared.trainers["tom"], shared.trainers["mia"]
    fresh = tiny.make_tiny_pipeline()
    fresh.load_svfit_weights(mia.save(tmp_path), show_progress=False)
    with mia.generating() as drawing:
        assert torch.equal(tiny.run_pipeline(drawing), tiny.run_pipeline(fresh))
    images = tom.generate(["a dog"], 1, base=True)
    assert images[0][0].size == (16, 16)
    with pytest.raises(StateError, match="generating"):
        tiny.run_pipeline(pipe)
    list(shared.steps())
    found = {name: shifts(trainer) for name, trainer in shared.trainers.items()}
    for name in NAMES:
        shared.leave(name)
    with pytest.raises(StateError, match="no subject"):
        shared.step()
    assert torch.equal(tiny.run_pipeline(pipe), before)
    assert not pipe.get_list_svfit_adapters()
    for name, config in configs.items():
        assert_alike(found[name], alone(config))


def test_what_cannot_join_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    configs = make_configs(tmp_path)
    shared = make_shared({"rex": configs["rex"]})
    (tmp_path / "empty").mkdir()
    settings = vars(configs["mia"])
    for changes, error, message in (
        ({"instance_data_dir": str(tmp_path / "empty")}, DataError, "holds no images"),
        ({"rank": "2"}, ConfigError, "'mia' has rank '2'.* the default: give it once"),
        ({"budget": 10**6}, ConfigError, "budget 1000000 exceeds"),
    ):
        with pytest.raises(error, match=message):
            shared.join("mia", TrainingConfig(**settings | changes))
    list(shared.steps())
    assert_alike(shifts(shared.trainers["rex"]), alone(configs["rex"]))
    assert list(shared.trainers) == ["rex"]
