"""JSON of strangers: what comes back can be written, printed and walked through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from svfit_diffusion.files.json_text import MAX_CHARACTERS, parse_json


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -(10**62), 1.5, "σ", [], {}, [[1, {"a": [2]}]], {"ä": {"b": None}}],
    ids=str,
)
def test_what_is_sensible_comes_back(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


def test_depth_and_length_are_bounded_sharply() -> None:
    assert parse_json(nested(32)) == json.loads(nested(32))
    assert parse_json(json.dumps("x" * (MAX_CHARACTERS - 2))) == "x" * (MAX_CHARACTERS - 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (nested(33), "nested more than 32 deep"),
        (nested(20_000), "nested"),
        ('{"a":' * 33 + "1" + "}" * 33, "nested more than 32"),
        ("9" * 5000, "5,000 digits"),
        ("-" + "9" * 64, "65 digits"),
        ('[{"a": ' + "1" * 65 + "}]", "65 digits"),
        ('"' + "x" * MAX_CHARACTERS + '"', "characters are more than"),
        (r'{"\ud800": 1}', "surrogates"),
        (r'["\udfff"]', "surrogates"),
        ("", "Expecting value"),
        ("{", "Expecting"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
