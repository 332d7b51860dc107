"""Photos of a subject as visitors drop them: checked, turned upright, cropped to squares.

A file is judged by its header before its pixels are decoded, so a decompression bomb costs nothing.
Names that a browser sends are shown to the visitor and used for nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from PIL import Image, ImageOps

from svfit_diffusion.errors import DataError
from svfit_diffusion.training.reading import opened, rgb

from .disk import MEGABYTE
from .fairness import of_address
from .settings import Limits
from .visitors import HOUSE, Visitor, current_visitor

SMALLEST_SIDE = 32
"""Photos with a shorter side, in pixels, show too little to learn from."""

MAX_ZOOM = 4.0
"""A crop is at least a quarter of the photo's shorter side."""

_PLAIN_FORMATS = frozenset({"PNG", "WEBP", "BMP", "AVIF", "HEIF"})
_PLAIN_MODES = frozenset({"L", "LA", "RGB", "RGBA"})
_ROWS = 64
_WORKING_SIDE = 1024  # of the shorter side: twice what most models train at, small to keep
_LONGEST_SHAPE = 4  # a strip longer than that hides most of its subject from a square


@dataclass(frozen=True)
class Crop:
    """A square of a photo.

    Attributes:
        x: where it lies along the width, 0 (left) to 1 (right).
        y: where it lies along the height, 0 (top) to 1 (bottom).
        zoom: 1 for the largest square that fits, up to `MAX_ZOOM`.
    """

    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels, in a photo of `size`; always square and inside."""
        x, y = (min(max(place, 0.0), 1.0) for place in (self.x, self.y))
        side = max(1, round(min(size) / min(max(self.zoom, 1.0), MAX_ZOOM)))
        left, top = round((size[0] - side) * x), round((size[1] - side) * y)
        return left, top, left + side, top + side


@dataclass(frozen=True)
class CroppedPhoto:
    """A photo that was accepted, and the square of it that is learned.

    Attributes:
        name: the file's name, to show.
        image: RGB, upright, whole.
        crop: the square; the largest in the middle at first.
        caption: what the photo shows, learned in place of the instance prompt; `""` for that.
        file: where the upload lies, as long as it does.
    """

    name: str
    image: Image.Image
    crop: Crop = Crop()
    caption: str = ""
    file: Path | None = None

    def with_crop(self, crop: Crop) -> CroppedPhoto:
        """The same photo with another square."""
        return dataclasses.replace(self, crop=crop)

    def with_caption(self, caption: str) -> CroppedPhoto:
        """The same photo with another caption."""
        return dataclasses.replace(self, caption=" ".join(caption.split()))

    def square(self) -> Image.Image:
        """The square, at its own resolution."""
        return self.image.crop(self.crop.box(self.image.size))


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be used.

    Attributes:
        name: the file's name, to show.
        reason: why, as the rest of a sentence that begins with the name.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def take_in(
    files: Sequence[Path], limits: Limits, already: int = 0
) -> tuple[list[CroppedPhoto], list[Refusal]]:
    """Read uploaded files: each becomes a photo or a refusal, in order.

    One file is decoded at a time, and once however often it is named, as long as its photo is in
    use; what photos in use take of memory is bounded for each visitor and for all.

    Args:
        files: where the uploads lie.
        limits: how many photos, bytes and pixels are allowed.
        already: photos taken in before, which count.
    """
    photos: list[CroppedPhoto] = []
    refusals = []
    for file in files:
        if already + len(photos) >= limits.max_photos:
            refusals.append(
                Refusal(file.name, f"no more than {limits.max_photos} photos are taken")
            )
            continue
        try:
            photos.append(CroppedPhoto(file.name, _SHELF.photo(file, limits), file=file))
        except DataError as error:
            refusals.append(Refusal(file.name, str(error)))
    return photos, refusals


def write_photos(photos: Sequence[CroppedPhoto], folder: Path) -> None:
    """Write squares into a folder as `00.png`, `01.png`, …, and captions beside them."""
    for number, photo in enumerate(photos):
        path = folder / f"{number:02d}.png"
        photo.square().save(path)
        if photo.caption:
            path.with_suffix(".txt").write_text(photo.caption, encoding="utf-8")


_Key = tuple[str, str, str]
"""Of a photo: its visitor, where they come from, and what the file holds."""


class _Shelf:
    """The photos in use, by whose they are and what their files hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._photos: WeakValueDictionary[_Key, Image.Image] = WeakValueDictionary()

    def photo(self, file: Path, limits: Limits) -> Image.Image:
        """The photo in a file, the very object where it is in use already.

        Raises:
            DataError: it cannot be used, or there is no room for it.
        """
        _check_size(file, limits)
        visitor = current_visitor()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        key = (visitor.id, visitor.address, digest)
        with self._lock:
            photo = self._photos.get(key)
            if photo is None:
                self._check_room(visitor, limits)
                photo = self._photos[key] = _read(file, limits)
        return photo

    def _check_room(self, visitor: Visitor, limits: Limits) -> None:
        own = near = everyones = 0
        for (id, address, _), photo in self._photos.items():
            size = _decoded_bytes(photo)
            own += size * (id == visitor.id)
            near += size * (address == visitor.address)
            everyones += size
        one = limits.max_visitor_photo_megabytes * MEGABYTE
        most = limits.max_all_photo_megabytes * MEGABYTE
        if visitor.id != HOUSE and own >= one:
            raise DataError("you have as many photos here as one visitor may")
        if visitor.id != HOUSE and near >= of_address(one, most):
            raise DataError("too many photos are here from where you are; try again later")
        if everyones >= most:
            raise DataError("the app holds as many photos as it can; try again later")


_SHELF = _Shelf()


def _read(file: Path, limits: Limits) -> Image.Image:
    """The photo in `file`, RGB and upright, reduced if it is larger than training can use."""
    with opened(file, limits.max_pixels) as image:
        _check_shape(*image.size)
        image.draft("RGB", (_WORKING_SIDE, _WORKING_SIDE))
        photo = rgb(_reduced(image))
    scale = _WORKING_SIDE / min(photo.size)
    if scale < 1:
        photo = ImageOps.scale(photo, scale, Image.Resampling.LANCZOS)
    return photo


def _reduced(image: Image.Image) -> Image.Image:
    """A large picture of plain pixels at a fraction of its size, so that what is made of it on the
    way to a photo takes little memory; any other as it is.
    """
    factor = min(image.size) // (2 * _WORKING_SIDE)
    if factor < 2 or image.format not in _PLAIN_FORMATS or image.mode not in _PLAIN_MODES:
        return image
    if getattr(image, "n_frames", 1) > 1:
        return image
    width, height = (-(-side // factor) for side in image.size)
    small = Image.new(image.mode, (width, height))
    for row in range(0, height, _ROWS):  # a part at a time: colours beside alpha are copied
        top, bottom = row * factor, min((row + _ROWS) * factor, image.height)
        small.paste(image.crop((0, top, image.width, bottom)).reduce(factor), (0, row))
    small.info = image.info
    return small


def _decoded_bytes(photo: Image.Image) -> int:
    return photo.width * photo.height * 4  # Pillow keeps RGB in four bytes


def _check_size(file: Path, limits: Limits) -> None:
    size = file.stat().st_size
    if size > limits.max_file_bytes:
        raise DataError(
            f"{size / 2**20:.0f} MiB, at most {limits.max_file_bytes / 2**20:.0f} are allowed"
        )


def _check_shape(width: int, height: int) -> None:
    if min(width, height) < SMALLEST_SIDE:
        raise DataError(f"{width}×{height} pixels, both sides must have at least {SMALLEST_SIDE}")
    if max(width, height) > _LONGEST_SHAPE * min(width, height):
        raise DataError(f"{width}×{height} pixels is too long a strip to be cropped to a square")
