"""Captions of photos by a model, where one is at hand."""

from __future__ import annotations

import threading
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from .errors import SettingError

_LONGEST = 40  # tokens


class Captioner:
    """Says what photos show. The model is loaded when it is first asked, on the CPU.

    Args:
        source: folder or hub id of a captioning model of transformers, such as
            `Salesforce/blip-image-captioning-base`.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None

    def describe(self, image: Image.Image) -> str:
        """A caption of a photo, in the model's words.

        Raises:
            SettingError: the model cannot be loaded.
        """
        with self._lock, torch.no_grad():
            processor, model = self._loaded = self._loaded or self._load()
            inputs = processor(images=image, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=_LONGEST)
            text: str = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())

    def _load(self) -> tuple[Any, Any]:
        try:
            processor = AutoProcessor.from_pretrained(self._source)
            model = AutoModelForImageTextToText.from_pretrained(self._source)
        except (OSError, ValueError) as error:
            raise SettingError(f"The captioner {self._source!r} cannot be loaded.") from error
        return processor, model.eval()


def as_caption(instance_prompt: str, description: str) -> str:
    """What is said of a photo, with the words that name the subject before it."""
    return ", ".join(part for part in (instance_prompt.strip(), description) if part)
