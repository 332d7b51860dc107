"""Base models of several families, opened, drawn with, compared and trained by the app's services.

FLUX has no negative prompt and packs its latents, SDXL has two text encoders that are trained, SD3
takes the names of both worlds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_pipelines
from app_server import ADAPTERS, write_random_adapter
from PIL import Image
from torch import Tensor

from app.base_model import BaseModel
from app.comparison import compare, parse_axis
from app.drawing import Drawing
from app.errors import SettingError
from app.inspection import layer_shifts
from app.photos import CroppedPhoto
from app.picture import OWN_SCHEDULER, SCHEDULERS, PictureSettings
from app.png_metadata import read_settings, save_picture
from app.previews import previews
from app.services import Services, build_services
from app.settings import SAMPLES, AppSettings
from app.training_status import Stage
from app.visits import Picture, Progress
from svfit_diffusion.families import family_of
from svfit_diffusion.training import TrainingConfig
from svfit_diffusion.training.base import BaseSource, load_base

FAMILIES = ("flux", "sdxl", "sd3")
WITHOUT_PREVIEWS = ("flux2", "flux2_klein", "ideogram4")
"""Tiny pipelines that pack their latents in an order of their own."""
PHOTOS = [
    CroppedPhoto(f"{colour}.png", Image.new("RGB", (40, 40), colour))
    for colour in ("red", "orange", "brown")
]


def open_services(folder: Path, name: str) -> Services:
    """The app's services on a tiny pipeline, with random adapters."""
    make = functools.partial(tiny_pipelines.build, name)
    make().save_pretrained(folder / "base")
    for seed, adapter in enumerate(ADAPTERS):
        write_random_adapter(folder / "adapters" / f"{adapter}.safetensors", seed, make)
    return build_services(
        AppSettings(
            base=str(folder / "base"),
            adapters=folder / "adapters",
            outputs=folder / "outputs",
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Services]:
    """The services on a family, opened once."""
    return functools.cache(lambda name: open_services(tmp_path_factory.mktemp(name), name))


@pytest.fixture(params=FAMILIES)
def services(request: pytest.FixtureRequest, opened: Callable[[str], Services]) -> Services:
    return opened(request.param)


def plain(services: Services) -> PictureSettings:
    """A picture of the base, as the family draws unless told otherwise."""
    usual = services.base.drawing.sampling
    return PictureSettings(
        "a photo of sks dog", steps=3, guidance_scale=usual.guidance_scale, width=32, height=48
    )


def draw(services: Services, *wanted: PictureSettings) -> list[Image.Image]:
    """The pictures, in the order asked for."""
    pictures = [e for e in services.generator.run(wanted) if isinstance(e, Picture)]
    return [p.image for p in sorted(pictures, key=lambda picture: picture.index)]


def assert_alike(pictures: list[Image.Image], expected: list[Image.Image]) -> None:
    """Compare pictures, of which company in a batch may change the last bits before rounding."""
    for picture, other in zip(pictures, expected, strict=True):
        levels = np.asarray(picture).astype(int) - np.asarray(other)
        assert np.abs(levels).max() <= 2


def mixed(settings: PictureSettings) -> list[PictureSettings]:
    """One for each of several mixes of adapters."""
    mixes: list[dict[str, float]] = [{}, {"rex": 1.0}, {"rex": 0.5, "tom": -1.0}]
    return [dataclasses.replace(settings, adapters=mix) for mix in mixes]


# --- what the fields start with ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "negative"),
    [("flux", 28, 3.5, False), ("flux_schnell", 4, 0.0, False), ("sdxl", 30, 5.0, True)],
)
def test_defaults_are_the_familys_own(
    name: str, steps: int, guidance: float, negative: bool
) -> None:
    pipe = tiny_pipelines.build(name)
    drawing = Drawing(pipe)
    usual = drawing.sampling
    assert (usual.steps, usual.guidance_scale, usual.negative_prompt) == (steps, guidance, negative)
    assert drawing.native_size == drawing.family.native_size  # type: ignore[union-attr]
    assert not drawing.native_size % drawing.size_multiple


def test_the_sample_base_keeps_its_own() -> None:
    drawing = BaseModel(str(SAMPLES / "toybox"), "cpu").drawing
    assert (drawing.sampling.steps, drawing.sampling.guidance_scale) == (20, 2.5)
    assert (drawing.native_size, drawing.size_multiple) == (64, 8)
    assert drawing.sampling.negative_prompt and drawing.schedulers == tuple(SCHEDULERS)


def test_what_others_alone_can_draw_with_is_refused(opened: Callable[[str], Services]) -> None:
    drawing = Drawing(tiny_pipelines.build("sana"))
    with pytest.raises(SettingError, match="width must be a multiple of 32"):
        drawing.check(PictureSettings("a dog", width=72))
    flux = opened("flux")
    euler = dataclasses.replace(plain(flux), scheduler="Euler", negative_prompt="rain")
    with pytest.raises(SettingError, match="cannot draw with Euler"):
        draw(flux, euler)
    restored = flux.base.drawing.adapted(euler)
    assert (restored.scheduler, restored.negative_prompt) == (OWN_SCHEDULER, "")
    assert opened("sdxl").base.drawing.adapted(euler) == euler


# --- views ------------------------------------------------------------------------------------


def flags(pipe: Any) -> dict[str, Any]:
    """What a pipeline was made with beside its components."""
    hidden = (*pipe.components, "_class_name", "_diffusers_version", "_name_or_path")
    return {name: value for name, value in pipe.config.items() if name not in hidden}


@pytest.mark.parametrize("name", [n for n in tiny_pipelines.BUILDERS if n != "sd3_without_t5"])
def test_a_view_is_of_the_bases_class_and_draws_as_it_does_step_by_step(
    name: str, tmp_path: Path
) -> None:
    pipe = tiny_pipelines.build(name)
    pipe.save_pretrained(tmp_path)
    view = BaseModel(str(tmp_path), "cpu").view()
    assert type(view) is type(pipe)
    assert flags(view) == flags(pipe)
    loaded = load_base(BaseSource(str(tmp_path)))
    wanted = [PictureSettings("a dog", steps=2, width=64, height=64, seed=seed) for seed in (1, 2)]
    shown: dict[int, int] = {}

    def watch(step: int, latents: Tensor) -> None:
        shown[step] = len(previews(family_of(view), latents, (64, 64)))

    drawing = Drawing(view)
    images = view(**drawing.arguments(wanted), **drawing.watching(watch)).images
    assert_alike(images, loaded(**Drawing(loaded).arguments(wanted)).images)
    forming = 0 if name in WITHOUT_PREVIEWS else 2
    assert shown == {1: forming, 2: forming}


def test_flags_of_a_class_are_kept(tmp_path: Path) -> None:
    pipe = tiny_pipelines.build("flux2_klein")
    pipe.register_to_config(is_distilled=True)
    pipe.save_pretrained(tmp_path)
    base = BaseModel(str(tmp_path), "cpu")
    assert base.view().config.is_distilled
    assert base.drawing.sampling.steps == 4


def test_a_pipeline_that_takes_no_prompt_is_refused() -> None:
    class Unprompted:
        def __call__(self, num_inference_steps: int = 50) -> None: ...

    with pytest.raises(SettingError, match="Unprompted does not draw pictures from prompts"):
        Drawing(Unprompted())


# --- generate, compare, train -----------------------------------------------------------------


def test_generate_with_and_without_adapters(services: Services, tmp_path: Path) -> None:
    wanted = mixed(plain(services))
    events = list(services.generator.run(wanted))
    pictures = {e.index: e for e in events if isinstance(e, Picture)}
    images = [pictures[index].image for index in range(3)]
    assert {image.size for image in images} == {(32, 48)}
    assert len({image.tobytes() for image in images}) == 3
    assert_alike(images, [draw(services, settings)[0] for settings in wanted])
    assert [e.step for e in events if isinstance(e, Progress)] == [0, 1, 2, 3]
    assert [len(e.previews) for e in events if isinstance(e, Progress)] == [0, 3, 3, 0]

    view = services.base.view()
    view.load_svfit_weights(services.library.path("rex"), show_progress=False)
    (expected,) = view(**Drawing(view).arguments([wanted[1]])).images
    assert_alike(images[1:2], [expected])
    path = save_picture(tmp_path, images[1], wanted[1])
    assert read_settings(path, services.limits) == wanted[1]


def test_the_negative_prompt_counts_where_there_is_one(services: Services) -> None:
    settings = plain(services)
    unwanted = dataclasses.replace(settings, negative_prompt="rain, fog, night")
    changes = draw(services, settings)[0].tobytes() != draw(services, unwanted)[0].tobytes()
    assert changes is services.base.drawing.sampling.negative_prompt


def test_compare(services: Services) -> None:
    settings = dataclasses.replace(plain(services), adapters={"rex": 1.0})
    axes = parse_axis("strength", "0, 1"), parse_axis("steps", "1, 2")
    *_, last = compare(services.generator, settings, *axes, services.limits)
    assert (last.done, last.total) == (4, 4)
    assert last.grid is not None and last.grid.width > last.grid.height // 2


def test_train_two_steps_and_draw_with_what_was_learned(services: Services) -> None:
    usual = services.base.drawing.sampling
    config = TrainingConfig(
        instance_prompt="a photo of sks dog",
        class_prompt="a photo of a dog",
        with_prior_preservation=True,
        num_class_images=2,
        resolution=32,
        max_train_steps=2,
        train_batch_size=1,
        num_validation_images=1,
        guidance_scale=usual.guidance_scale,
        num_inference_steps=2,
        seed=0,
    )
    services.jobs.start("learned", PHOTOS, config)
    if (thread := services.jobs._thread) is not None:  # None once all is done
        thread.join(120)
    status = services.jobs.status()
    assert status is not None and status.stage is Stage.FINISHED, status
    assert len(status.samples) == 2

    info = services.library.describe(status.adapter_name)
    assert info.misfit is None
    shifts = layer_shifts(services.base.view(), info.adapter)
    assert {shift.component for shift in shifts} == set(info.adapter.deltas)
    assert any(shift.moved for shift in shifts)
    settings = plain(services)
    learned = dataclasses.replace(settings, adapters={status.adapter_name: 10.0})
    assert draw(services, learned)[0].tobytes() != draw(services, settings)[0].tobytes()
    services.library.delete(status.adapter_name)


# --- models that want something else ----------------------------------------------------------


def test_a_model_that_folds_tokens_into_rows_is_drawn_with_one_adapter_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    services = open_services(tmp_path, "krea2")
    wanted = mixed(plain(services))
    expected = []
    for settings in wanted:
        view = services.base.view()
        for name in settings.adapters:
            view.load_svfit_weights(
                services.library.path(name), adapter_name=name, show_progress=False
            )
        view.set_svfit_adapters(list(settings.adapters), list(settings.adapters.values()))
        expected += view(**Drawing(view).arguments([settings])).images
    assert len({image.tobytes() for image in expected}) == 3
    for _ in range(2):
        assert_alike(draw(services, *wanted), expected)
    assert caplog.text.count("one adapter at a time") == 1


def test_a_base_that_cannot_be_trained_still_draws(tmp_path: Path) -> None:
    tiny.make_tiny_consistency_pipeline().save_pretrained(tmp_path / "base")
    base = BaseModel(str(tmp_path / "base"), "cpu")
    assert base.untrainable is not None
    assert "LatentConsistencyModelPipeline cannot be trained" in base.untrainable
    usual = base.drawing.sampling
    assert (usual.steps, usual.guidance_scale, usual.negative_prompt) == (4, 8.5, False)
    assert base.drawing.native_size == 16
    services = build_services(
        AppSettings(base=base.source, adapters=tmp_path / "a", outputs=tmp_path / "o", device="cpu")
    )
    settings = dataclasses.replace(plain(services), steps=2)
    first, second = draw(services, settings, dataclasses.replace(settings, seed=1))
    assert first.size == (32, 48) and first.tobytes() != second.tobytes()
