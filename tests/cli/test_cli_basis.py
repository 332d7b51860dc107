"""`svfit basis …` on a tiny base model."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from damages import one_bit, other_format, truncate
from fake_hub import FakeHub
from safetensors.torch import save_file
from tiny import make_tiny_pipeline, save_tiny_pipeline
from typer.testing import CliRunner

from svfit_diffusion import CacheError, ConfigError, TargetError
from svfit_diffusion.adapters.config import SVFitConfig
from svfit_diffusion.cli.main import app
from svfit_diffusion.spectrum import room, solver
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.basis_file import read_basis, write_basis
from svfit_diffusion.spectrum.stored import stored_bases
from svfit_diffusion.training.subject import Subject

REPO = "me/bases"
UNET, TEXT_ENCODER = 32, 8
"""Projections of attention in the tiny base: 4 in each of 8 and of 2 attentions."""
TOTAL = UNET + TEXT_ENCODER
DAY = 24 * 60 * 60


def basis(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["basis", *map(str, words)])


def said(*words: str | Path) -> str:
    """The output of a command that succeeds."""
    result = basis(*words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def refused(kind: type[Exception], *words: str | Path) -> str:
    """The message of the error that a command ends with."""
    result = basis(*words)
    assert isinstance(result.exception, kind), result.output + repr(result.exception)
    return str(result.exception)


def values(output: str) -> dict[str, str]:
    """What `show` has printed, by label."""
    pairs = (line.split("  ", 1) for line in output.splitlines() if "  " in line)
    return {name.strip(): value.strip() for name, value in pairs}


@pytest.fixture(scope="module")
def computed(saved_pipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with what training on the tiny base shifts; read only."""
    folder = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVFIT_CACHE", str(folder))
        said("compute", saved_pipe)
    return folder


@pytest.fixture
def filled(computed: Path, empty_cache: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(computed, empty_cache))


@pytest.fixture
def no_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(matrix: Any) -> Basis:
        raise AssertionError(f"an SVD of {tuple(matrix.shape)}")

    monkeypatch.setattr(solver, "singular_basis", refuse)


def first(cache: Path) -> Path:
    return stored_bases(cache)[0].path


def count(cache: Path) -> int:
    return len(stored_bases(cache))


def forge(path: Path) -> None:
    """Other singular values, with the right checksum."""
    kept = read_basis(path, path.stem)
    write_basis(path.parent, path.stem, Basis(kept.u.clone(), kept.v.clone(), kept.sigma * 2))


def foreign_file(cache: Path) -> Path:
    """A model of someone who names files by their hash, and keeps them here."""
    path = cache / f"{'ab' * 32}.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    os.utime(path, (0, 0))
    return path


def test_help_names_the_commands() -> None:
    result = basis()
    for command in ("where", "compute", "verify", "prune", "push", "pull"):
        assert f"\n  {command} " in result.output


def test_where_an_empty_cache_is(empty_cache: Path) -> None:
    facts = json.loads(said("where", "--json"))
    assert facts["folder"] == str(empty_cache)
    assert facts["bases"] == facts["bytes"] == 0
    assert facts["bytes_free"] > 0
    assert not empty_cache.exists()


def test_where_counts_what_is_there(filled: Path) -> None:
    other_format(first(filled))
    leftover = filled / f".{'ab' * 32}.safetensors.abcd1234.tmp"
    leftover.write_bytes(b"x" * 10)
    os.utime(leftover, (0, 0))
    foreign_file(filled)
    facts = json.loads(said("where", "--json"))
    own = [file.size for file in stored_bases(filled)]
    assert (facts["bases"], facts["bytes"]) == (TOTAL, sum(own))
    assert facts["bytes_of_older_formats"] == first(filled).stat().st_size
    assert facts["bytes_of_interrupted_writes"] == 10
    assert values(said("where"))["bases"] == str(TOTAL)


def test_the_doctor_knows_the_cache(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_file(filled)
    assert f"{filled} (40 bases, " in CliRunner().invoke(app, ["doctor"]).output
    (filled / "file").touch()
    monkeypatch.setenv("SVFIT_CACHE", str(filled / "file"))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0 and "CANNOT BE READ" in result.output


def test_training_finds_what_was_computed_ahead(
    empty_cache: Path, saved_pipe: Path, request: pytest.FixtureRequest
) -> None:
    facts = values(said("compute", saved_pipe))
    assert facts["computed"] == facts["layers"] == str(TOTAL)
    assert facts["there already"] == "0"
    size = sum(path.stat().st_size for path in empty_cache.iterdir())
    assert facts["bytes"] == f"{size:,}"
    request.getfixturevalue("no_svd")
    pipe = make_tiny_pipeline()
    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    Subject(models, SVFitConfig(), torch.device("cpu"), show_progress=False)
    facts = values(said("compute", saved_pipe))
    assert (facts["computed"], facts["there already"], facts["bytes"]) == ("0", "40", "0")


def test_targets_and_text_encoders_are_chosen_as_in_training(
    empty_cache: Path, saved_pipe: Path
) -> None:
    said("compute", saved_pipe, "--no_train_text_encoder", "--target", "to_q", "--target=to_v")
    assert count(empty_cache) == UNET // 2
    facts = values(said("compute", saved_pipe, "--no_train_text_encoder"))
    assert (facts["there already"], facts["computed"]) == ("16", "16")
    assert "matches no" in refused(TargetError, "compute", saved_pipe, "--target", "nonesuch")


def test_a_rank_is_kept_until_a_higher_one_comes(empty_cache: Path, saved_pipe: Path) -> None:
    words = ("compute", saved_pipe, "--no_train_text_encoder", "--rank")
    few, layers = values(said(*words, "4")), count(empty_cache)
    assert few["computed"] == str(layers)
    assert values(said(*words, "3"))["computed"] == "0"
    more = values(said(*words, "8"))
    assert more["computed"] == str(layers) == str(count(empty_cache))
    size = {rank: int(told["bytes"].replace(",", "")) for rank, told in ((4, few), (8, more))}
    assert size[4] < size[8] <= 2 * size[4]
    assert values(said(*words, "1.0"))["computed"] == str(layers)
    assert values(said(*words, "8"))["computed"] == "0"
    assert "rank 65 exceeds the 64" in refused(ConfigError, *words, "65")
    assert "fraction" in refused(ConfigError, *words, "all")


def test_only_what_is_damaged_or_gone_is_computed_again(filled: Path, saved_pipe: Path) -> None:
    files = stored_bases(filled)
    truncate(files[0].path)
    files[1].path.unlink()
    assert values(said("compute", saved_pipe))["computed"] == "2"
    assert stored_bases(filled)[2:] == files[2:]


def test_a_disk_without_room_is_noticed_before_anything_is_computed(
    empty_cache: Path, saved_pipe: Path, no_svd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    message = refused(CacheError, "compute", saved_pipe)
    assert "KiB" in message and "1000 bytes free" in message and str(empty_cache) in message


def test_a_cache_that_cannot_be_written_is_an_error(
    tmp_path: Path, saved_pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the folder should be: holds for root too, whom permissions do not stop.
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("SVFIT_CACHE", str(tmp_path / "occupied" / "cache"))
    assert "40 of 40 bases were computed" in refused(CacheError, "compute", saved_pipe)
    assert "occupied" in refused(NotADirectoryError, "where")


def test_a_device_that_is_none_is_refused(empty_cache: Path, saved_pipe: Path) -> None:
    assert "--device abacus" in refused(ConfigError, "compute", saved_pipe, "--device", "abacus")
    assert "--device abacus" in refused(ConfigError, "verify", "--device", "abacus")


def test_a_base_that_is_none_is_refused(filled: Path, tmp_path: Path) -> None:
    for words in (
        ["compute", tmp_path],
        ["verify", tmp_path],
        ["prune", "--base", tmp_path],
        ["push", tmp_path, REPO],
        ["pull", REPO, "--base", tmp_path],
    ):
        assert "cannot load base model" in refused(ConfigError, *words)
    assert count(filled) == TOTAL


def test_a_sound_cache_is_verified(filled: Path, saved_pipe: Path, tmp_path: Path) -> None:
    other = save_tiny_pipeline(tmp_path / "other", seed=7)
    assert said("verify") == "40 bases: 0 bad\n"
    assert said("verify", saved_pipe) == "40 bases, 40 of them of this base: 0 bad\n"
    assert said("verify", other) == "40 bases, 0 of them of this base: 0 bad\n"


def test_bad_files_are_listed_until_they_are_removed(filled: Path) -> None:
    bad = [file.path for file in stored_bases(filled)[:2]]
    truncate(bad[0])
    one_bit(bad[1])
    foreign = foreign_file(filled)
    result = basis("verify")
    assert result.exit_code == 1
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [
        bad[0].name,
        bad[1].name,
        "40 bases",
    ]
    assert "the checksum is wrong" in result.stdout
    assert all(path.exists() for path in bad)
    assert said("verify", "--remove").endswith("40 bases: 2 bad, removed\n")
    assert said("verify", "--remove") == "38 bases: 0 bad\n"
    assert not any(path.exists() for path in bad) and foreign.exists()


def test_vectors_are_checked_against_the_base(
    filled: Path, saved_pipe: Path, tmp_path: Path
) -> None:
    forge(first(filled))
    other = save_tiny_pipeline(tmp_path / "other", seed=7)
    assert basis("verify").exit_code == basis("verify", other).exit_code == 0
    result = basis("verify", saved_pipe)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{first(filled).name}: residual of its vectors")
    assert said("verify", saved_pipe, "--remove").endswith("1 bad, removed\n")
    assert values(said("compute", saved_pipe))["computed"] == "1"


def test_removal_that_fails_is_an_error(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truncate(first(filled))

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    for words in (["verify", "--remove"], ["prune", "--all"]):
        assert first(filled).name in refused(PermissionError, *words)


@pytest.mark.parametrize(
    "words", [[], ["--all", "--unused_for", "3"], ["--all", "--base", "x"], ["--dry_run"]]
)
def test_one_criterion_is_needed(words: list[str], filled: Path) -> None:
    message = refused(ConfigError, "prune", *words)
    assert "one of --base, --unused_for and --all" in message
    assert count(filled) == TOTAL


def test_all_is_pruned_and_nothing_else(filled: Path) -> None:
    foreign = foreign_file(filled)
    (filled / "notes.txt").write_text("mine")
    target = filled.parent / "elsewhere.safetensors"
    target.write_bytes(first(filled).read_bytes())
    link = filled / f"{'cd' * 32}.safetensors"
    link.symlink_to(target)
    size = sum(file.size for file in stored_bases(filled))
    result = said("prune", "--all", "--dry_run")
    assert result.count(".safetensors\n") == TOTAL == count(filled)
    assert f"would remove 40 bases and 0 leftovers, {size:,} bytes" in result
    assert said("prune", "--all") == f"removed 40 bases and 0 leftovers, {size:,} bytes\n"
    assert set(filled.iterdir()) == {foreign, filled / "notes.txt", link}
    assert target.exists()


def test_what_was_not_used_for_days_is_pruned(filled: Path, saved_pipe: Path) -> None:
    for file in stored_bases(filled):
        then = time.time() - 40 * DAY
        os.utime(file.path, (then, then))
    said("where")
    said("verify")
    said("compute", saved_pipe, "--no_train_text_encoder")  # reads what is there
    assert f"removed {TEXT_ENCODER} bases" in said("prune", "--unused_for", "30")
    assert count(filled) == UNET
    assert "removed 0 bases" in said("prune", "--unused_for", "0.5")
    assert f"removed {UNET} bases" in said("prune", "--unused_for", "0")


def test_the_bases_of_a_base_are_pruned(filled: Path, saved_pipe: Path, tmp_path: Path) -> None:
    other = save_tiny_pipeline(tmp_path / "other", seed=7)
    said("compute", other, "--target", "all")  # more than attention
    more = count(filled) - UNET - TEXT_ENCODER
    assert f"removed {more} bases" in said("prune", "--base", other)
    assert said("verify", saved_pipe).startswith("40 bases, 40 of them")


def test_old_formats_and_leftovers_go_with_every_prune(filled: Path) -> None:
    old = first(filled)
    other_format(old)
    leftover, folder, fresh = (
        filled / f".{'ab' * 32}.safetensors.abcd1234.tmp",
        filled / ".pull.abcd1234.tmp",
        filled / f".{'cd' * 32}.safetensors.abcd1234.tmp",
    )
    (folder / "bases").mkdir(parents=True)
    leftover.touch()
    fresh.touch()
    for path in (leftover, folder / "bases", folder):
        os.utime(path, (0, 0))
    assert "removed 1 bases and 2 leftovers" in said("prune", "--unused_for", "30")
    assert not old.exists() and not leftover.exists() and not folder.exists()
    assert fresh.exists() and count(filled) == TOTAL - 1


def test_a_cache_that_is_gone_is_empty(filled: Path) -> None:
    shutil.rmtree(filled)
    assert said("verify") == "0 bases: 0 bad\n"
    assert said("prune", "--all") == "removed 0 bases and 0 leftovers, 0 bytes\n"


def test_one_pushes_and_another_pulls(
    filled: Path, saved_pipe: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = values(said("push", saved_pipe, REPO, "--token", "secret", "--private"))
    assert facts[f"pushed to {REPO}"] == "40" and facts["left out"] == "0"
    assert fake_hub.asked("create_repo") == [{"exist_ok": True, "private": True, "token": "secret"}]
    other = filled.parent / "other-cache"
    monkeypatch.setenv("SVFIT_CACHE", str(other))
    output = said("pull", REPO)
    assert values(output)[f"pulled from {REPO}"] == "40"
    assert output.endswith("not checked against weights: svfit basis verify BASE does that\n")
    assert {path.name for path in other.iterdir()} == {path.name for path in filled.iterdir()}
    facts = values(said("pull", REPO, "--revision", "main", "--base", saved_pipe))
    assert facts[f"pulled from {REPO}"] == "0" and facts["there already"] == "40"


def test_bad_ones_of_the_hub_are_named(
    filled: Path, saved_pipe: Path, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    said("push", saved_pipe, REPO)
    forged, damaged = sorted((fake_hub.root / REPO / "bases").iterdir())[:2]
    forge(forged)
    one_bit(damaged)
    monkeypatch.setenv("SVFIT_CACHE", str(filled.parent / "other-cache"))
    output = said("pull", REPO, "--base", saved_pipe)
    assert f"{forged.name}: residual" in output and f"{damaged.name}: the checksum" in output
    assert values(output)["left out"] == "2" and "not checked" not in output
    assert count(filled.parent / "other-cache") == TOTAL - 2


def test_a_hub_that_is_not_reached_is_one_sentence(filled: Path, saved_pipe: Path) -> None:
    # HF_HUB_OFFLINE is set for all tests, and the hub is the real one.
    for words in (["pull", REPO], ["push", saved_pipe, REPO]):
        message = refused(CacheError, *words)
        assert "the hub was not reached for 'me/bases'" in message and "\n" not in message
