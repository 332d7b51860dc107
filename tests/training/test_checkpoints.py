"""Checkpoints: nothing is believed unchecked, nothing whole is lost, and runs are told apart."""

from __future__ import annotations

import json
import logging
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import advance, make_trainer, shifts
from torch import Tensor

from svfit_diffusion.errors import CheckpointError
from svfit_diffusion.files.adapter import WEIGHTS_NAME, read_adapter
from svfit_diffusion.files.sums import write_sums
from svfit_diffusion.training import state
from svfit_diffusion.training.snapshot import take
from svfit_diffusion.training.state import (
    begin_run,
    check_settings,
    find_checkpoint,
    resume,
    save_checkpoint,
    tidy,
)
from svfit_diffusion.training.trainer import Trainer

TENSORS, RECORD, SUMS = "training_state.safetensors", "training_state.json", "SHA256SUMS"
RUNS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "everything": {
        "optimizer": "prodigy",
        "learning_rate": 1.0,
        "budget": 90,
        "use_ema": True,
        "train_text_encoder": True,
    },
}


@pytest.fixture(scope="module", params=RUNS)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Trainer]:
    """A checkpoint after three steps, and a trainer of the same run that stands at its start."""
    folder = tmp_path_factory.mktemp("checkpoints")
    path = save_checkpoint(make_trainer(folder, 3, **RUNS[request.param]), folder)
    return path, make_trainer(folder, **RUNS[request.param])


@pytest.fixture
def copied(saved: tuple[Path, Trainer], tmp_path: Path) -> tuple[Path, Trainer]:
    """The checkpoint as a copy that may be damaged."""
    return Path(shutil.copytree(saved[0], tmp_path / "checkpoint-3")), saved[1]


def standing(trainer: Trainer) -> Any:
    """All that a checkpoint may change in a trainer."""
    snapshot = take(trainer)
    tensors = {name: tensor.tolist() for name, tensor in snapshot.tensors.items()}
    parts = [tensors, snapshot.numbers, trainer.lr_scheduler.state_dict()]
    parts += trainer.optimizer.state_dict()["param_groups"]
    return trainer.run, repr([sorted(part.items()) for part in parts])


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_ends_where_one_without_a_break_does(run: str, tmp_path: Path) -> None:
    first = make_trainer(tmp_path, 3, **RUNS[run])
    folder = save_checkpoint(first, tmp_path)
    advance(first, 3)
    second = make_trainer(tmp_path, 1, **RUNS[run])  # which stands elsewhere
    resume(second, folder)
    assert second.run == first.run
    advance(second, 3)
    assert shifts(first).any() and standing(second) == standing(first)


def test_a_checkpoint_is_a_folder_that_others_can_check(saved: tuple[Path, Trainer]) -> None:
    folder, _ = saved
    names = {path.name for path in folder.iterdir()}
    assert names == {WEIGHTS_NAME, TENSORS, RECORD, SUMS}
    assert read_adapter(folder / WEIGHTS_NAME).parameter_count > 0
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=folder, check=True)


Edit = Callable[[dict[str, Tensor], dict[str, Any]], object]
MOMENT, SQUARES = "optimizer.3.exp_avg", "optimizer.3.exp_avg_sq"


def drop(entries: dict[str, Any], *starts: str) -> None:
    for name in [name for name in entries if name.startswith(starts)]:
        del entries[name]


EDITS: dict[str, tuple[Edit, str]] = {
    "NaN shift": (lambda t, n: t["delta.0"].fill_(math.nan), r"delta\.0 holds NaN"),
    "huge shift": (lambda t, n: t["delta.0"].fill_(3e38), r"delta\.0 holds values beyond"),
    "short shift": (lambda t, n: t.update({"delta.0": t["delta.0"][1:].clone()}), r"expected \("),
    "half shift": (lambda t, n: t.update({"delta.0": t["delta.0"].half()}), "float16, expected"),
    "complex shift": (lambda t, n: t.update({"delta.0": t["delta.0"] * 1j}), "complex64"),
    "no shift": (lambda t, n: drop(t, "delta.3"), r"delta\.3 is missing"),
    "one shift more": (lambda t, n: t.update({"delta.99": torch.ones(2)}), r"delta\.99 is unknown"),
    "NaN moment": (lambda t, n: t[MOMENT].fill_(math.nan), "exp_avg holds NaN"),
    "infinite moment": (lambda t, n: t[MOMENT][:1].fill_(math.inf), "exp_avg holds NaN or inf"),
    "other moment": (lambda t, n: t.update({MOMENT: torch.zeros(3)}), r"exp_avg is \(3,\)"),
    "no moment": (lambda t, n: drop(t, SQUARES), "exp_avg_sq is missing"),
    "negative squares": (lambda t, n: t[SQUARES].fill_(-1.0), "exp_avg_sq holds negative"),
    "number for a moment": (
        lambda t, n: (drop(t, SQUARES), n.update({SQUARES: 1.0})),
        "exp_avg_sq is a float, expected a Tensor",
    ),
    "step before the first": (lambda t, n: n.update(step=-5), "step is -5"),
    "step after the last": (lambda t, n: n.update(step=7), "step is 7, expected .* from 0 to 6"),
    "half a step": (lambda t, n: n.update(step=2.5), "step is 2.5"),
    "no step": (lambda t, n: drop(n, "step"), "step is missing"),
    "schedule ahead": (lambda t, n: n.update({"lr_scheduler.last_epoch": 4}), "last_epoch is 4"),
    "NaN rate": (lambda t, n: n.update({"group.0.lr": math.nan}), r"group\.0\.lr is nan"),
    "no rate": (lambda t, n: drop(n, "group.0.lr"), r"group\.0\.lr is missing"),
    "one beta": (lambda t, n: drop(n, "group.0.betas.1"), r"group\.0\.betas\.1 is missing"),
    "no groups": (lambda t, n: drop(n, "group."), r"group\.0\.lr is missing"),
    "one group more": (lambda t, n: n.update({"group.7.lr": 1.0}), r"group\.7\.lr is unknown"),
    "tensor for a rate": (
        lambda t, n: (drop(n, "group.0.lr"), t.update({"group.0.lr": torch.ones(())})),
        r"group\.0\.lr is a Tensor, expected a float",
    ),
}
LATE_EDITS: dict[str, tuple[Edit, str]] = {
    "negative importance": (lambda t, n: t["pruner.importance"].fill_(-1), "importance holds neg"),
    "other entries live": (lambda t, n: t.update({"pruner.live": torch.ones(3) > 0}), "live is"),
    "no live entries": (lambda t, n: drop(t, "pruner.live"), r"pruner\.live is missing"),
    "NaN mean": (lambda t, n: t["average.0"].fill_(math.nan), r"average\.0 holds NaN"),
    "mean ahead": (lambda t, n: n.update({"average.step": 4}), r"average\.step is 4"),
    "moment ahead": (lambda t, n: n.update({"optimizer.3.step": 4}), r"optimizer\.3\.step is 4"),
    "infinite d": (lambda t, n: n.update({"group.0.d": math.inf}), r"group\.0\.d is inf"),
}


def edit(folder: Path, change: Edit) -> None:
    """Change what a checkpoint holds; its checksums are right again."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
    record = json.loads((folder / RECORD).read_text())
    change(tensors, record["numbers"])
    (folder / TENSORS).unlink()
    save_file(tensors, folder / TENSORS)
    (folder / RECORD).write_text(json.dumps(record))
    sum_up(folder)


def sum_up(folder: Path) -> None:
    (folder / SUMS).unlink(missing_ok=True)
    write_sums(folder)


def assert_refused(trainer: Trainer, folder: Path, reason: str) -> None:
    before = standing(trainer)
    with pytest.raises(CheckpointError, match=reason) as caught:
        resume(trainer, folder)
    assert str(folder) in str(caught.value)
    assert standing(trainer) == before


@pytest.mark.parametrize("kind", [*EDITS, *LATE_EDITS])
def test_what_no_such_run_can_hold_is_refused_and_changes_nothing(
    kind: str, copied: tuple[Path, Trainer]
) -> None:
    folder, trainer = copied
    if kind in LATE_EDITS and trainer.pruner is None:
        pytest.skip("of a run with a budget and means")
    change, reason = (EDITS | LATE_EDITS)[kind]
    edit(folder, change)
    assert_refused(trainer, folder, reason)


def test_a_parameter_that_never_had_a_gradient_has_no_state(copied: tuple[Path, Trainer]) -> None:
    folder, trainer = copied
    start, before = save_checkpoint(trainer, folder.parent / "start"), standing(trainer)
    edit(folder, lambda t, n: (drop(t, "optimizer.3."), drop(n, "optimizer.3.")))
    resume(trainer, folder)
    state = trainer.optimizer.state_dict()["state"]
    assert trainer.step == 3 and 2 in state and 3 not in state
    resume(trainer, start)
    assert standing(trainer) == before


@pytest.mark.parametrize("name", [WEIGHTS_NAME, TENSORS, RECORD, SUMS])
@pytest.mark.parametrize("damage", ["flip", "cut", "blank", "gone", "empty"])
def test_damage_is_noticed_in_every_file(
    name: str, damage: str, copied: tuple[Path, Trainer]
) -> None:
    folder, trainer = copied
    path = folder / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "flip":
        content[middle] ^= 1
    elif damage == "cut":
        del content[-3:]
    elif damage == "blank":
        content[middle : middle + 64] = bytes(len(content[middle : middle + 64]))
    elif damage == "empty":
        content.clear()
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    assert_refused(trainer, folder, "incomplete" if damage == "gone" else "damaged|incomplete")


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no format": (lambda r: r.pop("format"), "another format"),
    "next format": (lambda r: r.update(format="svfit-checkpoint-3"), "another format"),
    "no run": (lambda r: r.pop("run"), "run 'None', expected str"),
    "seed of text": (lambda r: r.update(seed="0"), "seed '0', expected int"),
    "seed of logic": (lambda r: r.update(seed=True), "seed 'True', expected int"),
    "list of settings": (lambda r: r.update(settings=[]), "expected dict"),
    "number as fingerprint": (lambda r: r["fingerprints"].update(unet=3), "'unet' is no str"),
    "text as number": (lambda r: r["numbers"].update(step="3"), "'step' is no int or float"),
    "truth as number": (lambda r: r["numbers"].update(step=True), "'step' is no int or float"),
    "deep": (lambda r: r.update(settings=json.loads("[" * 500 + "]" * 500)), "nested more than"),
    "other base": (lambda r: r["fingerprints"].update(unet="ab" * 32), "another base model"),
    "other settings": (lambda r: r["settings"].update(learning_rate=7.0), "learning_rate: 7.0 in"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_what_this_version_writes(kind: str, copied: tuple[Path, Trainer]) -> None:
    folder, trainer = copied
    change, reason = RECORDS[kind]
    record = json.loads((folder / RECORD).read_text())
    change(record)
    (folder / RECORD).write_text(json.dumps(record))
    sum_up(folder)
    assert_refused(trainer, folder, reason)


def test_the_first_format_is_refused_with_what_is_still_good(copied: tuple[Path, Trainer]) -> None:
    folder, trainer = copied
    for name in (TENSORS, RECORD, SUMS):
        (folder / name).unlink()
    torch.save({"step": 3}, folder / "training_state.pt")
    assert_refused(trainer, folder, "first format.*its adapter .* as usable as ever")


# Which checkpoint is the latest


@pytest.fixture
def run(tmp_path: Path) -> Trainer:
    return make_trainer(tmp_path)


def save_at(trainer: Trainer, folder: Path, *steps: int, limit: int | None = None) -> None:
    for step in steps:
        trainer.stepper.step = step
        save_checkpoint(trainer, folder, limit)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint*"))


def test_the_latest_is_the_last_whole_one_and_others_are_named(
    run: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_checkpoint("latest", tmp_path) is None
    assert find_checkpoint("latest", tmp_path / "absent") is None
    save_at(run, tmp_path, 2, 9, 10, 11)
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-11"
    assert not caplog.records
    (tmp_path / "checkpoint-11" / TENSORS).unlink()
    (tmp_path / "checkpoint-10" / RECORD).write_text("{}")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-9"
    skipped = [record.getMessage() for record in caplog.records]
    assert all(message.startswith("Skipping") for message in skipped)
    assert [n for n in ("-1 ", "-10 ", "-11 ") if any(n in message for message in skipped)]
    assert len(skipped) == 3


def test_where_none_is_whole_nothing_begins_anew_by_itself(run: Trainer, tmp_path: Path) -> None:
    save_at(run, tmp_path, 2, 3)
    for path in tmp_path.glob("checkpoint-*"):
        (path / SUMS).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole(.|\n)*checkpoint-3"):
        find_checkpoint("latest", tmp_path)


def test_the_latest_is_never_of_an_earlier_run(run: Trainer, tmp_path: Path) -> None:
    begin_run(run, tmp_path)
    save_at(run, tmp_path, 2, 4, 6)
    first, run.run = run.run, "f" * 32  # another run, of the same settings
    begin_run(run, tmp_path)
    with pytest.raises(CheckpointError, match=rf"{first[:8]}: checkpoint-2, checkpoint-4, check"):
        find_checkpoint("latest", tmp_path)
    save_at(run, tmp_path, 2, 3)
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-3"
    assert find_checkpoint("checkpoint-6", tmp_path) == tmp_path / "checkpoint-6"
    resume(run, tmp_path / "checkpoint-6")
    assert run.run == first
    begin_run(run, tmp_path)  # the first one is gone on with
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-6"


@pytest.mark.parametrize("record", [None, "", "{", "[]", '{"run": 3}', "\udcff"])
def test_without_a_note_the_run_that_wrote_last_counts(
    record: str | None, run: Trainer, tmp_path: Path
) -> None:
    save_at(run, tmp_path, 4, 6)
    run.run = "f" * 32
    save_at(run, tmp_path, 2)
    if record is not None:
        (tmp_path / "training_run.json").write_bytes(record.encode("utf-8", "surrogateescape"))
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-2"


def test_going_on_from_an_earlier_step_leaves_later_ones_behind(
    run: Trainer, tmp_path: Path
) -> None:
    begin_run(run, tmp_path)
    save_at(run, tmp_path, 2, 4, 6)
    save_at(run, tmp_path, 3)
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-3"


def test_a_limit_is_one_on_what_the_run_itself_wrote(run: Trainer, tmp_path: Path) -> None:
    save_at(run, tmp_path, 50, 60)
    run.run = "f" * 32
    save_at(run, tmp_path, 1, 2, 3, limit=2)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in (2, 3, 50, 60)]
    save_at(run, tmp_path, 1, limit=1)  # the one just written is never too many
    assert names(tmp_path) == [f"checkpoint-{step}" for step in (1, 50, 60)]


def test_a_checkpoint_of_another_seed_or_setting_is_told(run: Trainer, tmp_path: Path) -> None:
    save_at(run, tmp_path, 2)
    other = make_trainer(tmp_path, seed=1, learning_rate=0.5)
    with pytest.raises(CheckpointError, match=r"seed: 0 in(.|\n)*learning_rate: 0\.05 in"):
        check_settings(other.config, tmp_path / "checkpoint-2")


# Processes that die


def test_a_process_that_dies_while_replacing_a_checkpoint_breaks_none(tmp_path: Path) -> None:
    trainer, folder = make_trainer(tmp_path, 1), tmp_path / "out"
    begin_run(trainer, folder)
    save_checkpoint(trainer, folder)
    advance(trainer, 1)
    save_checkpoint(trainer, folder)
    first = {path: path.read_bytes() for path in (folder / "checkpoint-1").iterdir()}
    resumed, wanted = make_trainer(tmp_path), shifts(trainer)
    count = 0
    for count in crash.moments(lambda: save_checkpoint(trainer, folder)):  # noqa: B007
        tidy(folder)
        assert {p.name for p in folder.iterdir()} == {"checkpoint-1", "checkpoint-2", state._RUN}
        assert find_checkpoint("latest", folder) == folder / "checkpoint-2"
        resume(resumed, folder / "checkpoint-2")
        assert torch.equal(shifts(resumed), wanted)
        assert {path: path.read_bytes() for path in first} == first
    assert count > 20
