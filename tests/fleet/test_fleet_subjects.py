"""Lines of a fleet's file, and which subjects go to a worker together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from svfit_diffusion.errors import ConfigError
from svfit_diffusion.fleet.packing import Backlog
from svfit_diffusion.fleet.subjects import FleetSubject, parse_fleet
from svfit_diffusion.training.config import TrainingConfig

REX = {"name": "rex", "instance_data_dir": "photos", "instance_prompt": "a photo of sks dog"}
WORDS = ["--output", "out", "--pretrained_model_name_or_path", "base"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return tmp_path


def written(*lines: Any) -> str:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path("subjects.jsonl").write_text(text)
    return "subjects.jsonl"


def test_lines_differ_in_what_they_say(here: Path) -> None:
    file = written(
        REX | {"priority": 2, "max_train_steps": 7},
        "",
        {"name": 7, "instance_data_dir": "s3://photos/7", "validation_prompt": ["a", "b"]},
    )
    (here / "common.yaml").write_text("target: [to_q, to_v]\nmax_train_steps: 5")
    subjects, settings = parse_fleet([file, *WORDS, "--config=common.yaml", "--workers=3"])
    rex, seven = subjects
    assert (rex.name, rex.priority, rex.config.max_train_steps) == ("rex", 2, 7)
    assert (seven.name, seven.priority, seven.config.max_train_steps) == ("7", 0, 5)
    # As a worker finds them, who runs elsewhere.
    assert rex.config.instance_data_dir == str(here / "photos")
    assert seven.config.instance_data_dir == "s3://photos/7"
    assert rex.config.target == ["to_q", "to_v"]
    assert (settings.output, settings.workers, settings.subjects_per_pass) == ("out", 3, 8)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no subjects"),
        (["{"], r"line 1 is no JSON"),
        ([REX, "7"], r"line 2 is '7' without a name"),
        ([REX, REX], r"line 2 \(rex\) and .* line 1 \(rex\) are two subjects of one name"),
        ([REX | {"learning_rat": 1}], r"line 1 \(rex\) has no setting .* did you mean learning_r"),
        ([REX | {"rank": "many"}], r"line 1 \(rex\): .*many"),
        ([{"name": "rex"}], r"line 1 \(rex\): --instance_data_dir is missing"),
        ([REX | {"priority": "high"}], r"line 1 \(rex\) has priority 'high', expected a whole"),
        ([REX | {"priority": True}], r"priority 'True'"),
        ([REX | {"output_dir": "x"}], r"line 1 \(rex\) has output_dir, which a fleet chooses"),
        ([REX | {"name": "fleet.jsonl"}], "is the name of a file of the fleet's"),
    ],
)
def test_lines_that_cannot_be_are_one_sentence(lines: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_fleet([written(*lines), *WORDS])


def test_words_that_cannot_be() -> None:
    file = written(REX)
    for words, message in (
        ([], "the file of the subjects comes first"),
        (WORDS, "the file of the subjects comes first"),
        (["nowhere.jsonl", *WORDS], "cannot read the subjects in nowhere.jsonl"),
        ([file], "--output is missing"),
        ([file, "--output=out"], "--pretrained_model_name_or_path is missing"),
        ([file, *WORDS, "--worker=2"], "did you mean --workers"),
        ([file, *WORDS, "--workers=0"], "workers must be at least 1, got 0"),
        ([file, *WORDS, "--retries=-1"], "retries must not be negative"),
        ([file, *WORDS, "--overwrite"], "the command line has overwrite, which a fleet chooses"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_fleet(words)
    pushed = [REX | {"name": name, "push_to_hub": True, "hub_model_id": "me/x"} for name in "ab"]
    with pytest.raises(ConfigError, match="have one hub_model_id, 'me/x'"):
        parse_fleet([written(*pushed), *WORDS])


# Packs


def subject(name: str, priority: int = 0, **settings: Any) -> FleetSubject:
    return FleetSubject(name, TrainingConfig(**settings), priority)


def names(pack: list[FleetSubject]) -> str:
    return "".join(subject.name for subject in pack)


def test_the_urgent_go_first_with_what_fits_into_their_pass() -> None:
    subjects = [
        *(subject(name) for name in "ab"),
        *(subject(name, rank="2") for name in "cd"),
        subject("e", priority=1, rank="2", learning_rate=0.3),  # its own business
        subject("f", priority=-1),
    ]
    backlog = Backlog(subjects, per_pass=2, retries=3)
    assert names(backlog.take("", 1)) == "ec"
    # Of equals, those for which the worker's base is ready.
    assert names(backlog.take(subjects[2].group, 1)) == "d"
    assert names(backlog.take("", 1)) == "ab"
    assert names(backlog.take(subjects[2].group, 1)) == "f"
    assert not backlog.take("", 1)


def test_a_worker_leaves_others_their_share() -> None:
    backlog = Backlog([subject(name) for name in "abcde"], per_pass=8, retries=3)
    assert [names(backlog.take("", 2)) for _ in range(3)] == ["abc", "d", "e"]


def test_of_whom_workers_die_is_trained_alone_and_then_no_more() -> None:
    backlog = Backlog([subject(name) for name in "abcd"], per_pass=3, retries=2)
    pack = backlog.take("", 1)
    assert names(pack) == "abc"
    assert not backlog.put_back(pack)  # once
    pack = backlog.take("", 1)
    assert names(pack) == "abc"
    assert not backlog.put_back(pack[1:])  # b and c twice
    assert [names(backlog.take("", 1)) for _ in range(2)] == ["b", "c"]
    assert names(backlog.put_back([pack[1]])) == "b"
    assert backlog.deaths("b") == 3
    assert names(backlog.take("", 1)) == "d"
    assert len(backlog) == 0


@pytest.mark.parametrize(
    "name",
    ["", " ", "a ", "..", "a/b", "a\\b", "a\0b", "a\nb", "a\u202eb", "x" * 201, "é" * 101],
    ids=repr,
)
def test_names_that_folders_or_lines_of_a_log_cannot_have(name: str) -> None:
    with pytest.raises(ConfigError, match=r"line 1: .* cannot be the name of a folder"):
        parse_fleet([written(REX | {"name": name}), *WORDS])


def test_a_nul_in_a_setting_is_said() -> None:
    with pytest.raises(ConfigError, match=r"line 1 \(rex\): instance_data_dir has a NUL"):
        parse_fleet([written(REX | {"instance_data_dir": "a\0b"}), *WORDS])
