"""Photos, captions, crops, and the reproducible stream of examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from svfit_diffusion.errors import DataError
from svfit_diffusion.training import folders
from svfit_diffusion.training.photos import find_photos, load_photos


def photo(folder: Path, name: str, colour: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    path = folder / name
    Image.new("RGB", size, colour).save(path)
    return path


def test_captions_go_before_the_prompt(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    photo(tmp_path, "b.jpg")
    photo(tmp_path, "c.webp")
    (tmp_path / ".a.png").write_bytes(b"left by some other program")
    (tmp_path / "a.txt").write_text("from a file\n")
    line = {"file_name": "b.jpg", "text": "from the list"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n\n")
    prompts = [p.prompt for p in load_photos(tmp_path, "a photo of sks dog")]
    assert prompts == ["from a file", "from the list", "a photo of sks dog"]


@pytest.mark.parametrize("line", ["{", "[]", '{"file_name": "a.png"}', '"text"'])
def test_bad_metadata_names_the_line(tmp_path: Path, line: str) -> None:
    photo(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n" + line)
    with pytest.raises(DataError, match=r"line 2.*file_name"):
        load_photos(tmp_path, "a photo")


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image folder"):
        load_photos(tmp_path / "nowhere", "a photo")
    (tmp_path / "notes.md").write_text("no image")
    with pytest.raises(DataError, match="holds no images"):
        load_photos(tmp_path, "a photo")


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(DataError, match=r"broken\.png"):
        load_photos(tmp_path, "a photo")


def test_missing_prompt(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    with pytest.raises(DataError, match="instance_prompt"):
        load_photos(tmp_path, "")


def test_orientation_and_transparency(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (4, 8), "red")
    exif = sideways.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    sideways.save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "b.png")
    turned, clear = load_photos(tmp_path, "a photo")
    assert turned.image.size == (8, 4)
    assert clear.image.getpixel((0, 0)) == (255, 255, 255)


def test_a_mask_lies_beside_its_photo_and_is_no_photo(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.jpg")
    Image.new("L", (4, 3), 255).save(tmp_path / "a.mask.png")
    Image.new("RGB", (8, 6), "blue").save(tmp_path / "b.png")
    first, second = load_photos(tmp_path, "a dog")
    assert first.mask is not None and first.mask.size == (8, 6)
    assert second.mask is None


def test_a_black_mask_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.jpg")
    Image.new("L", (8, 6), 0).save(tmp_path / "a.mask.png")
    with pytest.raises(DataError, match="black everywhere"):
        load_photos(tmp_path, "a dog")


def test_what_is_left_out_is_said_before_any_work(tmp_path: Path) -> None:
    photo(tmp_path, "a.png")
    photo(tmp_path, "b.AVIF")
    photo(tmp_path, "c.jfif")
    for name in ("raw.CR2", "clip.mov", "layers.psd", "notes.md", "Thumbs.db", "metadata.parquet"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "older").mkdir()
    photo(tmp_path / "older", "z.png")
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "c.txt").touch()
    (tmp_path / "gone.txt").write_text("a dog")
    first, *more = str(find_photos(tmp_path, "a photo")).splitlines()
    assert first.startswith("3 photos found, 5 left out: clip.mov (a video")
    assert "raw.CR2 (a camera's raw file" in first and "older (a folder" in first
    assert "notes" not in first and "Thumbs" not in first
    assert more == [
        "Captions with nothing in them: c.jfif",
        "Captions of no photo that is there: gone.txt",
    ]


def test_photos_of_a_phone_are_read_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path, "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    monkeypatch.setattr(folders, "photo_suffixes", lambda: frozenset({".png"}))
    assert "1 photo found, 1 left out: b.HEIC (HEIC, which needs" in str(find_photos(tmp_path, "x"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"holds no images; left out: b\.HEIC .*pillow-heif"):
        find_photos(tmp_path, "x")


def test_folders_of_kohya(tmp_path: Path) -> None:
    """The number is how often, the rest is the prompt; captions go before it, it before ours."""
    for name in ("10_sks dog", "2_a cat ", "2024_summer", "0_never", "10_"):
        (tmp_path / name).mkdir()
        photo(tmp_path / name, "1.png")
    photo(tmp_path, "top.png")
    photo(tmp_path / "10_sks dog", "2.png")
    (tmp_path / "10_sks dog" / "2.caption").write_text("sks dog on grass")
    found = find_photos(tmp_path, "a photo")
    assert [(p.prompt, p.repeats) for p in found.photos] == [
        ("a photo", 1),
        ("sks dog", 10),
        ("sks dog on grass", 10),
        ("a cat", 2),
    ]
    assert [one.name for one in found.left_out] == ["0_never", "10_", "2024_summer"]
    assert "10_sks dog: 2 photos, each 10 times in an epoch" in str(found)


def test_a_folder_of_kohya_itself(tmp_path: Path) -> None:
    folder = tmp_path / "10_sks dog"
    folder.mkdir()
    photo(folder, "a.png")
    assert load_photos(folder, "")[0].prompt == "sks dog"
    assert load_photos(folder, "a photo of sks dog")[0].prompt == "a photo of sks dog"
    assert load_photos(folder, "")[0].repeats == 1
