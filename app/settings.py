"""Settings of the app, valid once they exist; the command line is derived from them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import SettingError

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
"""The embedded base models and the sample adapters, in a clone; an installed package has none."""

_EMBEDDED = str(SAMPLES / "toybox_flow") if SAMPLES.is_dir() else ""

_ADAPTERS = Path("outputs/adapters")
_OUTPUTS = Path("outputs/app")


def _setting(default: Any, help: str) -> Any:
    """A field with its help text; `list` as a default is a new one each time."""
    if default is list:
        return field(default_factory=list, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for, so that none can exhaust the machine.

    Raises:
        SettingError: a limit is not positive.
    """

    max_photos: int = _setting(20, "Photos of one training.")
    min_photos: int = _setting(3, "Photos a training needs at least.")
    max_file_megabytes: int = _setting(20, "Size of one uploaded file.")
    max_megapixels: int = _setting(50, "Pixels of one uploaded picture, in millions.")
    max_training_steps: int = _setting(5000, "Steps of one training.")
    max_adapters: int = _setting(8, "Adapters mixed in one picture.")
    max_images: int = _setting(8, "Pictures of one generation, and of one batch.")
    max_steps: int = _setting(100, "Sampling steps.")
    max_side: int = _setting(1024, "Width and height of a picture in pixels.")
    max_cells: int = _setting(36, "Pictures of one comparison.")
    max_prompt_length: int = _setting(1000, "Characters of a prompt.")
    max_waiting: int = _setting(20, "Requests for pictures, drawn and waiting, of all visitors.")
    max_places: int = _setting(5, "The same of one visitor.")
    max_visitor_megabytes: int = _setting(500, "Uploads of one visitor within an hour.")
    max_visitor_files: int = _setting(200, "Files uploaded by one visitor within an hour.")
    max_all_megabytes: int = _setting(10_000, "Uploads of all visitors within a day.")
    max_visitor_photo_megabytes: int = _setting(300, "Memory for the photos of one visitor.")
    max_all_photo_megabytes: int = _setting(2000, "Memory for the photos of all visitors.")
    max_waiting_trainings: int = _setting(8, "Trainings waiting for their turn.")
    max_visitor_picture_megabytes: int = _setting(
        500, "Album of one visitor; then their oldest pictures make room, but no favourites."
    )
    max_all_picture_megabytes: int = _setting(20_000, "Albums of all visitors.")
    max_visitor_adapters: int = _setting(50, "Adapters of one visitor.")
    max_all_adapter_megabytes: int = _setting(5000, "Adapters of all visitors.")
    max_all_export_megabytes: int = _setting(
        20_000, "Adapters in other forms, which are made again when they are asked for."
    )
    max_all_class_megabytes: int = _setting(
        2000, "Class pictures of trainings, which are drawn again when they are needed."
    )
    max_all_shown_megabytes: int = _setting(
        2000, "Pictures that pages show on the way, which are kept for a day."
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise SettingError(f"{name} must be at least 1, got {value}")

    @property
    def max_file_bytes(self) -> int:
        """Size of one uploaded file in bytes."""
        return self.max_file_megabytes * 2**20

    @property
    def max_pixels(self) -> int:
        """Pixels of one uploaded picture."""
        return self.max_megapixels * 10**6


@dataclass(frozen=True)
class AppSettings:
    """Where the app finds its models, keeps its files and listens.

    Raises:
        SettingError: a value is out of range, or two contradict each other.
    """

    base: str = _setting(_EMBEDDED, "Base model: a folder, a single file or a hub id.")
    adapters: Path = _setting(_ADAPTERS, "Folder of the adapters.")  # noqa: RUF009
    outputs: Path = _setting(_OUTPUTS, "Folder for pictures and trainings.")  # noqa: RUF009
    host: str = _setting("127.0.0.1", "Address to listen on; 0.0.0.0 lets the whole network in.")
    port: int | None = _setting(None, "Port; default: the first free one from 7860.")
    device: str | None = _setting(None, "cpu, cuda, …; default: the accelerator if there is one.")
    captioner: str | None = _setting(
        None, "Model that captions photos: a folder or a hub id; default: none."
    )
    share: bool = _setting(False, "Open a public gradio.live address as well.")
    username: str | None = _setting(None, "Ask visitors for this name; goes with --password.")
    password: str | None = _setting(None, "Ask visitors for this password.")
    allowed_host: list[str] = _setting(list, "Names besides its own by which it may be called.")  # noqa: RUF009
    framed_by: list[str] = _setting(list, "Sites that may frame it, such as https://example.org.")  # noqa: RUF009
    library: Literal["owned", "shared", "read-only"] = _setting(
        "owned",
        "Who sees and changes adapters: owned, each visitor their own; shared, everyone all of "
        "them; read-only, nobody but who runs the app. From this machine alone, all is one user's.",
    )

    def __post_init__(self) -> None:
        if not self.base:
            raise SettingError(
                "no base model: give --base, a folder, a single file or an id on huggingface.co "
                "such as stable-diffusion-v1-5/stable-diffusion-v1-5"
            )
        if self.port is not None and not 0 < self.port < 65536:
            raise SettingError(f"port must lie between 1 and 65535, got {self.port}")
        if bool(self.username) != bool(self.password):
            raise SettingError("username and password go together: give both or neither")

    @property
    def is_for_one_user(self) -> bool:
        """Whether nobody comes but from this machine, so that all is one user's.

        A proxy on this machine, which brings others, goes by another name.
        """
        return is_loopback(self.host) and not self.share and not self.allowed_host

    @property
    def auth(self) -> tuple[str, str] | None:
        """Name and password that visitors must give; None where all may enter."""
        return (self.username, self.password) if self.username and self.password else None

    @property
    def pictures(self) -> Path:
        """Folder of the pictures that visitors had drawn; they may fetch its files."""
        return self.outputs / "pictures"

    @property
    def trainings(self) -> Path:
        """Folder of what trainings need and nobody is to fetch, photos above all."""
        return self.outputs / "trainings"


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
