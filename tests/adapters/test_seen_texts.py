"""Texts are known again by their last vector, whatever a pipeline made of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from svfit_diffusion.adapters.texts import SeenTexts, places_of

IDS = torch.tensor([[5, 6, 7, 8, 0, 0], [5, 9, 7, 8, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])


class Encoder(nn.Module):
    """Running sums of random vectors, so that the last depends on all."""

    def __init__(self, *, speaks: bool = False) -> None:
        super().__init__()
        self.speaks = speaks

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        table = torch.randn(10, 48, generator=torch.Generator().manual_seed(0))
        states = table[input_ids].cumsum(1)
        hidden = (table[input_ids], states / 2, states)
        if not self.speaks:
            return _Output((states,), hidden_states=hidden)
        return _Output((states @ table.T,), hidden_states=hidden, logits=states @ table.T)


class _Output(SimpleNamespace):
    def __init__(self, values: Any, **named: Any) -> None:
        super().__init__(**named)
        self.values = values

    def __getitem__(self, index: int) -> Any:
        return self.values[index]


def seen(*layers: int, mask: Tensor | None = MASK, **changes: Any) -> tuple[SeenTexts, Any]:
    encoder = Encoder(**changes)
    texts = SeenTexts(encoder, layers)
    return texts, encoder(IDS) if mask is None else encoder(IDS, attention_mask=mask)


def test_whole_texts_in_any_order_and_other_precision() -> None:
    for mask in (None, MASK):
        texts, output = seen(mask=mask)
        found = texts.tokens_of(output[0][[1, 0, 1]].bfloat16())
        assert found is not None
        assert torch.equal(found, IDS[[1, 0, 1]])


def test_without_a_template_and_with_zeros_for_padding() -> None:
    texts, output = seen(speaks=True)
    text = (output.hidden_states[-1] * MASK[..., None])[:, 2:]
    found = texts.tokens_of(text)
    assert found is not None
    assert found.tolist() == [[7, 8, -1, -1], [7, 8, 3, -1]]


def test_behind_another_text() -> None:
    texts, output = seen(mask=None)
    found = texts.tokens_of(torch.cat([torch.ones(2, 3, 48), output[0]], dim=1))
    assert found is not None
    assert torch.equal(found, torch.cat([torch.full((2, 3), -1), IDS], dim=1))


def test_of_other_layers_only_those_asked_for_and_several_side_by_side() -> None:
    texts, output = seen(-2, 40)
    stacked = torch.cat([output.hidden_states[1], output.hidden_states[0]], dim=-1)
    found = texts.tokens_of(stacked)
    assert found is not None
    assert torch.equal(found, IDS)
    assert seen()[0].tokens_of(output.hidden_states[1]) is None


def test_zeros_say_nothing_and_others_are_not_known() -> None:
    texts, output = seen()
    text = output[0].clone()
    text[0] = 0
    found = texts.tokens_of(text)
    assert found is not None
    assert found.tolist() == [[-1] * 6, IDS[1].tolist()]
    text[0, 3] = 1
    assert texts.tokens_of(text) is None
    unseen = SeenTexts(Encoder())
    assert unseen.tokens_of(text) is None
    assert (unseen.tokens_of(text * 0) == -1).all()


def test_embeddings_and_what_comes_after_closing_are_not_seen() -> None:
    texts, output = seen()
    texts.close()
    assert not texts.encoder._forward_hooks
    assert texts.tokens_of(texts.encoder(9 - IDS)[0]) is None
    assert texts.tokens_of(output[0]) is not None


def test_every_spelling_is_found_wherever_it_is_whole() -> None:
    tokens = torch.tensor([[1, 2, 3, 1, 2, -1], [4, 3, 1, 3, 2, 1]])
    said = places_of([(1, 2), (4,), (1,) * 7], tokens).int().tolist()
    assert said == [[1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
