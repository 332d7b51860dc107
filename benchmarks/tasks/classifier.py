"""An encoder with a linear head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

Pool = Callable[[nn.Module, Tensor], Tensor]
"""Features `(n, width)` of an encoder's inputs."""


class Classifier(nn.Module):
    """Logits from features of unit variance; at first all are zero.

    Args:
        encoder: from transformers.
        pool: its features.
        width: how many these are.
        classes: how many.
    """

    def __init__(self, encoder: nn.Module, pool: Pool, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._pool = pool

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(n, classes)`."""
        features = self._pool(self.encoder, inputs)
        logits: Tensor = self.head(F.layer_norm(features, features.shape[-1:]))
        return logits


def mean_of_tokens(encoder: nn.Module, ids: Tensor) -> Tensor:
    """Mean over the tokens `(n, longest)` that are no padding, as all-MiniLM-L6-v2 was trained."""
    mask = (ids != 0).long()
    states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def first_token(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """The class token of a vision transformer, of pictures `(n, 3, edge, edge)`."""
    states: Tensor = encoder(pixel_values=pixels).last_hidden_state
    return states[:, 0]


def load_bert(folder: Path) -> nn.Module:
    """A BERT of transformers' with neither dropout nor the pooling layer, in float32."""
    model: nn.Module = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        add_pooling_layer=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return model
