"""Photos and their captions, and the reproducible stream of training examples made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from svfit_diffusion.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Photo:
    """One training image.

    Attributes:
        path: where it was read.
        image: RGB, upright, whole.
        prompt: its caption, or the prompt of the folder.
    """

    path: Path
    image: Image.Image
    prompt: str


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, sorted by name; hidden ones are left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def load_photos(folder: Path, prompt: str, limit: int | None = None) -> list[Photo]:
    """Read the images of a folder, each with its caption.

    A caption is the text of `photo.txt` beside `photo.jpg`, or the `text` of the photo's line in
    `metadata.jsonl` (`{"file_name": …, "text": …}`, as 🤗 datasets writes it); `prompt` otherwise.

    Args:
        folder: folder of images.
        prompt: prompt of images without a caption.
        limit: read no more than so many.

    Raises:
        DataError: no such folder, no image in it, an image or caption that cannot be read, or an
            image with neither caption nor prompt.
    """
    if not folder.is_dir():
        raise DataError(f"there is no image folder {str(folder)!r}")
    files = image_files(folder)[:limit]
    if not files:
        raise DataError(
            f"folder {str(folder)!r} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    listed = _metadata_captions(folder)
    photos = []
    for path in files:
        caption = _sidecar_caption(path) or listed.get(path.name) or prompt
        if not caption:
            raise DataError(
                f"no prompt for {path}: give instance_prompt, or a caption in "
                f"{path.with_suffix('.txt').name}"
            )
        photos.append(Photo(path, _read_image(path), caption))
    return photos


def _read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "A" in upright.getbands() or "transparency" in upright.info:
                # Transparent pixels have arbitrary colours underneath; show them on white.
                layer = upright.convert("RGBA")
                white = Image.new("RGBA", layer.size, "white")
                return Image.alpha_composite(white, layer).convert("RGB")
            return upright.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise DataError(f"cannot read image {str(path)!r}: {error}") from error


def _sidecar_caption(path: Path) -> str:
    sidecar = path.with_suffix(".txt")
    return sidecar.read_text(encoding="utf-8").strip() if sidecar.is_file() else ""


def _metadata_captions(folder: Path) -> dict[str, str]:
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return {}
    captions = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                entry = json.loads(line)
                captions[str(entry["file_name"])] = str(entry["text"]).strip()
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: expected "
                    f'{{"file_name": "photo.jpg", "text": "a caption"}}, got {line!r}'
                ) from error
    return captions


def square(image: Image.Image, side: int, at: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """Crop an image to a square without distorting it, and scale that to `side`.

    Args:
        image: RGB.
        side: pixels.
        at: where the square lies along the width and the height, 0 to 1; 0.5 is the centre.

    Returns:
        `(3, side, side)`, float32 in −1..1.
    """
    fitted = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS, centering=at)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.view(side, side, 3).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True)
class Draw:
    """The random choices of one training example, a pure function of seed and position.

    Attributes:
        index: which photo.
        flip: mirror it.
        crop: where the square lies, see `square`.
        generator: for the noise that follows.
    """

    index: int
    flip: bool
    crop: tuple[float, float]
    generator: torch.Generator


def draw_example(seed: int, position: int, photo_count: int, stream: int = 0) -> Draw:
    """What chance decides for the example at `position` of the endless training stream.

    Every photo comes once per epoch, in an order drawn anew for each. Because nothing depends on
    what was drawn before, a run can be resumed at any step, and split over any number of
    processes, without changing it.

    Args:
        seed: the run's seed.
        position: 0, 1, 2, …
        photo_count: photos to choose from.
        stream: 0 for instance photos, 1 for class images: independent of each other.
    """
    epoch, place = divmod(position, photo_count)
    order = torch.randperm(photo_count, generator=_generator(seed, stream, 0, epoch))
    generator = _generator(seed, stream, 1, position)
    flip, x, y = torch.rand(3, generator=generator).tolist()
    return Draw(int(order[place]), flip < 0.5, (x, y), generator)


def _generator(*key: int) -> torch.Generator:
    # torch's CPU generator takes 32 bits of seed; hash the key into them evenly.
    value = 0
    for part in key:
        value = (value ^ part) * 0x9E3779B97F4A7C15 % 2**64
        value ^= value >> 32
    return torch.Generator().manual_seed(value % 2**32)
