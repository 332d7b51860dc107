"""Opening pictures as cameras, phones, scanners and programs write them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from svfit_diffusion.errors import DataError

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
"""Decoders that pictures may reach, by Pillow's names; HEIC comes with pillow-heif."""

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_OF_ONE_PICTURE = frozenset({"MPO", "HEIF"})  # their further frames belong to the first
_TIFF = (b"II*\0", b"MM\0*")
_WHITE_IS_ZERO, _BITS, _PHOTOMETRIC = 0, 258, 262  # tags of TIFF


@contextlib.contextmanager
def opened(path: Path, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """A picture whose pixels are not decoded yet; its format is judged by what the file holds.

    Args:
        path: the file.
        max_pixels: width times height allowed; Pillow's own limit if not given.

    Raises:
        DataError: it cannot be used, whether now or when it is decoded within the block; the
            message is the rest of a sentence that begins with the file's name.
    """
    most = max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    try:
        # Not by its name: Pillow garbles turned grey TIFFs that it maps into memory.
        with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
            if image.width * image.height > most:
                raise DataError(_too_large(most))
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(_unknown(path)) from None
    except Image.DecompressionBombError:
        raise DataError(_too_large(most)) from None
    except Exception as error:  # decoders raise whatever comes to them
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"cannot be opened: {error.strerror}") from error
        logger.info("cannot decode %s", path, exc_info=True)
        raise DataError("damaged or cut short") from error


def rgb(image: Image.Image) -> Image.Image:
    """A picture as people see it: upright, on white where it is transparent, in sRGB; mode RGB.

    Raises:
        DataError: it holds several pictures, or more than a screen can show.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _OF_ONE_PICTURE:
        raise DataError(
            f"{frames} pictures in one file; save the one you mean as a file of its own"
        )
    image = _in_eight_bits(ImageOps.exif_transpose(image), image)
    if "A" in image.getbands() or "transparency" in image.info:
        # Transparent pixels have arbitrary colours underneath.
        layer = image.convert("RGBA")
        layer.info.pop("transparency", None)
        white = Image.new("RGBA", layer.size, "white")
        white.info = layer.info
        image = Image.alpha_composite(white, layer).convert("RGB")
    return _in_srgb(image).convert("RGB")


def read_picture(path: Path) -> Image.Image:
    """The picture in a file, mode RGB.

    Raises:
        DataError: it cannot be read; the message names the file.
    """
    try:
        with opened(path) as image:
            return rgb(image)
    except DataError as error:
        raise DataError(f"cannot use picture {str(path)!r}: {error}") from error.__cause__


@functools.cache
def reads_heic() -> bool:
    """Whether the decoder of phones' HEIC is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


@functools.cache
def photo_suffixes() -> frozenset[str]:
    """How names of files end that hold such pictures, in lower case."""
    formats = {*_formats(), "MPO", "DIB"}
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, format in known.items() if format in formats)


NEEDS_HEIC = "HEIC, which needs the package pillow-heif: pip install pillow-heif"
"""Why a phone's picture is not read where the decoder is missing."""


def _formats() -> tuple[str, ...]:
    return (*FORMATS, "HEIF") if reads_heic() else FORMATS


def _unknown(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in _HEIC_BRANDS and not reads_heic():
        return NEEDS_HEIC
    if start[:4] in _TIFF:
        return "a TIFF of a rare kind; save it as an ordinary PNG or JPEG"
    return "not a JPEG, PNG, WebP, AVIF, HEIC, BMP, GIF or TIFF picture"


def _too_large(most: int) -> str:
    return f"more than {most / 1e6:.0f} million pixels"


def _in_eight_bits(image: Image.Image, read: Image.Image) -> Image.Image:
    """A picture whose deep grey, as scanners write it, is scaled down; Pillow would cut it off.

    Args:
        image: upright.
        read: the same as it was opened, which knows what its file says of the pixels.
    """
    if image.mode in ("I", "F"):
        raise DataError("32 bits per pixel of grey; save it as an ordinary PNG or JPEG")
    if not image.mode.startswith("I;16"):
        return image
    tags = getattr(read, "tag_v2", {})
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    scale, offset = 255 / white, 0.5  # half of a step, as what follows rounds down
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scale, offset = -scale, 255.5
    grey = image.convert("I").point(lambda value: value * scale + offset).convert("L")
    grey.info.pop("transparency", None)  # a level of deep grey
    return grey


def _in_srgb(image: Image.Image) -> Image.Image:
    """A picture whose colours are meant otherwise, such as a phone's or a printer's, in sRGB."""
    data = image.info.get("icc_profile")
    if not data:
        return image
    if image.mode == "P":
        image = image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        srgb = ImageCms.createProfile("sRGB")
        seen = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):  # damaged, or of another kind of pixels
        return image
    assert seen is not None  # as it is not done in place
    return seen
