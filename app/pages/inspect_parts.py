"""What the parts of the Inspect page share: the rank to look at, and what it carries."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..inspection import Split

START_RANK = 8
"""Singular values to see at first."""

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
"""Options of events that take no time to speak of."""


def rank_slider(label: str, name: str) -> gr.Slider:
    """Build a slider for how many singular values to see."""
    return gr.Slider(
        1,
        64,
        value=START_RANK,
        step=1,
        label=label,
        info="That many of the largest, and that many of the smallest.",
        elem_id=f"inspect-{name}-rank",
    )


def up_to(full_rank: int, rank: float) -> Any:
    """An update of a rank slider: it ends at `full_rank`, and stays where it is if it can."""
    moved: dict[str, Any] = {"value": full_rank} if rank > full_rank else {}
    return gr.update(maximum=full_rank, **moved)


def shares(what: str, parts: Split) -> str:
    """What the singular values seen carry, as a sentence."""
    return (
        f"Of the {what}'s Frobenius norm, the {parts.rank} largest of {parts.full_rank} singular "
        f"values carry {_percent(parts.leading_share)}, the {parts.rank} smallest "
        f"{_percent(parts.trailing_share)}."
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
