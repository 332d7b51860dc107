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

    @property
    def count(self) -> int:
        """Pictures to train on."""
        return len(self.latents) - HELD_BACK

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> Batch:
        """Random pictures; some captions are emptied for guidance."""
        indices = torch.randint(self.count, (count,), generator=generator)
        batch = self.at(indices, generator, device)
        emptied = (torch.rand(count, generator=generator) < CAPTION_DROP).to(device)
        for tokens, empty in zip((batch.pooled, batch.sequence), self.empty, strict=True):
            tokens[emptied] = empty.to(device)
        return batch

    def at(self, indices: Tensor, generator: torch.Generator, device: torch.device) -> Batch:
        """Chosen pictures, each with one of its captions."""
        choice = torch.randint(self.pooled.shape[1], (len(indices),), generator=generator)
        return Batch(
            self.latents[indices].float().to(device),
            1 + OBJECT_WEIGHT * self.masks[indices].float()[:, None].to(device) / 255,
            self.pooled[indices, choice].to(device),
            self.sequence[indices, choice].to(device),
        )
