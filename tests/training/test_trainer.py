"""The training loop: learns, is exact about what it repeats, and loses nothing."""

from __future__ import annotations

import errno
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate.optimizer import AcceleratedOptimizer
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from svfit_diffusion.errors import (
    AdapterNameError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    TargetError,
)
from svfit_diffusion.files.adapter import read_adapter
from svfit_diffusion.training.budget import largest, live_entries
from svfit_diffusion.training.class_images import generate_class_images
from svfit_diffusion.training.config import TrainingConfig
from svfit_diffusion.training.folders import image_files
from svfit_diffusion.training.objective import Objective
from svfit_diffusion.training.state import find_checkpoint, resume, save_checkpoint
from svfit_diffusion.training.trainer import Trainer

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(["red", "orange", "brown"]):
        Image.new("RGB", (20 + 4 * i, 24), colour).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def make_config(saved_pipe: Path, photos: Path, tmp_path: Path) -> MakeConfig:
    def make(**changes: Any) -> TrainingConfig:
        settings: dict[str, Any] = {
            "pretrained_model_name_or_path": str(saved_pipe),
            "instance_data_dir": str(photos),
            "instance_prompt": "a photo of sks dog",
            "output_dir": str(tmp_path / "out"),
            "train_text_encoder": False,
            "train_batch_size": 2,
            "max_train_steps": 4,
            "lr_warmup_steps": 0,
            "num_class_images": 3,
            "num_inference_steps": 2,
            "seed": 0,
        }
        return TrainingConfig(**{**settings, **changes})

    return make


def trained(config: TrainingConfig, steps: int | None = None) -> Trainer:
    trainer = Trainer(config, show_progress=False)
    for _ in itertools.islice(trainer.steps(), steps):
        pass
    return trainer


def deltas(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach() for parameter in trainer.sigma_parameters()])


def test_learns_and_changes_nothing_but_sigma(make_config: MakeConfig) -> None:
    """Over-fitting one fixed example lowers its loss; every weight stays what it was."""
    trainer = Trainer(make_config(max_train_steps=30, learning_rate=0.05), show_progress=False)
    before = {k: v.clone() for k, v in trainer.pipe.unet.state_dict().items()}
    trainer.stepper.positions = lambda accumulated: [0, 0]  # type: ignore[method-assign]
    records = list(trainer.steps())
    assert [record.step for record in records] == list(range(1, 31))
    # A tiny random UNet cannot do much with its few values, but it must do something.
    assert records[-1].loss < 0.97 * records[0].loss
    assert records[0].sigma_drift < records[-1].sigma_drift
    after = trainer.pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_stopping_leaves_a_usable_adapter(
    make_config: MakeConfig, saved_pipe: Path, tmp_path: Path
) -> None:
    trainer = trained(make_config(learning_rate=0.1), steps=2)
    assert trainer.step == 2
    path = trainer.save(tmp_path)
    fresh = StableDiffusionPipeline.from_pretrained(saved_pipe)
    fresh.load_svfit_weights(path)
    with trainer.generating() as pipe:
        assert torch.equal(tiny.run_pipeline(pipe), tiny.run_pipeline(fresh))
    assert any(parameter.requires_grad for parameter in trainer.sigma_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"train_text_encoder": True, "learning_rate": 0.05, "text_encoder_lr": 0.01},
        {"with_prior_preservation": True, "class_prompt": "a dog", "random_flip": True},
        {"cache_latents": False, "center_crop": False, "pre_compute_text_embeddings": False},
        {"optimizer": "prodigy", "learning_rate": 1.0},
        {"optimizer": "adafactor"},
        {"snr_gamma": 5.0, "noise_offset": 0.1, "gradient_accumulation_steps": 2},
        {"budget": 70, "train_text_encoder": True, "gradient_accumulation_steps": 2},
        {"budget": 70, "rank": "0.9", "optimizer": "prodigy", "learning_rate": 1.0},
    ],
    ids=[
        "text encoder",
        "prior",
        "uncached",
        "prodigy",
        "adafactor",
        "loss options",
        "budget",
        "budget+",
    ],
)
def test_resumed_equals_uninterrupted(
    make_config: MakeConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = trained(make_config(**changes))
    first = trained(make_config(**changes), steps=2)
    folder = save_checkpoint(first, tmp_path / "checkpoints")
    second = Trainer(make_config(**changes), show_progress=False)
    resume(second, folder)
    records = list(second.steps())
    assert [record.step for record in records] == [3, 4]
    assert deltas(whole).abs().max() > 0
    assert torch.equal(deltas(second), deltas(whole))


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        # The same sums in another order: Adam divides by gradients, which magnifies their last
        # bits where they are small, so compare with the size of the steps taken.
        ({"train_batch_size": 1, "gradient_accumulation_steps": 2}, 1e-3),
        ({"gradient_checkpointing": True, "train_text_encoder": True}, 1e-5),
        ({"cache_latents": False, "pre_compute_text_embeddings": False}, 1e-3),
    ],
    ids=["accumulation", "checkpointing", "caches"],
)
def test_equivalent_settings_train_alike(
    make_config: MakeConfig, changes: dict[str, Any], tolerance: float
) -> None:
    plain = {key: changes[key] for key in changes if key == "train_text_encoder"}
    expected = deltas(trained(make_config(**plain)))
    found = deltas(trained(make_config(**changes)))
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_bf16_base_keeps_float32_shifts(make_config: MakeConfig) -> None:
    full = deltas(trained(make_config()))
    trainer = trained(make_config(mixed_precision="bf16"))
    assert trainer.pipe.unet.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in trainer.sigma_parameters())
    half = deltas(trainer)
    # Adam moves each value by about the learning rate in the direction of a noisy sign.
    assert torch.nn.functional.cosine_similarity(half, full, dim=0) > 0.8


def test_prior_preservation_reuses_class_images(make_config: MakeConfig) -> None:
    config = make_config(with_prior_preservation=True, class_prompt="a photo of a dog")
    trainer = trained(config, steps=1)
    folder = config.class_folder
    made = {path: path.read_bytes() for path in image_files(folder)}
    assert len(made) == 3
    # Remove one: only that one is made again, the same, in other batches.
    lost = sorted(made)[1]
    lost.unlink()
    record = next(trained(make_config(**vars(config) | {"sample_batch_size": 1}), 0).steps())
    assert {path: path.read_bytes() for path in image_files(folder)} == made
    assert record.prior_loss is not None
    assert record.loss == pytest.approx(record.instance_loss + record.prior_loss)
    assert len(trainer.photo_sets[1].photos) == 3


def test_prior_loss_weight_scales_the_gradient(make_config: MakeConfig) -> None:
    """At weight 0 class images change nothing."""
    prior = {"with_prior_preservation": True, "class_prompt": "a dog"}
    without = deltas(trained(make_config()))
    zero = deltas(trained(make_config(**prior, prior_loss_weight=0.0)))
    one = deltas(trained(make_config(**prior)))
    assert (zero - without).norm() <= 1e-3 * without.norm()
    assert (one - without).norm() > 1e-2 * without.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": "0"}, "at least 1"),
        ({"rank": "1.5"}, r"\(0, 1\]"),
        ({"rank": "many"}, "integer"),
        ({"with_prior_preservation": True}, "class_prompt"),
        ({"center_crop": False}, "no_cache_latents"),
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"optimizer": "prodigy", "use_8bit_adam": True}, "AdamW"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
    ],
)
def test_bad_settings(make_config: MakeConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"instance_prompt": ""}, DataError, "instance_prompt"),
        ({"instance_data_dir": "/nowhere"}, DataError, "nowhere"),
        ({"pretrained_model_name_or_path": "/no/model"}, ConfigError, "/no/model"),
        ({"rank": "9999"}, ConfigError, "9999"),
        ({"rank": "2", "budget": 65}, ConfigError, "65 exceeds the 64 trainable"),
        ({"target": ["no_such_layer"]}, TargetError, "no_such_layer"),
        ({"resolution": 17}, ConfigError, "multiple of 4"),
        ({"use_8bit_adam": True}, ConfigError, "bitsandbytes"),
    ],
)
def test_unusable_input(
    make_config: MakeConfig,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(error, match=message):
        Trainer(make_config(**changes), show_progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is fine on a GPU")
def test_fp16_needs_a_gpu(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        Trainer(make_config(mixed_precision="fp16"), show_progress=False)


def test_unsupported_base(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="9 channels"):
        Trainer(make_config(), pipe=tiny.make_tiny_pipeline(in_channels=9), show_progress=False)


def test_a_failed_start_leaves_the_pipeline_as_it_was(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    pipe = tiny.make_tiny_pipeline()
    before = tiny.run_pipeline(pipe)
    config = make_config(use_8bit_adam=True, train_text_encoder=True)
    with pytest.raises(ConfigError, match="bitsandbytes"):
        Trainer(config, pipe=pipe, show_progress=False)
    assert pipe.get_list_svfit_adapters() == {}
    assert torch.equal(tiny.run_pipeline(pipe), before)
    trainer = Trainer(make_config(), pipe=pipe, show_progress=False)
    next(trainer.steps())
    with pytest.raises(AdapterNameError, match="already"):
        Trainer(make_config(), pipe=pipe, show_progress=False)
    assert deltas(trainer).any()


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (1, {}),
        (40, {"rank": "3"}),
        (90, {"rank": "0.9", "train_text_encoder": True}),
        (300, {"target": ["all"], "gradient_accumulation_steps": 2}),
    ],
)
def test_a_budget_is_kept(
    make_config: MakeConfig, tmp_path: Path, budget: int, changes: dict[str, Any]
) -> None:
    """Over all models together, step by step; the file holds that and no more."""
    config = make_config(budget=budget, max_train_steps=10, **changes)
    trainer = Trainer(config, show_progress=False)
    everything = deltas(trainer).numel()
    assert read_adapter(trainer.save(tmp_path)).parameter_count == 0
    for record in trainer.steps():
        assert trainer.pruner is not None
        wanted = live_entries(record.step, 10, everything, budget)
        assert trainer.pruner.live.sum() == wanted
        assert torch.equal(deltas(trainer) != 0, trainer.pruner.live)
    assert wanted == budget < everything
    read = read_adapter(trainer.save(tmp_path))
    assert read.parameter_count == budget
    assert read.metadata.training["budget"] == budget
    saved = torch.cat([delta for paths in read.deltas.values() for delta in paths.values()])
    learned = deltas(trainer)  # in the models' order, not in that of names
    assert torch.equal(saved[saved != 0].sort().values, learned[learned != 0].sort().values)


def test_a_budget_spans_the_models(make_config: MakeConfig) -> None:
    """No model has a share of its own: what matters most is kept, wherever it is."""
    settings = {"train_text_encoder": True, "text_encoder_lr": 0.01, "max_train_steps": 1}
    plain = Trainer(make_config(**settings), show_progress=False)
    parameters = plain.sigma_parameters()
    gradients = dict.fromkeys(range(len(parameters)), torch.empty(0))
    for i, parameter in enumerate(parameters):
        parameter.register_hook(functools.partial(gradients.__setitem__, i))
    next(plain.steps())
    importance = (deltas(plain) * torch.cat(list(gradients.values()))).abs()
    trainer = trained(make_config(**settings, budget=100))
    assert torch.equal(deltas(trainer) != 0, largest(importance, 100))
    for paths in trainer.adapter().deltas.values():
        assert any(delta.any() for delta in paths.values())


def test_a_sparse_adapter_draws_what_was_trained(
    make_config: MakeConfig, saved_pipe: Path, tmp_path: Path
) -> None:
    trainer = trained(make_config(budget=60, train_text_encoder=True, learning_rate=0.5))
    path = trainer.save(tmp_path)
    assert any(name.endswith(".index") for name in load_file(path))
    fresh = StableDiffusionPipeline.from_pretrained(saved_pipe)
    base = tiny.run_pipeline(fresh)
    fresh.load_svfit_weights(path)
    with trainer.generating() as pipe:
        learned = tiny.run_pipeline(pipe)
    assert (learned - base).abs().max() > 1e-2
    torch.testing.assert_close(tiny.run_pipeline(fresh), learned, rtol=0, atol=1e-5)


def test_a_skipped_step_weighs_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 skips steps whose gradients overflow; they say nothing of importance."""
    trainer = trained(make_config(budget=60), 1)
    assert trainer.pruner is not None
    before = trainer.pruner.importance.clone()
    assert before.any()
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", True)
    next(trainer.steps())
    assert torch.equal(trainer.pruner.importance, before)


def test_resume_refuses_other_runs(make_config: MakeConfig, tmp_path: Path) -> None:
    folder = save_checkpoint(trained(make_config(), 1), tmp_path)
    other = Trainer(make_config(learning_rate=0.5), show_progress=False)
    with pytest.raises(CheckpointError, match=r"learning_rate.*0\.5 now"):
        resume(other, folder)
    assert other.step == 0
    elsewhere = Trainer(make_config(), pipe=tiny.make_tiny_pipeline(seed=5), show_progress=False)
    with pytest.raises(CheckpointError, match="another base model"):
        resume(elsewhere, folder)
    same = Trainer(make_config(), show_progress=False)
    state = folder / "training_state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        resume(same, folder)
    assert same.step == 0
    assert not deltas(same).any()
    with pytest.raises(CheckpointError, match="no checkpoint 'checkpoint-9'"):
        find_checkpoint("checkpoint-9", tmp_path)


def test_divergence_stops_before_it_spoils_the_adapter(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(make_config(), 2)
    before = deltas(trainer)
    losses = Objective.losses

    def spoiled(objective: Objective, positions: list[int]) -> Any:
        instance, prior = losses(objective, positions)
        return instance * torch.nan, prior

    monkeypatch.setattr(Objective, "losses", spoiled)
    with pytest.raises(DivergedError, match="step 3"):
        next(trainer.steps())
    assert torch.equal(deltas(trainer), before)
    assert trainer.step == 2


def test_checkpoints_are_limited_and_latest_is_numeric(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    trainer = trained(make_config(), 0)
    assert find_checkpoint("latest", tmp_path) is None
    for step in (2, 9, 10):
        trainer.stepper.step = step
        save_checkpoint(trainer, tmp_path, limit=2)
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == ["checkpoint-10", "checkpoint-9"]
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-10"


def test_full_disk_keeps_the_previous_checkpoint(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(make_config(), 1)
    folder = save_checkpoint(trainer, tmp_path)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("svfit_diffusion.files.atomic.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(trainer, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    assert not list(tmp_path.glob(".checkpoint*"))


def test_processes_that_start_at_different_times_share_the_class_images(
    make_config: MakeConfig,
) -> None:
    """The second looks at the folder when the first has made its images."""
    config = make_config(with_prior_preservation=True, class_prompt="a dog", num_class_images=5)
    pipe = tiny.make_tiny_pipeline()
    for process in (1, 0):
        generate_class_images(
            pipe,
            config.class_folder,
            "a dog",
            5,
            {"num_inference_steps": 2, "height": 16, "width": 16},
            batch_size=2,
            seed=0,
            process_index=process,
            num_processes=2,
            show_progress=False,
        )
    assert len(image_files(config.class_folder)) == 5
