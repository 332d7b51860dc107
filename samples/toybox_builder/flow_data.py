"""The parts of the pool as latents and tokens, ready for the training of Toybox-Flow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .flow_latents import LATENTS
from .flow_model import FlowModel
from .flow_world import part_folders
from .pool import load_pool
from .tokenizer import train_tokenizer
from .vae import HELD_BACK

CAPTION_DROP = 0.1
OBJECT_WEIGHT = 1.5
"""Extra loss weight of a latent that a thing covers wholly."""


def learn_tokenizer(work: Path) -> CLIPTokenizer:
    """The tokenizer, learned once from the captions that are there."""
    folder = work / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        pools = [load_pool(part) for part in part_folders(work)]
        texts = [text for pool in pools for texts in pool.captions for text in texts]
        return train_tokenizer(texts, folder)
    return CLIPTokenizer.from_pretrained(folder)


@dataclass
class Batch:
    """Pictures with their captions.

    Attributes:
        latents: `(n, channels, 16, 16)`.
        weights: of the loss, `(n, 1, 16, 16)`.
        pooled: tokens for the pooled encoder, `(n, length)`.
        sequence: tokens for the sequence encoder, `(n, length)`.
    """

    latents: Tensor
    weights: Tensor
    pooled: Tensor
    sequence: Tensor

    def first(self, count: int) -> Batch:
        """Of its first pictures."""
        rows = (self.latents, self.weights, self.pooled, self.sequence)
        return Batch(*(part[:count] for part in rows))


@dataclass
class FlowExamples:
    """All encoded parts; the pictures held back come last."""

    latents: Tensor
    masks: Tensor
    pooled: Tensor
    sequence: Tensor
    empty: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, work: Path, model: FlowModel) -> FlowExamples:
        """Read the parts that have latents, and tokenise all captions, several per picture."""
        folders = [part for part in part_folders(work) if (part / LATENTS).exists()][::-1]
        pools = [load_pool(folder) for folder in folders]
        latents = np.concatenate([np.load(folder / LATENTS) for folder in folders])
        texts = [texts for pool in pools for texts in pool.captions]
        tokens = model.tokenise([text for several in texts for text in several])
        pooled, sequence = (t.view(len(texts), len(texts[0]), -1) for t in tokens)
        masks = torch.from_numpy(np.concatenate([pool.masks for pool in pools]))
        empty = model.tokenise([""])
        return cls(torch.from_numpy(latents), masks, pooled, sequence, empty)

    def to(self, device: torch.device) -> FlowExamples:
        """The same on another device, where batches are then drawn."""
        pooled_empty, sequence_empty = (tokens.to(device) for tokens in self.empty)
        return FlowExamples(
            self.latents.to(device),
            self.masks.to(device),
            self.pooled.to(device),
            self.sequence.to(device),
            (pooled_empty, sequence_empty),
        )

    @property
    def count(self) -> int:
        """Pictures to train on."""
        return len(self.latents) - HELD_BACK

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Random pictures; some captions are emptied for guidance."""
        device = generator.device
        indices = torch.randint(self.count, (count,), generator=generator, device=device)
        batch = self.at(indices, generator)
        emptied = torch.rand(count, generator=generator, device=device) < CAPTION_DROP
        pooled, sequence = self.empty
        batch.pooled = torch.where(emptied[:, None], pooled, batch.pooled)
        batch.sequence = torch.where(emptied[:, None], sequence, batch.sequence)
        return batch

    def at(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Chosen pictures, each with one of its captions."""
        size = (len(indices),)
        choice = torch.randint(
            self.pooled.shape[1], size, generator=generator, device=generator.device
        )
        return Batch(
            self.latents[indices].float(),
            1 + OBJECT_WEIGHT * self.masks[indices].float()[:, None] / 255,
            self.pooled[indices, choice],
            self.sequence[indices, choice],
        )
