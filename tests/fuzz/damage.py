"""Damaged files: what a bad disk, a bad line or bad will makes of good ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

_HOLE = "a hole"  # no key and no value of ours
DEEP = "[" * 20_000 + "]" * 20_000
LONG = "9" * 5_000
SNIPPETS = (
    "null", "true", "-1", "0", "1.5", "1e999", "NaN", "-0", '""', '"x"', "[]", "{}", "[[]]",
    '{"a": null}', '["F32"]', "[-2, -3]", "[0, 4611686018427387904]", "[1, 9223372036854775808]",
    "[18446744073709551616]", "[2.0]", '["2"]', "[true]", "[0, 4]", "[4, 0]", "[-4, 0]", DEEP, LONG,
    f"[{LONG}]", f'{{"a": {DEEP}}}', f'{{"a": {LONG}}}', f"-{LONG}", f"{LONG}.5", '{"a": "b"}',
    r'"\ud800"', '"' + "x" * 1_100_000 + '"',
)  # fmt: skip
"""JSON, or nearly, that has surprised someone."""
_FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 7e4, 1e-45, 0.0)

_SNIPPET = st.sampled_from([*SNIPPETS, None]).flatmap(
    lambda known: st.text(max_size=8).map(json.dumps) if known is None else st.just(known)
)

Draw = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def safetensors_files(draw: Draw, good: bytes) -> bytes:
    """A safetensors file that was `good`, damaged in a way or two; perhaps the file itself."""
    content = good
    for damage in draw(st.lists(st.sampled_from(_DAMAGES), min_size=1, max_size=2)):
        content = damage(draw, content)
    return content


@st.composite
def any_files(draw: Draw, good: bytes) -> bytes:
    """A file that was `good`, of whatever kind, with damaged bytes."""
    return draw(st.sampled_from(_BYTE_DAMAGES))(draw, good)


@st.composite
def json_texts(draw: Draw, good: str) -> str:
    """A text that was the JSON object `good`, with another value in it, one less, or one more."""
    value = json.loads(good)
    place = value
    while True:
        key = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
            break
        place = place[key]
    change = draw(st.sampled_from(["replace", "replace", "drop", "rename", "swap"]))
    if change == "replace":
        place[key] = _HOLE
    elif change == "swap":
        other = draw(st.sampled_from(sorted(place)))
        place[key], place[other] = place[other], place[key]
    else:
        moved = place.pop(key)
        if change == "rename":
            place[draw(st.text(max_size=8))] = moved
    return json.dumps(value, ensure_ascii=False).replace(json.dumps(_HOLE), draw(_SNIPPET))


def _flip(draw: Draw, content: bytes) -> bytes:
    changed = bytearray(content)
    for at in draw(st.lists(st.integers(0, max(len(content) - 1, 0)), min_size=1, max_size=4)):
        if at < len(changed):
            changed[at] ^= draw(st.integers(1, 255))
    return bytes(changed)


def _cut(draw: Draw, content: bytes) -> bytes:
    return content[: draw(st.integers(0, len(content)))]


def _extend(draw: Draw, content: bytes) -> bytes:
    return content + draw(st.binary(min_size=1, max_size=64))


def _blank(draw: Draw, content: bytes) -> bytes:
    """A block of zeros, as of a page that never reached the disk."""
    at, length = draw(st.integers(0, len(content))), draw(st.integers(1, 600))
    return (content[:at] + bytes(min(length, len(content) - at)) + content[at + length :])[
        : len(content)
    ]


def _copy_block(draw: Draw, content: bytes) -> bytes:
    """A block over another, as of a write that went astray."""
    start, at = draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))
    block = content[start : start + draw(st.integers(1, 256))]
    return (content[:at] + block + content[at + len(block) :])[: len(content)]


def _put_number(draw: Draw, content: bytes) -> bytes:
    """A number that no shift has, where the numbers are."""
    begin = _data_begin(content)
    places = (len(content) - begin) // 4
    if places < 1:
        return content
    at = begin + 4 * draw(st.integers(0, places - 1))
    return content[:at] + struct.pack("<f", draw(st.sampled_from(_FLOATS))) + content[at + 4 :]


def _claim_length(draw: Draw, content: bytes) -> bytes:
    """Another length of the header."""
    length = draw(st.sampled_from([0, 1, 7, 2**31, 2**62, 2**63, 2**64 - 1, len(content)]))
    return length.to_bytes(8, "little") + content[8:]


def _edit_entry(draw: Draw, content: bytes) -> bytes:
    """Another type, shape or place of a tensor, or another thing where those should be."""
    header = _header(content)
    names = sorted(name for name, entry in header.items() if isinstance(entry, dict) and entry)
    if not names:
        return content
    name = draw(st.sampled_from(names))
    entry = {**header[name], draw(st.sampled_from(sorted(header[name]))): _HOLE}
    return _with_header(draw, content, {**header, name: draw(st.sampled_from([entry, _HOLE]))})


def _edit_names(draw: Draw, content: bytes) -> bytes:
    """A tensor more or less, or no tensors at all."""
    header = _header(content)
    name = draw(st.sampled_from(["__metadata__", *sorted(header)]))
    without = {key: entry for key, entry in header.items() if key != name}
    renamed = {**without, draw(st.text(max_size=8)): header.get(name)}
    return _with_header(draw, content, draw(st.sampled_from([without, renamed, _HOLE])))


def _edit_metadata(draw: Draw, content: bytes) -> bytes:
    """Other JSON within a text of the metadata."""
    header = _header(content)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or not metadata:
        return content
    text = draw(_SNIPPET).encode("utf-8", "replace").decode()
    edited = {**metadata, draw(st.sampled_from(sorted(metadata))): text}
    return _with_header(draw, content, {**header, "__metadata__": edited})


def _with_header(draw: Draw, content: bytes, header: Any) -> bytes:
    """Another header before the same data; the hole in it is filled."""
    text = json.dumps(header, ensure_ascii=False).replace(json.dumps(_HOLE), draw(_SNIPPET))
    encoded = text.encode("utf-8", "surrogatepass")
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + content[_data_begin(content) :]


def _header(content: bytes) -> dict[str, Any]:
    """The header as far as it can be read."""
    try:
        header = json.loads(content[8 : _data_begin(content)])
    except (ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _data_begin(content: bytes) -> int:
    return min(8 + int.from_bytes(content[:8], "little"), len(content))


_BYTE_DAMAGES = (_flip, _cut, _extend, _blank, _copy_block)
_DAMAGES = (
    *_BYTE_DAMAGES, _put_number, _claim_length, _edit_entry, _edit_names,
    _edit_metadata, _edit_metadata,
)  # fmt: skip
