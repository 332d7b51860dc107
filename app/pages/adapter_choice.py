"""Choices of adapters: their lists follow the library, and what is chosen visitors alone change.

An answer of the server may be late, and meanwhile a visitor has chosen something else. So answers
bring what there is and what has become of what; the browser, which knows what is chosen by then,
makes the best of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ..services import Services

_ONE = """(chosen, {names, instead, offered}) =>
  [instead[chosen], chosen, offered].find(name => names.includes(name))"""
_SEVERAL = """(chosen, {names, offered}) =>
  [[...new Set([...chosen, offered])].filter(name => names.includes(name))]"""


@dataclass(frozen=True)
class AdapterChoice:
    """A choice of one or several adapters.

    Attributes:
        field: where visitors choose.
        news: out of sight, what the server last said: `names` that there are, `prompts` that they
            were trained with, and more.
    """

    field: gr.Dropdown
    news: gr.JSON

    @property
    def components(self) -> list[Component]:
        """Both, to be set by `news`."""
        return [self.field, self.news]


def adapter_choice(
    services: Services,
    tab: gr.Tab,
    value: list[str] | None = None,
    *,
    never_empty: bool = False,
    **options: Any,
) -> AdapterChoice:
    """Build a choice of the library's adapters, which is told of news when its page is opened.

    Args:
        tab: the page's tab.
        value: those chosen at first.
        never_empty: choose the first where nothing else is chosen, once the page is opened.
        options: of the `Dropdown`.
    """
    field = gr.Dropdown(services.library.names(), value=value, **options)
    news_ = gr.JSON(_told(services), visible=False)
    choice = AdapterChoice(field, news_)
    keep = _SEVERAL if field.multiselect else f"{_ONE} ?? {'names[0] ?? ' * never_empty}null"
    news_.change(None, [field, news_], field, js=keep, api_visibility="private")
    tab.select(
        lambda: news(services),
        None,
        choice.components,
        queue=False,
        show_progress="hidden",  # it would cover the field
        api_visibility="private",
    )
    return choice


def news(
    services: Services, *, offered: str | None = None, instead: Mapping[str, str] | None = None
) -> tuple[Any, Any]:
    """Values for `AdapterChoice.components` that bring the list up to date.

    Args:
        offered: to be chosen where nothing else is, or beside the others where there may be some.
        instead: to be chosen instead of another that is chosen, by the other's name; a choice of
            several knows no such thing.
    """
    told = _told(services, offered, instead)
    return gr.update(choices=told["names"]), told


def _told(
    services: Services, offered: str | None = None, instead: Mapping[str, str] | None = None
) -> dict[str, Any]:
    # The time makes each of them news.
    return {
        "names": services.library.names(),
        "prompts": services.library.prompts(),
        "offered": offered,
        "instead": dict(instead or {}),
        "at": time.time_ns(),
    }
