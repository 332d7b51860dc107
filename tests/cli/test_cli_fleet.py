"""`svfit fleet train` where there is nothing to do for workers."""

from __future__ import annotations

import json
from pathlib import Path

from command import done, refused
from PIL import Image

from svfit_diffusion.fleet.store import COSTS_NAME, Store
from svfit_diffusion.fleet.subjects import parse_fleet


def test_what_is_done_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    for folder in ("photos", "empty"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "0.png")
    subjects, out = tmp_path / "subjects.jsonl", tmp_path / "out"
    subjects.write_text(json.dumps({"name": "rex", "instance_data_dir": f"{tmp_path}/photos"}))
    words = [str(subjects), f"--output={out}", "--pretrained_model_name_or_path=base"]
    (rex,), _ = parse_fleet(words)
    record = {"name": "rex", "steps": 3, "worker_seconds": 2, "settings": rex.settings}
    Store(str(out)).finish("rex", record)
    said = done("fleet", "train", *words).splitlines()
    assert said == [
        "1 of 1 subjects are done already",
        f"1 of 1 subjects are done, in 2 s of workers: {out / COSTS_NAME} has what each took",
    ]
    with subjects.open("a") as file:
        file.write("\n" + json.dumps({"name": "nobody", "instance_data_dir": f"{tmp_path}/empty"}))
    said_last = refused("fleet", "train", *words)
    assert "1 of 2 subjects could not be trained:\n  nobody: folder" in said_last
