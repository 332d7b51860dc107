"""What pages do in a real browser when nothing is set beyond what a visitor must fill in.

A training like that is among the tests of its page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from app_server import choose, open_tab, unfold


@pytest.mark.parametrize(
    ("name", "settings", "last_field"),
    [
        ("Generate", "#generate-settings", "#generate-negative textarea"),
        ("Compare", "#compare-settings", "#compare-negative textarea"),
        ("Train", "#train-advanced", "#train-guidance input"),
    ],
)
def test_settings_that_nobody_opened_are_sent_as_those_in_sight(
    visit: Callable[..., Any], name: str, settings: str, last_field: str
) -> None:
    closed, opened = visit(), visit()
    for page in (closed, opened):
        open_tab(page, name)
    unfold(opened, settings)
    opened.locator(last_field).wait_for()
    assert not closed.locator(last_field).is_visible()
    go = f"#{name.lower()}-go"
    assert sent_by(closed, go) == sent_by(opened, go)


def sent_by(page: Any, button: str) -> list[Any]:
    """The values that the browser sends when a button is clicked."""
    with page.expect_request(lambda request: "/queue/join" in request.url) as request:
        page.click(button)
    values: list[Any] = request.value.post_data_json["data"]
    assert len(values) > 5
    return values


def test_generate_draws(page: Any) -> None:
    page.click("#generate-go")
    page.locator("#generate-status", has_text="Done").wait_for()
    page.locator("#generate-result img").wait_for()


def test_compare_draws_once_an_adapter_is_chosen(page: Any) -> None:
    open_tab(page, "Compare")
    choose(page, "#compare-adapters", "rex")
    page.get_by_label("range slider for Strength of rex").wait_for()
    page.click("#compare-go")
    page.locator("#compare-status", has_text="Done: 10 pictures").wait_for()
    page.locator("#compare-grid img").wait_for()


def test_inspect_describes_the_first_adapter(page: Any) -> None:
    open_tab(page, "Inspect")
    page.locator("#inspect-facts", has_text="Matches this one, weight for weight").wait_for()
    page.locator("#inspect-moved svg").wait_for()
    page.locator("#inspect-weight svg").wait_for()
