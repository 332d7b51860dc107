"""PNG files that carry the settings they were drawn with, and reading those back."""

from __future__ import annotations

import dataclasses
import json
import secrets
from datetime import datetime
from functools import partial
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from svfit_diffusion.files.atomic import make_folder, write_atomically
from svfit_diffusion.files.json_text import parse_json

from .errors import SettingError, UploadError
from .picture import PictureSettings
from .settings import Limits

KEY = "svfit-diffusion"
"""Keyword of the text chunk that holds the settings as JSON."""


def save_picture(folder: Path, image: Image.Image, settings: PictureSettings) -> Path:
    """Write a picture with its settings as a PNG of a new name, and return its path.

    Args:
        folder: made if missing.
        image: the picture.
        settings: what it was drawn with.

    Raises:
        StorageError: there is no room or no permission.
    """
    make_folder(folder)
    # The name cannot be guessed: others who may enter the app are not to find it by trying.
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = folder / f"{moment}-seed{settings.seed}-{secrets.token_hex(8)}.png"
    chunks = PngInfo()
    chunks.add_itxt(KEY, json.dumps(dataclasses.asdict(settings), ensure_ascii=False))
    write_atomically(path, partial(image.save, format="PNG", pnginfo=chunks))
    return path


def read_settings(path: Path, limits: Limits) -> PictureSettings:
    """The settings that a PNG carries. Its pixels are not decoded.

    Raises:
        UploadError: it is gone, no PNG, too large, without settings, or with some that cannot be
            used.
    """
    if not path.exists():
        raise UploadError("The picture is not there any more.")
    if path.stat().st_size > limits.max_file_bytes:
        raise UploadError(f"The picture is larger than {limits.max_file_megabytes} MB.")
    try:
        # Opening reads the chunks before the pixels only, bounded by Pillow's MAX_TEXT_MEMORY.
        with Image.open(path, formats=["PNG"]) as image:
            assert isinstance(image, PngImageFile)
            text = image.info.get(KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UploadError("This is no readable PNG picture.") from error
    if not isinstance(text, str):
        raise UploadError(
            "This PNG carries no settings: it was not drawn by this app, or another program saved "
            "it again."
        )
    try:
        values = parse_json(text)
        if not isinstance(values, dict):
            raise SettingError("The settings are no JSON object.")
        return PictureSettings.from_mapping(values, limits)
    except ValueError as error:
        raise UploadError(f"The settings in this PNG cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, SettingError) else "they are no valid JSON."
