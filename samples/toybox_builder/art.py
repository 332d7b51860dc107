"""Fetching and rendering of the emoji art: pinned npm packages in, RGBA sprites out."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPRITE_SIZE = 128
"""Edge of the square canvas that a sprite is fitted into, in pixels, unless told otherwise."""

_OVERSAMPLING = 2
_ALPHA_FLOOR = 12


@dataclass(frozen=True)
class ArtSet:
    """One published emoji set, pinned by version and content hash."""

    name: str
    package: str
    version: str
    integrity: str
    licence: str
    author: str
    url: str

    @property
    def archive_name(self) -> str:
        """File name that ``npm pack`` gives the package."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def credit(self) -> str:
        """One line naming the art, its author and its licence."""
        return f"{self.package} {self.version}, {self.author}, {self.licence}, {self.url}"


FLUENT_3D = ArtSet(
    name="fluent-3d",
    package="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    integrity="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    licence="MIT",
    author="Microsoft Corporation, packaged by LobeHub",
    url="https://github.com/microsoft/fluentui-emoji",
)
FLUENT_FLAT = ArtSet(
    name="fluent-flat",
    package="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    integrity="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    licence="MIT",
    author="Microsoft Corporation",
    url="https://github.com/microsoft/fluentui-emoji",
)
NOTO = ArtSet(
    name="noto",
    package="@iconify-json/noto",
    version="1.2.9",
    integrity="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    licence="Apache-2.0",
    author="Google Inc",
    url="https://github.com/googlefonts/noto-emoji",
)
TWEMOJI = ArtSet(
    name="twemoji",
    package="@iconify-json/twemoji",
    version="1.2.5",
    integrity="uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    licence="CC-BY-4.0",
    author="Twitter",
    url="https://github.com/jdecked/twemoji",
)
NOTO_V1 = ArtSet(
    name="noto-v1",
    package="@iconify-json/noto-v1",
    version="1.2.5",
    integrity="/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    licence="Apache-2.0",
    author="Google Inc",
    url="https://github.com/googlefonts/noto-emoji",
)
EMOJIONE = ArtSet(
    name="emojione",
    package="@iconify-json/emojione",
    version="1.2.3",
    integrity="T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    licence="CC-BY-4.0",
    author="Emoji One",
    url="https://github.com/EmojiTwo/emojitwo",
)
FXEMOJI = ArtSet(
    name="fxemoji",
    package="@iconify-json/fxemoji",
    version="1.2.2",
    integrity="UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    licence="Apache-2.0",
    author="Mozilla",
    url="https://github.com/mozilla/fxemoji",
)

TRAINING_SETS = (FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI)
"""Art the base model learns from."""

HELD_OUT_SETS = (NOTO_V1, EMOJIONE, FXEMOJI)
"""Art the base model never sees; the subjects come from it."""


def fetch(art_set: ArtSet, folder: Path) -> Path:
    """Download a set with ``npm pack`` unless present, and verify its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / art_set.archive_name
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", "--silent", f"{art_set.package}@{art_set.version}"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != art_set.integrity:
        raise ValueError(f"{archive} has sha512 {digest}, expected {art_set.integrity}")
    return archive


class ArtLibrary:
    """Renders sprites of any pinned set, by iconify icon name."""

    def __init__(self, folder: Path, sprite_size: int = SPRITE_SIZE) -> None:
        self._folder = folder
        self._size = sprite_size

    def sprite(self, art_set: ArtSet, icon: str) -> np.ndarray | None:
        """Return the icon as a fitted RGBA array, or None where the set lacks it."""
        draw = self._bitmap if art_set is FLUENT_3D else self._vector
        image = draw(art_set, icon)
        return None if image is None else _fit(image, self._size)

    def categories(self, art_set: ArtSet) -> dict[str, list[str]]:
        """The icons of one of iconify's sets by the group that Unicode puts them into."""
        found: dict[str, list[str]] = self._json(art_set, "metadata.json")["categories"]
        return found

    @functools.cached_property
    def _code_points(self) -> dict[str, list[str]]:
        """Icon name to code points, by Noto's table (iconify names agree across sets)."""
        table: dict[str, list[str]] = {}
        for code_point, icon in self._json(NOTO, "chars.json").items():
            table.setdefault(icon, []).append(code_point)
        return table

    @functools.cache  # noqa: B019 - one library lives for the whole build
    def _members(self, art_set: ArtSet) -> dict[str, bytes]:
        """The files of a set; its archive is read once, for it can only be read from the start."""
        members = {}
        with tarfile.open(fetch(art_set, self._folder)) as archive:
            for member in archive:
                handle = archive.extractfile(member)
                if handle is not None:
                    members[member.name] = handle.read()
        return members

    @functools.cache  # noqa: B019
    def _json(self, art_set: ArtSet, member: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self._members(art_set)[f"package/{member}"])
        return loaded

    def _bitmap(self, art_set: ArtSet, icon: str) -> Image.Image | None:
        members = self._members(art_set)
        for code_point in self._code_points.get(icon, []):
            for stem in (code_point, f"{code_point}-fe0f"):
                content = members.get(f"package/assets/{stem}.webp")
                if content is not None:
                    return Image.open(io.BytesIO(content)).convert("RGBA")
        return None

    def _vector(self, art_set: ArtSet, icon: str) -> Image.Image | None:
        table = self._json(art_set, "icons.json")
        icon = table.get("aliases", {}).get(icon, {}).get("parent", icon)
        entry = table["icons"].get(icon)
        if entry is None:
            return None
        width = entry.get("width", table.get("width", 16))
        height = entry.get("height", table.get("height", 16))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{entry.get("left", 0)} {entry.get("top", 0)} {width} {height}" '
            f'width="{width}" height="{height}">{entry["body"]}</svg>'
        )
        import resvg_py  # here, for those who only look at finished pictures lack it

        edge = _OVERSAMPLING * self._size
        png = resvg_py.svg_to_bytes(svg_string=svg, width=edge, height=edge)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _fit(image: Image.Image, edge: int) -> np.ndarray:
    """Crop to the opaque part, scale it to the canvas of a sprite and centre it."""
    opaque = image.getchannel("A").point(lambda alpha: 255 if alpha > _ALPHA_FLOOR else 0)
    box = opaque.getbbox()
    if box is None:
        raise ValueError("the image is wholly transparent")
    image = image.crop(box)
    scale = edge / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (edge, edge))
    canvas.paste(image, ((edge - size[0]) // 2, (edge - size[1]) // 2))
    return np.asarray(canvas)
