"""Judges of generated pictures: what is seen in them, and how well a text fits.

They are fitted on composed pictures that no training saw, half of them passed through the
autoencoder, never on generated ones. All look through one frozen EfficientNet-Lite0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .concepts import CONCEPTS
from .features import EfficientNetLite0
from .pool import Pool
from .scenes import SCENES
from .tokenizer import MAX_LENGTH
from .vae import to_tensor

_GRIDS = ((1, 4), (2, 4), (4, 3))
"""Stages of the network whose maps are kept, each on a coarse grid of cells."""

_SEEN_SIZE = 128
_BATCH = 100
_PROBE_EPOCHS = 60
_CONTRASTIVE_STEPS = 1500
_CONTRASTIVE_BATCH = 256
_JOINT_WIDTH = 128


class Sight:
    """Features of pictures: a coarse layout of early maps, and pooled features of the last."""

    def __init__(self) -> None:
        self._network = EfficientNetLite0()

    @torch.inference_mode()
    def blocks(self, images: np.ndarray) -> list[Tensor]:
        """Features `(n, width)` of 8-bit pictures `(n, size, size, 3)`, by stage of the network."""
        parts: list[list[Tensor]] = []
        for start in range(0, len(images), _BATCH):
            # Small ones are enlarged for the network's receptive fields.
            pixels = F.interpolate(to_tensor(images[start : start + _BATCH]), size=_SEEN_SIZE)
            maps, pooled = self._network.stages_and_pooled(pixels)
            cells = [F.adaptive_avg_pool2d(maps[stage], grid).flatten(1) for stage, grid in _GRIDS]
            parts.append([*cells, pooled])
        return [torch.cat(block) for block in zip(*parts, strict=True)]


class TextTower(nn.Module):
    """A small transformer from Toybox's tokens to the joint space."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(entries, _JOINT_WIDTH)
        self.places = nn.Parameter(torch.randn(MAX_LENGTH, _JOINT_WIDTH) * 0.1)
        layer = nn.TransformerEncoderLayer(
            _JOINT_WIDTH, 4, 2 * _JOINT_WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(_JOINT_WIDTH, _JOINT_WIDTH)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Embeddings `(n, width)` of token indices `(n, length)`, padding (`~kept`) left out."""
        hidden = self.layers(self.tokens(tokens) + self.places, src_key_padding_mask=~kept)
        weights = kept.float()[..., None]
        embedded: Tensor = self.out((hidden * weights).sum(1) / weights.sum(1))
        return embedded


@dataclass
class Judges:
    """Readers of things and scenes, and a contrastive pair of image and text embeddings.

    Attributes:
        size: edge of the pictures that they were fitted on, in pixels.
        sight: makes features.
        mean: of the features on composed pictures, `(width,)`.
        scale: makes features comparable: each of unit variance, each stage of equal weight.
        thing_names: what `things` tells apart.
        scene_names: what `scenes` tells apart.
        things: linear reader of things.
        scenes: linear reader of scenes.
        image_tower: from scaled features to the joint space.
        text_tower: from tokens to the joint space.
        tokenizer: Toybox's.
    """

    size: int
    sight: Sight
    mean: Tensor
    scale: Tensor
    thing_names: list[str]
    scene_names: list[str]
    things: nn.Linear
    scenes: nn.Linear
    image_tower: nn.Sequential
    text_tower: TextTower
    tokenizer: CLIPTokenizer

    def features(self, images: np.ndarray) -> Tensor:
        """Scaled features `(n, width)` of 8-bit pictures `(n, size, size, 3)`, for all judges."""
        return (torch.cat(self.sight.blocks(images), dim=1) - self.mean) * self.scale

    @torch.inference_mode()
    def thing_chances(self, features: Tensor) -> Tensor:
        """Probability of every thing, `(n, things)`."""
        return self.things(features).softmax(1)

    @torch.inference_mode()
    def scene_chances(self, features: Tensor) -> Tensor:
        """Probability of every scene, `(n, scenes)`."""
        return self.scenes(features).softmax(1)

    @torch.inference_mode()
    def embed_images(self, features: Tensor) -> Tensor:
        """Unit vectors `(n, width)` in the joint space."""
        return F.normalize(self.image_tower(features), dim=1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, width)` in the joint space."""
        return F.normalize(self.text_tower(*_tokens(self.tokenizer, texts)), dim=1)

    def save(self, folder: Path) -> None:
        """Write the fitted parameters, in half precision."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            f"{name}.{key}": value.half().contiguous()
            for name, module in self._modules().items()
            for key, value in module.state_dict().items()
        }
        save_file(values | {"mean": self.mean, "scale": self.scale}, folder / "judges.safetensors")
        about = {"size": self.size, "things": self.thing_names, "scenes": self.scene_names}
        (folder / "judges.json").write_text(json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, tokenizer: CLIPTokenizer) -> Judges:
        """Read what `save` wrote."""
        values = {k: v.float() for k, v in load_file(folder / "judges.safetensors").items()}
        about = json.loads((folder / "judges.json").read_text())
        mean, scale = values.pop("mean"), values.pop("scale")
        judges = cls._new(about["size"], mean, scale, about["things"], about["scenes"], tokenizer)
        for name, module in judges._modules().items():
            own = {k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{name}.")}
            module.load_state_dict(own)
            module.requires_grad_(False).eval()
        return judges

    @classmethod
    def _new(
        cls,
        size: int,
        mean: Tensor,
        scale: Tensor,
        thing_names: list[str],
        scene_names: list[str],
        tokenizer: CLIPTokenizer,
    ) -> Judges:
        width = len(mean)
        image_tower = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(width, 512), nn.GELU(), nn.Linear(512, _JOINT_WIDTH)
        )
        return cls(
            size,
            Sight(),
            mean,
            scale,
            thing_names,
            scene_names,
            nn.Linear(width, len(thing_names)),
            nn.Linear(width, len(scene_names)),
            image_tower,
            TextTower(len(tokenizer)),
            tokenizer,
        )

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "things": self.things,
            "scenes": self.scenes,
            "image_tower": self.image_tower,
            "text_tower": self.text_tower,
        }


def fit_judges(pool: Pool, vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int) -> Judges:
    """Fit all judges on the pictures of a pool and on as many that went through the autoencoder."""
    torch.manual_seed(seed)
    sight = Sight()
    images = [np.asarray(pool.images), reconstruct(vae, pool.images)]
    by_stage = [torch.cat(blocks) for blocks in zip(*map(sight.blocks, images), strict=True)]
    features = torch.cat(by_stage, dim=1)
    weights = [torch.full((block.shape[1],), block.shape[1] ** -0.5) for block in by_stage]
    scale = torch.cat(weights) / (features.std(0) + 1e-3)
    concepts = [concept.name for concept in CONCEPTS]
    scenes = [scene.name for scene in SCENES]
    size = pool.images.shape[1]
    judges = Judges._new(size, features.mean(0), scale, concepts, scenes, tokenizer)
    inputs = (features - judges.mean) * judges.scale
    things = torch.tensor([concepts.index(thing) for thing, _, _ in pool.labels] * 2)
    places = torch.tensor([scenes.index(scene) for _, _, scene in pool.labels] * 2)
    _fit_reader(judges.things, inputs, things)
    _fit_reader(judges.scenes, inputs, places)
    _fit_towers(judges, inputs, [texts[:2] for texts in pool.captions] * 2)
    for module in judges._modules().values():
        module.requires_grad_(False).eval()
    return judges


def _fit_reader(reader: nn.Linear, inputs: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-2, weight_decay=0.05)
    for _ in range(_PROBE_EPOCHS):
        for batch in torch.randperm(len(inputs)).split(1024):
            loss = F.cross_entropy(reader(inputs[batch]), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _fit_towers(judges: Judges, inputs: Tensor, captions: list[list[str]]) -> None:
    """InfoNCE on pictures and captions, in both directions."""
    towers = nn.ModuleList([judges.image_tower, judges.text_tower])
    sharpness = nn.Parameter(torch.tensor(2.5))
    optimizer = torch.optim.AdamW([*towers.parameters(), sharpness], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _CONTRASTIVE_STEPS)
    encoded = [_tokens(judges.tokenizer, texts) for texts in zip(*captions, strict=True)]
    for step in range(_CONTRASTIVE_STEPS):
        batch = torch.randint(len(inputs), (_CONTRASTIVE_BATCH,))
        tokens, kept = encoded[step % len(encoded)]
        seen = F.normalize(judges.image_tower(inputs[batch]), dim=1)
        said = F.normalize(judges.text_tower(tokens[batch], kept[batch]), dim=1)
        logits = sharpness.exp() * seen @ said.T
        own = torch.arange(len(batch))
        loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _tokens(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    encoded = tokenizer(
        list(texts),
        padding="max_length",
        max_length=MAX_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids, encoded.attention_mask.bool()


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Pass 8-bit pictures through the autoencoder: what the base can show at best."""
    parts = []
    for start in range(0, len(images), 32):
        latents = vae.encode(to_tensor(images[start : start + 32])).latent_dist.mean
        output = vae.decode(latents).sample.clamp(-1, 1)
        parts.append(((output + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)
