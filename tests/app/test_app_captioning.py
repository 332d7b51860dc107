"""Captions of photos by a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from app_server import AppServer, open_tab
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from app.captioning import Captioner, as_caption
from app.errors import SettingError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "on", "red", "sofa"]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model of the kind that captions."""
    folder = tmp_path_factory.mktemp("captioner")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    shared = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    torch.manual_seed(0)
    BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                "vocab_size": len(WORDS),
                "encoder_hidden_size": 16,
                "intermediate_size": 16,
                "bos_token_id": 2,
                "sep_token_id": 3,
                "eos_token_id": 3,
                "pad_token_id": 0,
                **shared,
            },
            vision_config={
                "image_size": 16,
                "patch_size": 8,
                "intermediate_size": 16,
                **shared,
            },
            projection_dim=16,
        )
    ).save_pretrained(folder)
    return folder


def test_a_model_says_what_a_photo_shows(captioner: Path) -> None:
    describe = Captioner(str(captioner)).describe
    photo = Image.new("RGB", (40, 30), "red")
    text = describe(photo)
    assert text and set(text.split()) <= set(WORDS) | {"[UNK]"}
    assert text == describe(photo)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"The captioner .*nowhere' cannot be loaded"):
        Captioner(str(tmp_path / "nowhere")).describe(Image.new("RGB", (8, 8)))


def test_a_caption_begins_with_the_subject() -> None:
    assert as_caption(" a photo of sks dog ", "on a sofa") == "a photo of sks dog, on a sofa"
    assert as_caption("", "on a sofa") == "on a sofa"


def test_captions_are_written_beneath_all_photos(
    visit: Callable[..., Any],
    serve: Callable[..., AppServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Captioner, "describe", lambda _, image: f"{image.getpixel((0, 0))[0]}")
    page = visit(url=serve(captioner="any").url)
    open_tab(page, "Train")
    for red in (10, 20):
        Image.new("RGB", (40, 40), (red, 0, 0)).save(tmp_path / f"{red}.png")
    page.set_input_files("#train-drop input[type=file]", sorted(tmp_path.glob("*.png")))
    page.fill("#train-instance-prompt textarea", "sks dog")
    page.click("#train-describe")
    tiles = page.locator("#train-tiles .gallery-item")
    for place, red in enumerate((10, 20)):
        tiles.nth(place).filter(has_text=f"sks dog, {red}").wait_for()
    caption = page.locator("#train-caption textarea")
    page.wait_for_function("field => field.value === 'sks dog, 10'", arg=caption.element_handle())
