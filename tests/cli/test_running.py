"""`svfit train` from flags and from a file, and `svfit generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import done, refused
from diffusers import DiffusionPipeline
from left_by_runs import shifts
from PIL import Image, ImageChops

from svfit_diffusion.training.arguments import SETTINGS_NAME, parse_args, write_settings

PROMPT = "a photo of sks dog"


@pytest.fixture
def words(saved_pipe: Path, tmp_path: Path) -> list[str]:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (24, 24), "red").save(photos / "0.png")
    return [
        f"--pretrained_model_name_or_path={saved_pipe}",
        f"--instance_data_dir={photos}",
        f"--instance_prompt={PROMPT}",
        "--max_train_steps=2",
        "--num_inference_steps=2",
        "--train_batch_size=1",
    ]


def test_a_run_can_be_repeated_from_the_settings_it_leaves(
    words: list[str], tmp_path: Path
) -> None:
    done("train", *words, f"--output_dir={tmp_path / 'one'}")  # with a seed that it draws
    settings = tmp_path / "one" / SETTINGS_NAME
    done("train", "--config", settings, f"--output_dir={tmp_path / 'two'}")
    assert torch.equal(shifts(tmp_path / "one"), shifts(tmp_path / "two"))
    done("train", "--config", settings, f"--output_dir={tmp_path / 'three'}", "--rank=2")
    assert shifts(tmp_path / "three").numel() < shifts(tmp_path / "one").numel()


def test_settings_come_back_as_they_were(words: list[str], tmp_path: Path) -> None:
    odd = [
        *("--validation_prompt", "a “dog”: #1", "- second"),
        "--no_train_text_encoder",
        "--no_center_crop",
        "--no_cache_latents",
        "--learning_rate=1e-3",
        "--rank=0.99",
        "--class_prompt=1",
        "--hub_token=secret",
    ]
    config = parse_args([*words, *odd])
    file = write_settings(config, tmp_path)
    assert "secret" not in file.read_text(encoding="utf-8")
    config.hub_token = None
    assert parse_args(["--config", str(file)]) == config


def test_the_sample_adapter_brings_its_settings() -> None:
    file = Path(__file__).parents[2] / "samples" / "adapters" / "blue_car" / SETTINGS_NAME
    config = parse_args(["--config", str(file), "--output_dir=outputs/car"])
    assert config.instance_data_dir == "samples/subjects/blue_car"
    assert config.num_class_images == 48


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rnk: 3", "did you mean rank?"),
        ("rank: {a: 1}", "expected a text, number or list"),
        ("just words", "name: value"),
        ("rank: [", "cannot read"),
        ("seed: much", "invalid int value"),
    ],
)
def test_a_wrong_settings_file_is_named(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert expected in refused("train", "--config", file)
    assert "cannot read" in refused("train", "--config", tmp_path / "none.yaml")


def drawn(base: Path, adapter: Path | None, strength: float, seed: int) -> Image.Image:
    """What a user's own pipeline draws."""
    pipe: Any = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    if adapter:
        pipe.load_svfit_weights(adapter, "a")
        pipe.set_svfit_adapters("a", strength)
    generator = torch.Generator().manual_seed(seed)
    picture: Image.Image = pipe(
        PROMPT, generator=generator, num_inference_steps=2, guidance_scale=2.5
    ).images[0]
    return picture


def test_pictures_are_those_of_the_pipeline(
    saved_pipe: Path, adapter_file: Path, tmp_path: Path
) -> None:
    words = ("generate", PROMPT, "--base", saved_pipe, "--num_inference_steps", 2, "--seed", 3)
    target = tmp_path / "new" / "dog.png"
    done(*words, "--adapter", f"{adapter_file}:0.5", "--output", target, "--num_images", 2)
    for number in range(2):
        with Image.open(tmp_path / "new" / f"dog-{number}.png") as picture:
            own = drawn(saved_pipe, adapter_file, 0.5, 3 + number)
            assert ImageChops.difference(picture.convert("RGB"), own).getbbox() is None
            settings = json.loads(picture.text["svfit"])
    assert settings["seed"] == 4
    assert settings["adapters"] == {str(adapter_file): 0.5}
    done(*words, "--output", target)
    with Image.open(target) as picture:
        plain = drawn(saved_pipe, None, 1, 3)
        assert ImageChops.difference(picture.convert("RGB"), plain).getbbox() is None
    assert "--overwrite" in refused(*words, "--output", target)


def test_a_grid_is_one_picture(saved_pipe: Path, adapter_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "grid.png"
    words = ("generate", "one", "two", "--base", saved_pipe, "--num_inference_steps", 1)
    done(*words, "--num_images", 3, "--grid", "--output", target, "--adapter", adapter_file)
    with Image.open(target) as picture:
        assert picture.width > picture.height > 300
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_nothing_is_drawn_with_a_wrong_adapter(saved_pipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    words = ("generate", PROMPT, "--base", saved_pipe, "--output", target, "--adapter")
    assert "CheckpointError" in refused(*words, tmp_path / "none.safetensors")
    assert "rex:0.7" in refused(*words, "rex:much")
    twice = refused(*words, "rex:0.5", "--adapter", "rex:0.7")
    assert "rex is given 2 times, at 0.5 and 0.7" in twice
    assert "--device tpu9" in refused(*words, "rex", "--device", "tpu9")
    assert not target.exists()
