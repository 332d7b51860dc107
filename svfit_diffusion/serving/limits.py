"""How much requests to a server may ask for."""

from __future__ import annotations

from dataclasses import dataclass

MAX_STRENGTH = 10.0
MAX_GUIDANCE = 30.0


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may ask for.

    Attributes:
        pictures: of a request.
        side: of a picture, in pixels.
        steps: sampling steps.
        prompt: characters of a prompt.
        adapters: of a picture.
        upload_bytes: of an adapter's file.
        library: adapters that the library may have for one more to be added.
    """

    pictures: int = 4
    side: int = 1024
    steps: int = 100
    prompt: int = 2000
    adapters: int = 8
    upload_bytes: int = 16 * 2**20
    library: int = 10_000
