"""Captions of photos: in text files beside them, or in a list."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svfit_diffusion.errors import DataError
from svfit_diffusion.files.json_text import parse_json
from svfit_diffusion.training.folders import CAPTION_SUFFIXES, METADATA_NAMES

_COLUMNS = ("text", "caption", "prompt")
_EXPECTED = '{"file_name": "photo.jpg", "text": "a caption"}'
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Captions:
    """What is written about photos.

    Attributes:
        texts: by photo; empty where nothing is written.
        empty: photos that have a caption with nothing in it.
        astray: captions of photos that are not there.
    """

    texts: Mapping[Path, str]
    empty: list[str]
    astray: list[str]


def read_captions(folder: Path, photos: Sequence[Path]) -> Captions:
    """The captions of photos in a folder and in folders in it.

    `photo.txt` or `photo.caption` beside `photo.jpg` goes before its line in `metadata.jsonl` or
    `metadata.csv`, whose columns are `file_name` and `text`, `caption` or `prompt`, as 🤗 datasets
    writes them. Text is UTF-8, or UTF-16 with its byte-order mark.

    Raises:
        DataError: one cannot be read; the message names the file.
    """
    folders = list(dict.fromkeys([folder, *(path.parent for path in photos)]))
    beside: dict[Path, list[Path]] = {}
    listed: dict[Path, str] = {}
    for inside in folders:
        for file in _caption_files(inside):
            beside.setdefault(file.with_suffix(""), []).append(file)
        listed |= _listed(inside)
    texts, empty = {}, []
    for photo in photos:
        found = _own_captions(beside.pop(photo.with_suffix(""), []))
        if (normal := _normal(photo)) in listed:
            found.append(listed[normal])
        texts[photo] = next(filter(None, found), "")
        if found and not texts[photo]:
            empty.append(photo.name)
    astray = [file.name for files in beside.values() for file in files]
    astray += [path.name for path in listed if not path.is_file()]
    return Captions(texts, empty, sorted(astray))


def read_text(path: Path) -> str:
    """Text as editors write it: UTF-8, or UTF-16 with its byte-order mark.

    Raises:
        DataError: it is neither.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16 without its mark
        raise DataError(
            f"{path} is neither UTF-8 nor UTF-16 with a byte-order mark; save it as UTF-8"
        )
    return text


def _caption_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in CAPTION_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def _own_captions(files: Sequence[Path]) -> list[str]:
    """What the files beside a photo say."""
    found = [_one_line(read_text(file)) for file in files]
    if len(set(filter(None, found))) > 1:
        names = " and ".join(file.name for file in files)
        raise DataError(f"{files[0].parent}: {names} say different things; keep one of them")
    return found


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _listed(folder: Path) -> dict[Path, str]:
    """Captions in a folder's list, by the photos that it names."""
    lists = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(lists) > 1:
        raise DataError(f"{folder} has both {' and '.join(METADATA_NAMES)}; keep one of them")
    captions: dict[Path, str] = {}
    for path in lists:
        rows = _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
        for where, row in rows:
            name, text = _entry(where, row)
            photo = _normal(folder / name.replace("\\", "/"))
            if captions.setdefault(photo, text) != text:
                raise DataError(f"{where}: {name} has another caption above; keep one of them")
    return captions


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                yield where, parse_json(line)
            except ValueError as error:
                raise DataError(
                    f"{where}: expected {_EXPECTED}, got {line.strip()[:80]!r}"
                ) from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = read_text(path)
    header = text.partition("\n")[0]
    # A spreadsheet separates by what its country does not write in numbers.
    separator = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise DataError(f"{where}: more values than columns; quote captions with commas")
            yield where, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _entry(where: str, row: Any) -> tuple[str, str]:
    """File name and caption in a row of a list; empty where the row has none."""
    columns = [column for column in _COLUMNS if isinstance(row, dict) and column in row]
    name = row.get("file_name") if columns else None
    texts = [row[column] for column in columns if row[column] is not None]
    if not isinstance(name, str) or not name or not all(isinstance(t, str) for t in texts):
        raise DataError(
            f"{where}: expected a file_name and a {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}, "
            f"such as {_EXPECTED}, got {row!r}"
        )
    return name, next(filter(None, map(_one_line, texts)), "")
