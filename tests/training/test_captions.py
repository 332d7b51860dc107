"""Captions as editors and data sets write them: read right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svfit_diffusion.errors import DataError
from svfit_diffusion.training.captions import Captions, read_captions

CAPTION = "a “dog”, lying"


def captions(folder: Path, *names: str) -> Captions:
    """Of photos that need not be pictures."""
    photos = [folder / name for name in names]
    for photo in photos:
        photo.parent.mkdir(exist_ok=True)
        photo.touch()
    return read_captions(folder, photos)


def texts(folder: Path, *names: str) -> list[str]:
    return list(captions(folder, *names).texts.values())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_whatever_editors_write(tmp_path: Path, encoding: str, ending: str, suffix: str) -> None:
    text = f"{ending} {CAPTION} {ending}{ending}outside{ending}"
    (tmp_path / f"a{suffix}").write_bytes(text.encode(encoding))
    assert texts(tmp_path, "a.jpg", "b.jpg") == [f"{CAPTION} outside", ""]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("a café".encode(encoding))
    with pytest.raises(DataError, match=r"a\.txt is neither UTF-8 nor UTF-16"):
        captions(tmp_path, "a.jpg")


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_data_sets(tmp_path: Path, column: str, encoding: str) -> None:
    rows = [{"file_name": "a.jpg", column: CAPTION, "other": 1}, {"file_name": "./b.jpg"}]
    rows[1][column] = "line\u2028separated"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(f"\n{lines}\n", encoding=encoding)
    assert texts(tmp_path, "a.jpg", "b.jpg", "c.jpg") == [CAPTION, "line separated", ""]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spreadsheets(tmp_path: Path, separator: str) -> None:
    rows = [["file_name", "text"], ["a.jpg", f'"{CAPTION}"'], ["b.jpg", '"two\nlines"']]
    text = "\r\n".join(separator.join(row) for row in [*rows, ["c.jpg", ""]])
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8-sig", newline="")
    found = captions(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert list(found.texts.values()) == [CAPTION, "two lines", ""]
    assert found.empty == ["c.jpg"]


def test_a_caption_cut_by_its_commas_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,a dog, lying\n")
    with pytest.raises(DataError, match=r"metadata\.csv, line 2: more values than columns"):
        captions(tmp_path, "a.jpg")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '"text"',
        '{"file_name": "a.jpg"}',
        '{"text": "a dog"}',
        '{"file_name": 3, "text": "a dog"}',
        '{"file_name": "a.jpg", "text": 3}',
        '{"file_name": "a.jpg", "text": ["a", "dog"]}',
        '{"file_name": ' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"file_name": ' + "9" * 5_000 + "}",
        '{"file_name": "\\ud800", "text": ""}',
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_says_something_else_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "metadata.jsonl").write_text("\n" + line)
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2: expected .*file_name"):
        captions(tmp_path, "a.jpg")


def test_no_caption_is_no_text(tmp_path: Path) -> None:
    """Neither `None` nor an empty prompt: whoever asks uses the prompt of the folder."""
    rows = [{"file_name": "a.jpg", "text": None}, {"file_name": "b.jpg", "text": " "}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.txt").write_text("\n")
    found = captions(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    assert not any(found.texts.values())
    assert found.empty == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_null_gives_way_to_another_column(tmp_path: Path) -> None:
    row = {"file_name": "a.jpg", "text": None, "caption": "a dog"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert texts(tmp_path, "a.jpg") == ["a dog"]


def test_a_file_goes_before_the_list_unless_it_is_empty(tmp_path: Path) -> None:
    rows = [{"file_name": f"{name}.jpg", "text": "listed"} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.txt").write_text("own")
    (tmp_path / "b.txt").touch()
    found = captions(tmp_path, "a.jpg", "b.jpg")
    assert list(found.texts.values()) == ["own", "listed"]
    assert found.empty == []


def test_captions_of_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    rows = [{"file_name": name, "text": "a dog"} for name in ("a.jpg", "gone.jpg")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lost.txt").write_text("a dog")
    (tmp_path / ".hidden.txt").write_text("of some program")
    assert captions(tmp_path, "a.jpg").astray == ["gone.jpg", "lost.txt"]


def test_a_list_reaches_into_folders(tmp_path: Path) -> None:
    row = {"file_name": "10_sks dog\\a.jpg", "text": "a dog"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    found = captions(tmp_path / ".." / tmp_path.name, "10_sks dog/a.jpg")
    assert list(found.texts.values()) == ["a dog"]
    assert found.astray == []


def test_two_that_disagree_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "a.caption").write_text("a dog")
    assert texts(tmp_path, "a.jpg") == ["a dog"]
    (tmp_path / "a.caption").write_text("a cat")
    with pytest.raises(DataError, match=r"a\.caption and a\.txt say different things"):
        captions(tmp_path, "a.jpg")
    (tmp_path / "a.caption").unlink()
    rows = [{"file_name": "a.jpg", "text": text} for text in ("a dog", "a cat")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"line 2: a\.jpg has another caption above"):
        captions(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").touch()
    with pytest.raises(DataError, match="has both"):
        captions(tmp_path, "a.jpg")
