"""What judges generated images: the literature's networks from the hub, or Toybox's own judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor, CLIPTokenizer

from svfit_diffusion.errors import SVFitError

DINO = "facebook/dinov2-base"
CLIP = "openai/clip-vit-large-patch14"
_OFFLINE = "use --extractors toybox, which needs no network, to judge images of Toybox"


class ExtractorError(SVFitError):
    """The networks that judge images cannot be had."""


@dataclass(frozen=True)
class Seen:
    """What an extractor sees in some images.

    Attributes:
        features: unit vectors `(n, width)`; their cosine is the likeness of images.
        embeddings: unit vectors `(n, width)` in the space of the texts.
        things: probability of each thing `(n, things)` by a classifier, if there is one.
        scenes: the same for scenes.
    """

    features: Tensor
    embeddings: Tensor
    things: Tensor | None = None
    scenes: Tensor | None = None


class Extractor(Protocol):
    """Looks at images and reads texts.

    Attributes:
        thing_names: the things of `Seen.things`, in their order; empty without a classifier.
        scene_names: the same for scenes.
    """

    thing_names: Sequence[str]
    scene_names: Sequence[str]

    def see(self, images: Sequence[Image.Image]) -> Seen:
        """Look at RGB images of one size."""
        ...

    def read(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, width)` in the space of `Seen.embeddings`."""
        ...


class HubExtractor:
    """DINOv2 for images (as DreamBooth's DINO score) and CLIP for texts, through transformers.

    Raises:
        ExtractorError: the models are neither on the hub nor in its cache.
    """

    thing_names: Sequence[str] = ()
    scene_names: Sequence[str] = ()

    def __init__(self, device: str = "cpu") -> None:
        try:
            self._dino = AutoModel.from_pretrained(DINO).eval().to(device)
            self._dino_processor = AutoImageProcessor.from_pretrained(DINO)
            self._clip = CLIPModel.from_pretrained(CLIP).eval().to(device)
            self._clip_processor = CLIPProcessor.from_pretrained(CLIP)
        except (OSError, ImportError) as error:
            raise ExtractorError(f"cannot load {DINO} and {CLIP} ({error}); {_OFFLINE}") from error
        self._device = device

    @torch.inference_mode()
    def see(self, images: Sequence[Image.Image]) -> Seen:
        """DINOv2's class token, and CLIP's image embedding."""
        pixels = self._dino_processor(images=list(images), return_tensors="pt").to(self._device)
        features = self._dino(**pixels).last_hidden_state[:, 0]
        pixels = self._clip_processor(images=list(images), return_tensors="pt").to(self._device)
        vision = self._clip.vision_model(**pixels).pooler_output
        embeddings = self._clip.visual_projection(vision)
        return Seen(F.normalize(features).cpu(), F.normalize(embeddings).cpu())

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        """CLIP's text embedding."""
        tokens = self._clip_processor(
            text=list(texts), return_tensors="pt", padding=True, truncation=True
        ).to(self._device)
        text = self._clip.text_model(**tokens).pooler_output
        return F.normalize(self._clip.text_projection(text)).cpu()


class ToyboxExtractor:
    """The judges that are shipped beside Toybox: nothing to download.

    Args:
        folder: of the judges.
        tokenizer: folder of Toybox's tokenizer.
        size: edge of the pictures to judge, in pixels.

    Raises:
        ExtractorError: the package with the image network is not installed, the judges are not in
            their folder, or they know pictures of another size.
    """

    def __init__(self, folder: Path, tokenizer: Path, size: int) -> None:
        try:
            # Here, for its network comes with an optional package.
            from samples.toybox_builder.judges import Judges

            self._judges = Judges.load(folder, CLIPTokenizer.from_pretrained(tokenizer))
        except (OSError, ImportError) as error:
            raise ExtractorError(
                f"cannot load Toybox's judges from {str(folder)!r} ({error}); install what they "
                f"need with: pip install '.[bench]', or use --extractors hub"
            ) from error
        if self._judges.size != size:
            raise ExtractorError(
                f"the judges in {str(folder)!r} know pictures of {self._judges.size} pixels, the "
                f"base draws {size}: give the base that they were fitted for, or --extractors hub"
            )
        self.thing_names: Sequence[str] = self._judges.thing_names
        self.scene_names: Sequence[str] = self._judges.scene_names

    def see(self, images: Sequence[Image.Image]) -> Seen:
        """Coarse layout and content by EfficientNet-Lite0, and what its readers make of them."""
        features = self._judges.features(np.stack([np.asarray(image) for image in images]))
        return Seen(
            F.normalize(features, dim=1),
            self._judges.embed_images(features),
            self._judges.thing_chances(features),
            self._judges.scene_chances(features),
        )

    def read(self, texts: Sequence[str]) -> Tensor:
        """The contrastive model's text embedding."""
        return self._judges.embed_texts(texts)
