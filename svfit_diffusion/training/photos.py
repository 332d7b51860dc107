"""Photos, their captions and their masks, in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from svfit_diffusion.errors import DataError
from svfit_diffusion.training.captions import Captions, read_captions
from svfit_diffusion.training.folders import (
    MASK,
    REFERENCE,
    LeftOut,
    PhotoFile,
    kohya_name,
    look_into,
)
from svfit_diffusion.training.reading import read_picture


@dataclass(frozen=True)
class Photo:
    """One training image.

    Attributes:
        path: where it is.
        prompt: its caption, or the prompt of the folder.
        size: width and height in pixels, upright.
        mask_path: a picture of where the subject is, white on black, if there is one.
        reference_path: the image that the prompt makes this one of, if there is one.
        repeats: how often it comes in an epoch.
    """

    path: Path
    prompt: str
    size: tuple[int, int]
    mask_path: Path | None = None
    reference_path: Path | None = None
    repeats: int = 1

    @property
    def image(self) -> Image.Image:
        """RGB, upright, whole; read anew each time, as photos are large."""
        return read_picture(self.path)

    @property
    def mask(self) -> Image.Image | None:
        """Greyscale, of the size of the image, if there is one."""
        if self.mask_path is None:
            return None
        return read_picture(self.mask_path).convert("L").resize(self.size)

    @property
    def reference(self) -> Image.Image | None:
        """RGB, upright: the image to edit, if there is one."""
        return None if self.reference_path is None else read_picture(self.reference_path)


@dataclass(frozen=True)
class FoundPhotos:
    """What is in a folder of photos.

    Attributes:
        photos: those that are trained on.
        left_out: what one may have meant, and what is wrong with it.
        captions: of the photos, and what is wrong with them.
    """

    photos: list[Photo]
    left_out: list[LeftOut]
    captions: Captions

    def __str__(self) -> str:
        left_out, captions = self.left_out, self.captions
        count = f"{len(self.photos)} photo{'' if len(self.photos) == 1 else 's'} found"
        if left_out:
            count += f", {len(left_out)} left out: {_some([str(one) for one in left_out])}"
        lines = [count, *_kohya_lines(self.photos)]
        if captions.empty:
            lines.append(f"Captions with nothing in them: {_some(captions.empty)}")
        if captions.astray:
            lines.append(f"Captions of no photo that is there: {_some(captions.astray)}")
        return "\n".join(lines)


def find_photos(folder: Path, prompt: str) -> FoundPhotos:
    """Read the images of a folder, each with its caption.

    A photo's prompt is its caption (see `read_captions`); else what its folder is named if that is
    one of kohya-ss in this one, such as `10_sks dog`; else `prompt`; else the name of this folder
    if it is such a one. A mask is `photo.mask.png` beside it, an image to edit (FLUX.1 Kontext)
    `photo.condition.png`. Every image is read once, to be sure that it can be.

    Args:
        folder: folder of images.
        prompt: prompt of images without a caption.

    Raises:
        DataError: no such folder, no image in it, an image or caption that cannot be read, or an
            image with neither caption nor prompt.
    """
    files, left_out = photo_files(folder)
    captions = read_captions(folder, [file.path for file in files])
    own = kohya_name(folder.resolve().name)
    return FoundPhotos(
        read_photos(files, captions, prompt.strip() or (own[1] if own else "")), left_out, captions
    )


def photo_files(folder: Path) -> tuple[list[PhotoFile], list[LeftOut]]:
    """The files of a folder of photos, and what is left out.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no image folder {str(folder)!r}")
    files, left_out = look_into(folder)
    if not files:
        others = f"; left out: {_some([str(one) for one in left_out])}" if left_out else ""
        raise DataError(f"folder {str(folder)!r} holds no images{others}")
    return files, left_out


def load_photos(folder: Path, prompt: str) -> list[Photo]:
    """The photos that `find_photos` finds."""
    return find_photos(folder, prompt).photos


def read_photos(files: Sequence[PhotoFile], captions: Captions, prompt: str) -> list[Photo]:
    """Read images, each once to be sure that it can be.

    Args:
        files: where they are.
        captions: theirs.
        prompt: of those without a caption.

    Raises:
        DataError: as `find_photos`.
    """
    photos = []
    for file in files:
        caption = captions.texts[file.path] or file.prompt or prompt
        if not caption:
            raise DataError(
                f"no prompt for {file.path}: give instance_prompt, or a caption in "
                f"{file.path.with_suffix('.txt').name}"
            )
        mask, reference = _beside(file.path, MASK), _beside(file.path, REFERENCE)
        size = read_picture(file.path).size
        photo = Photo(file.path, caption, size, mask, reference, file.repeats)
        if (picture := photo.mask) is not None and not picture.getbbox():
            raise DataError(f"mask {str(mask)!r} is black everywhere: paint the subject white")
        photos.append(photo)
    without = [photo.path.name for photo in photos if photo.reference is None]
    if 0 < len(without) < len(photos):
        raise DataError(
            f"{len(photos) - len(without)} photos have an image to edit beside them (photo"
            f"{REFERENCE}) and {', '.join(without)} none: give it to all or to none"
        )
    return photos


def _beside(path: Path, suffix: str) -> Path | None:
    found = path.with_name(path.stem + suffix)
    return found if found.is_file() else None


def _kohya_lines(photos: Sequence[Photo]) -> list[str]:
    """What was read out of names of folders."""
    counts = Counter((photo.path.parent.name, photo.repeats) for photo in photos)
    return [
        f"{name}: {count} photos, each {repeats} times in an epoch"
        for (name, repeats), count in counts.items()
        if repeats > 1
    ]


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *more])
