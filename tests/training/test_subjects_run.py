"""Several subjects from a command line: listed, kept each as alone, named where they fail."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from left_by_runs import shifts, steps_logged
from PIL import Image

from svfit_diffusion.errors import ConfigError, StoppedError, SubjectsError
from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.training import shared_pass
from svfit_diffusion.training.arguments import SETTINGS_NAME, parse_args, parse_command
from svfit_diffusion.training.command import run_command
from svfit_diffusion.training.objective import Losses, losses_in_one_pass
from svfit_diffusion.training.run import train
from svfit_diffusion.training.subject_list import SubjectList

COLOURS = {"mia": "red", "rex": "green", "tom": "blue"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a folder of photos for each subject."""
    for name, colour in COLOURS.items():
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (24 + 8 * i, 24), colour).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def words(saved_pipe: Path, photos: Path, tmp_path: Path) -> list[str]:
    return [
        f"--pretrained_model_name_or_path={saved_pipe}",
        f"--subjects={photos}",
        "--instance_prompt=a photo of sks",
        f"--output_dir={tmp_path / 'out'}",
        *("--train_batch_size=1", "--max_train_steps=3", "--lr_warmup_steps=0", "--seed=0"),
        *("--num_inference_steps=1", "--num_validation_images=1", "--resolution=16"),
    ]


def assert_alike(found: Path, expected: Path) -> None:
    """To rounding, as tests/training/test_several_subjects.py has it."""
    want = shifts(expected)
    assert want.abs().max() > 0
    assert (shifts(found) - want).norm() <= 1e-3 * want.norm()


def test_each_is_kept_as_alone_and_an_empty_folder_is_named(
    words: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at a time: the third takes the place of the first that is done."""
    (photos / "nobody").mkdir()
    with pytest.raises(SubjectsError, match=r"1 of 4 subjects .*\n  nobody: .*holds no images"):
        run_command([*words, "--subjects_at_once=2", "--validation_prompt=a cat"])
    said = capsys.readouterr().out
    assert "nobody is not trained" in said
    assert "tom: 2 photos found" in said
    for name in COLOURS:
        own = tmp_path / "out" / name
        written = {path.name for path in own.iterdir()}
        assert {"before_after.png", "checkpoint-3", "validation", SETTINGS_NAME} <= written
        assert steps_logged(own) == [1, 2, 3]
        # The settings that it leaves are those of a run alone.
        config = parse_args(["--config", str(own / SETTINGS_NAME), f"--output_dir={own}-alone"])
        assert_alike(own, train(config))
    assert not (tmp_path / "out" / "nobody").exists()


def test_stopped_and_gone_on_with_it_is_as_if_nothing_had_been(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command([*words, f"--output_dir={tmp_path / 'whole'}"])
    calls: list[Any] = []

    def stopping(*asked: Any) -> list[Losses]:
        calls.append(asked)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return losses_in_one_pass(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(shared_pass, "losses_in_one_pass", stopping)
        run_command([*words, "--subjects_at_once=2"])
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"mia", "rex"}  # nothing of the third
    assert steps_logged(out / "rex") == [1, 2]
    run_command([*words, "--subjects_at_once=2", "--resume_from_checkpoint=latest"])
    for name in COLOURS:
        assert steps_logged(out / name) == [1, 2, 3]
        assert_alike(out / name, tmp_path / "whole" / name)


def test_a_stop_before_the_first_step_leaves_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shared_pass.SharedPass.join

    def join(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(shared_pass.SharedPass, "join", join)
    with pytest.raises(StoppedError, match="before the first step"):
        run_command(words)
    assert not (tmp_path / "out").exists()


def test_what_one_that_diverges_has_learned_is_kept(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def spoiled(*asked: Any) -> list[Losses]:
        calls.append(asked)
        losses = losses_in_one_pass(*asked)
        if len(calls) == 2:
            losses[1] = (losses[1][0] * torch.inf, None)
        return losses

    monkeypatch.setattr(shared_pass, "losses_in_one_pass", spoiled)
    with pytest.raises(SubjectsError, match=r"1 of 3 subjects.*\n  rex: the loss became inf"):
        run_command(words)
    out = tmp_path / "out"
    assert torch.equal(shifts(out / "rex"), shifts(out / "rex" / "checkpoint-1"))
    assert [steps_logged(out / name) for name in COLOURS] == [[1, 2, 3], [1], [1, 2, 3]]
    assert (out / "tom" / "before_after.png").exists()


def test_earlier_runs_are_not_overwritten(words: list[str], tmp_path: Path) -> None:
    earlier = tmp_path / "out" / "mia" / WEIGHTS_NAME
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"precious")
    with pytest.raises(SubjectsError, match=r"mia: .*holds the adapter of an earlier run"):
        run_command([*words, "--max_train_steps=1"])
    assert earlier.read_bytes() == b"precious"
    assert shifts(tmp_path / "out" / "tom").any()


# Lists


def test_entries_differ_in_what_they_say(words: list[str], photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "subjects.yaml"
    file.write_text(
        f"- {{name: rex, instance_data_dir: '{photos}/rex', instance_prompt: a photo of sks dog}}\n"
        f"- {{name: 7, instance_data_dir: '{photos}/tom', max_train_steps: 9, random_flip: true,\n"
        f"   learning_rate: 1e-2, validation_prompt: [a cat, two cats], output_dir: elsewhere}}\n"
    )
    found = parse_command([*words, f"--subjects={file}", "--subjects_at_once=4"])
    assert isinstance(found, SubjectList)
    assert found.at_once == 4
    rex, seven = found.configs["rex"], found.configs["7"]
    assert (rex.instance_prompt, rex.max_train_steps) == ("a photo of sks dog", 3)
    assert rex.output_dir == str(tmp_path / "out" / "rex")
    assert (seven.instance_prompt, seven.max_train_steps) == ("a photo of sks", 9)
    assert (seven.random_flip, seven.learning_rate) == (True, 0.01)
    assert (seven.validation_prompt, seven.output_dir) == (["a cat", "two cats"], "elsewhere")


REX = "{name: rex, instance_data_dir: a}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds 'None', expected a folder of photos for each subject"),
        ("[]", "holds no subjects"),
        ("rex: {}", "expected a folder of photos for each subject, or a YAML list"),
        ("- {", "cannot read the subjects"),
        (f"- {REX}\n- rex", "entry 2 is 'rex' without a name"),
        (
            f"- {REX}\n- {REX}",
            r"entry 2 \(rex\) and .*entry 1 \(rex\) are two subjects of one name",
        ),
        (f"- {REX}\n- {{name: REX, instance_data_dir: b}}", "are two subjects of one name, 'REX'"),
        ("- {name: ../rex, instance_data_dir: a}", "cannot be the name of a folder"),
        ("- {name: rex}", r"entry 1 \(rex\): --instance_data_dir is missing"),
        (
            "- {name: rex, instance_data_dir: a, learning_rat: 1}",
            r"entry 1 \(rex\) has no setting of a training in 'learning_rat'; did you mean lea",
        ),
        (
            "- {name: rex, instance_data_dir: a, learning_rate: fast}",
            r"entry 1 \(rex\): argument --learning_rate",
        ),
        (
            f"- {REX}\n- {{name: mia, instance_data_dir: b, rank: 2}}",
            r"'mia' has rank '2', the others of its pass the default",
        ),
        (
            "- {name: rex, instance_data_dir: a, output_dir: x}\n"
            "- {name: mia, instance_data_dir: b, output_dir: ./x}",
            "'rex' and 'mia' have one output_dir",
        ),
    ],
)
def test_lists_that_cannot_be_are_one_sentence(
    text: str, message: str, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "subjects.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse_command([*words, f"--subjects={file}"])


def test_words_that_do_not_go_with_several(words: list[str], tmp_path: Path) -> None:
    for own, message in (
        (["--subjects_at_once=0"], "at least 1, got 0"),
        ([f"--subjects={tmp_path / 'out'}"], "cannot read the subjects"),
        (["--hub_model_id=me/pets", "--push_to_hub"], "have one hub_model_id, 'me/pets'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_command([*words, *own])
    with pytest.raises(ConfigError, match="names several subjects, expected one"):
        parse_args(words)
