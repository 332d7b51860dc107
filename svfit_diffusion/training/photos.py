"""Photos, their captions and their masks, in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from svfit_diffusion.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_MASK = ".mask.png"
_REFERENCE = ".condition.png"


@dataclass(frozen=True)
class Photo:
    """One training image.

    Attributes:
        path: where it is.
        prompt: its caption, or the prompt of the folder.
        size: width and height in pixels, upright.
        mask_path: a picture of where the subject is, white on black, if there is one.
        reference_path: the image that the prompt makes this one of, if there is one.
    """

    path: Path
    prompt: str
    size: tuple[int, int]
    mask_path: Path | None = None
    reference_path: Path | None = None

    @property
    def image(self) -> Image.Image:
        """RGB, upright, whole; read anew each time, as photos are large."""
        return _read_image(self.path)

    @property
    def mask(self) -> Image.Image | None:
        """Greyscale, of the size of the image, if there is one."""
        if self.mask_path is None:
            return None
        return _read_image(self.mask_path).convert("L").resize(self.size)

    @property
    def reference(self) -> Image.Image | None:
        """RGB, upright: the image to edit, if there is one."""
        return None if self.reference_path is None else _read_image(self.reference_path)


def _beside(path: Path, suffix: str) -> Path | None:
    found = path.with_name(path.stem + suffix)
    return found if found.is_file() else None


def image_files(folder: Path) -> list[Path]:
    """The photos in a folder, sorted by name: no hidden files, no masks, no images to edit."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and not path.name.lower().endswith((_MASK, _REFERENCE))
    )


def load_photos(folder: Path, prompt: str, limit: int | None = None) -> list[Photo]:
    """Read the images of a folder, each with its caption.

    A caption is the text of `photo.txt` beside `photo.jpg`, or the `text` of the photo's line in
    `metadata.jsonl` (`{"file_name": …, "text": …}`, as 🤗 datasets writes it); `prompt` otherwise.
    A mask is `photo.mask.png` beside it, an image to edit (FLUX.1 Kontext)
    `photo.condition.png`. Every image is read once, to be sure that it can be.

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
        mask, reference = _beside(path, _MASK), _beside(path, _REFERENCE)
        photo = Photo(path, caption, _read_image(path).size, mask, reference)
        if (picture := photo.mask) is not None and not picture.getbbox():
            raise DataError(f"mask {str(mask)!r} is black everywhere: paint the subject white")
        photos.append(photo)
    without = [photo.path.name for photo in photos if photo.reference is None]
    if 0 < len(without) < len(photos):
        raise DataError(
            f"{len(photos) - len(without)} photos have an image to edit beside them (photo"
            f"{_REFERENCE}) and {', '.join(without)} none: give it to all or to none"
        )
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
