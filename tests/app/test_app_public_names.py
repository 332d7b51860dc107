"""What visitors take away names bases, and no folders of the server."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from app_server import write_random_adapter

from app.base_model import BaseModel
from app.exports import Exports, Form
from app.inspection import facts
from app.library import AdapterLibrary
from app.public_names import public_name
from app.settings import Limits
from svfit_diffusion.files.adapter import read_adapter, write_adapter

TOLD = {
    "base_model": "/home/someone/models/secret-base",
    "training": {
        "single_file_config": "C:\\Users\\someone\\base",
        "instance_data_dir": "~/photos/rex",
        "learning_rate": 0.1,
        "class_prompt": "a photo of a/an dog",
    },
}


@pytest.fixture(scope="module")
def base(saved_pipe: Path) -> BaseModel:
    return BaseModel(str(saved_pipe), "cpu")


def telling(path: Path, **told: Any) -> Path:
    """An adapter's file that tells where things lay."""
    adapter = read_adapter(write_random_adapter(path, 0))
    metadata = dataclasses.replace(adapter.metadata, **told)
    write_adapter(path, dataclasses.replace(adapter, metadata=metadata))
    return path


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        ("gpt2", "gpt2"),
        ("", ""),
        ("/home/someone/models/base/", "base"),
        ("./models/base", "base"),
        ("models/of/mine/base.safetensors", "base.safetensors"),
        ("C:\\models\\base", "base"),
        ("\\\\server\\share\\base", "base"),
        ("~/base", "base"),
        ("tests/app", "app"),
    ],
)
def test_a_name_is_a_hub_id_or_what_a_path_ends_with(source: str, name: str) -> None:
    assert public_name(source) == name


@pytest.mark.parametrize("put_there", ["by a visitor", "by hand"])
def test_files_of_the_library_tell_no_folders(
    base: BaseModel, tmp_path: Path, put_there: str
) -> None:
    library = AdapterLibrary(tmp_path / "adapters", base, 2**20)
    source = telling(tmp_path / "rex.safetensors", **TOLD)
    if put_there == "by a visitor":
        library.add(source)
    else:
        source.rename(library.folder / "rex.safetensors")
    file = Exports(tmp_path / "exports", base, Limits()).adapter_file("rex", library.path("rex"))
    written = file.read_bytes()
    for word in (b"someone", b"models", b"photos", b"Users"):
        assert word not in written
    metadata = read_adapter(file).metadata
    assert metadata.base_model == "secret-base"
    assert metadata.training == {
        "single_file_config": "base",
        "instance_data_dir": "rex",
        "learning_rate": 0.1,
        "class_prompt": "a photo of a/an dog",
    }
    shown = dict(facts(library.describe("rex")))
    assert shown["Base model"] == "secret-base"
    assert "someone" not in repr(shown)


def test_a_file_that_tells_nothing_is_copied_to_the_last_byte(
    base: BaseModel, tmp_path: Path
) -> None:
    source = telling(tmp_path / "rex.safetensors", base_model="owner/base")
    file = Exports(tmp_path / "exports", base, Limits()).adapter_file("rex", source)
    assert file.read_bytes() == source.read_bytes()


def test_a_merged_pipeline_tells_no_folders(base: BaseModel, tmp_path: Path) -> None:
    adapter = write_random_adapter(tmp_path / "rex.safetensors", 0)
    exported = Exports(tmp_path / "exports", base, Limits()).written(Form.FOLDER, "rex", adapter)
    folder = str(Path(base.source).parent)
    with zipfile.ZipFile(exported) as archive:
        texts = [archive.read(name).decode() for name in archive.namelist() if ".json" in name]
    assert len(texts) > 4 and not [text for text in texts if folder in text]
    names = [json.loads(text).get("_name_or_path") for text in texts]
    assert {"unet", "vae"} <= set(names), "of each, what its path ended with"


def test_where_an_export_lies_cannot_be_guessed(base: BaseModel, tmp_path: Path) -> None:
    adapter = write_random_adapter(tmp_path / "rex.safetensors", 0)
    one, other = (Exports(tmp_path / "exports", base, Limits()) for _ in range(2))
    first = one.adapter_file("rex", adapter)
    assert one.adapter_file("rex", adapter) == first != other.adapter_file("rex", adapter)
    assert len(first.parent.name) == 32 and first.name == "rex.safetensors"
    write_random_adapter(adapter, 1)
    assert one.adapter_file("rex", adapter).read_bytes() == adapter.read_bytes()
