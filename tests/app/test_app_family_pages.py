"""Pages in a real browser on other base models, everything left as it is: FLUX, and an LCM."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_pipelines
from app_server import LONG, AppServer, open_tab
from PIL import Image

from app.png_metadata import read_settings
from svfit_diffusion.training.trainer import Trainer


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trainings end after their second step, as the page's own four hundred take too long."""
    steps = Trainer.steps

    monkeypatch.setattr(Trainer, "steps", lambda trainer: itertools.islice(steps(trainer), 2))
    yield


def test_generate_and_train_with_nothing_opened(
    visit: Callable[..., Any], serve: Callable[..., AppServer], tmp_path: Path, two_steps: None
) -> None:
    server = serve(functools.partial(tiny_pipelines.build, "flux_schnell"))
    page = visit(url=server.url)
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Done").wait_for(timeout=LONG)
    page.locator("#generate-result img").wait_for()
    assert not page.locator("#generate-negative, #generate-scheduler").count()
    (picture,) = server.services.settings.pictures.iterdir()
    settings = read_settings(picture, server.services.limits)
    assert (settings.steps, settings.guidance_scale) == (4, 0)
    assert (settings.width, settings.height) == (32, 32)

    open_tab(page, "Train")
    for number in range(3):
        Image.new("RGB", (64, 64), (200, 40 * number, 0)).save(tmp_path / f"{number}.png")
    page.set_input_files("#train-drop input[type=file]", sorted(tmp_path.glob("*.png")))
    page.locator("#train-tiles .gallery-item").nth(2).wait_for()
    page.fill("#train-name textarea", "flux dog")
    page.fill("#train-instance-prompt textarea", "a photo of sks dog")
    page.get_by_label("Quick").check()
    page.click("#train-go")
    done = page.locator("#train-status", has_text="“flux dog” is ready to use.")
    done.wait_for(timeout=LONG)
    status = server.services.jobs.status()
    assert status is not None and status.step == 2
    config = status.config
    assert (config.resolution, config.num_inference_steps, config.guidance_scale) == (32, 4, 0)
    assert config.train_text_encoder is False
    assert set(server.services.library.describe("flux dog").adapter.deltas) == {"transformer"}


def test_a_base_that_cannot_be_trained_says_so_and_draws(
    visit: Callable[..., Any], serve: Callable[..., AppServer]
) -> None:
    page = visit(url=serve(tiny.make_tiny_consistency_pipeline).url)
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Done").wait_for()
    open_tab(page, "Train")
    page.locator("#train-status", has_text="LatentConsistencyModelPipeline cannot be").wait_for()
    assert not page.locator("#train-go").count()
    page.locator("#train-adapter").wait_for()
