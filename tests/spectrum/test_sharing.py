"""Bases pushed to a hub and pulled from it, by people who trust the hub and by ones who do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damages import DAMAGES, change, other_format
from fake_hub import COMMIT, FakeHub
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

from svfit_diffusion import CacheError
from svfit_diffusion.spectrum import room
from svfit_diffusion.spectrum.basis import Basis
from svfit_diffusion.spectrum.basis_file import basis_path, write_basis
from svfit_diffusion.spectrum.cache import BaseWeights, load_bases, missing_bases, read_base
from svfit_diffusion.spectrum.sharing import Moved, pull_bases, push_bases
from svfit_diffusion.spectrum.stored import stored_bases

REPO = "me/bases"


def make_weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"square": (8, 8), "tall": (12, 8), "kernel": (6, 3, 3, 3)}
    return {name: torch.randn(s, generator=generator) for name, s in shapes.items()}


BASE, OTHER = read_base(make_weights()), read_base(make_weights(seed=1))


def compute(base: BaseWeights, cache: Path) -> Path:
    load_bases(base, show_progress=False, cache=cache)
    return cache


@pytest.fixture
def sender(tmp_path: Path) -> Path:
    """A cache with the bases of `BASE`."""
    return compute(BASE, tmp_path / "sender")


@pytest.fixture
def receiver(tmp_path: Path) -> Path:
    """A cache that does not exist yet."""
    return tmp_path / "receiver"


@pytest.fixture
def pushed(fake_hub: FakeHub, sender: Path) -> FakeHub:
    """A hub that has the bases of `BASE`."""
    push_bases(REPO, BASE, "some/base", cache=sender)
    return fake_hub


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def file_of(hub: FakeHub, layer: str) -> Path:
    return basis_path(hub.root / REPO / "bases", BASE.digests[layer])


def test_what_is_pushed_is_pulled_bit_for_bit(
    pushed: FakeHub, sender: Path, receiver: Path
) -> None:
    moved = pull_bases(REPO, cache=receiver)
    size = sum(path.stat().st_size for path in sender.iterdir())
    assert moved == Moved(files=3, size=size, present=0, flaws={})
    assert names(receiver) == names(sender)  # nothing beside them
    for name in names(sender):
        assert (receiver / name).read_bytes() == (sender / name).read_bytes()
        assert (receiver / name).stat().st_mode == (sender / name).stat().st_mode
    assert missing_bases(BASE, cache=receiver).weights == {}


def test_a_push_holds_the_bases_own_files_and_a_card(
    fake_hub: FakeHub, sender: Path, tmp_path: Path
) -> None:
    compute(OTHER, sender)
    (sender / "notes.txt").write_text("private")
    moved = push_bases(REPO, BASE, "some/base", private=True, token="secret", cache=sender)
    assert (moved.files, moved.flaws) == (3, {})
    own = {f"bases/{digest}.safetensors" for digest in BASE.digests.values()}
    assert fake_hub.files(REPO).keys() == own | {"README.md"}
    assert fake_hub.asked("create_repo")[0]["private"] is True
    assert all(kwargs["token"] == "secret" for _, kwargs in fake_hub.calls)
    assert len(fake_hub.asked("create_commit")) == 1
    card = ModelCard.load(fake_hub.files(REPO)["README.md"])
    assert card.data.base_model == "some/base"
    assert f"svfit basis pull {REPO} --base some/base" in card.text
    assert "svfit-basis-4" in card.text and f"{moved.size:,} bytes" in card.text


def test_a_local_base_is_no_link_to_the_hub(fake_hub: FakeHub, sender: Path) -> None:
    push_bases(REPO, BASE, str(sender), cache=sender)
    assert ModelCard.load(fake_hub.files(REPO)["README.md"]).data.base_model is None


def test_a_second_push_adds_and_leaves_the_card(pushed: FakeHub, sender: Path) -> None:
    card = pushed.files(REPO)["README.md"]
    card.write_text("written by hand")
    compute(OTHER, sender)
    assert push_bases(REPO, OTHER, "other/base", cache=sender).files == 3
    assert card.read_text() == "written by hand"
    assert len(pushed.files(REPO)) == 7


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_damaged_is_not_pushed(
    damage: Callable[[Path], None], fake_hub: FakeHub, sender: Path
) -> None:
    bad = basis_path(sender, BASE.digests["tall"])
    damage(bad)
    moved = push_bases(REPO, BASE, "some/base", cache=sender)
    assert moved.files == 2 and list(moved.flaws) == [bad.name]
    assert f"bases/{bad.name}" not in fake_hub.files(REPO)


def test_a_push_of_nothing_is_refused(fake_hub: FakeHub, sender: Path, receiver: Path) -> None:
    for base, cache in ((OTHER, sender), (BASE, receiver)):
        with pytest.raises(CacheError, match="no usable basis of some/base; compute them first"):
            push_bases(REPO, base, "some/base", cache=cache)
    assert fake_hub.calls == []


def test_only_what_is_missing_is_downloaded(pushed: FakeHub, receiver: Path) -> None:
    compute(BASE.only(["square"]), receiver)
    kept = basis_path(receiver, BASE.digests["square"])
    before = kept.stat()
    other_format(basis_path(compute(BASE.only(["tall"]), receiver), BASE.digests["tall"]))
    moved = pull_bases(REPO, cache=receiver)
    assert (moved.files, moved.present) == (2, 1)
    assert (kept.stat().st_ino, kept.stat().st_mtime) == (before.st_ino, before.st_mtime)
    assert missing_bases(BASE, cache=receiver).weights == {}
    moved = pull_bases(REPO, cache=receiver)
    assert (moved.files, moved.present, moved.size) == (0, 3, 0)
    assert len(pushed.asked("snapshot_download")) == 1


def test_with_a_base_only_its_files_are_downloaded(
    pushed: FakeHub, sender: Path, receiver: Path
) -> None:
    push_bases(REPO, OTHER, "other/base", cache=compute(OTHER, sender))
    assert pull_bases(REPO, OTHER, cache=receiver).files == 3
    assert {file.digest for file in stored_bases(receiver)} == set(OTHER.digests.values())
    (call,) = pushed.asked("snapshot_download")
    assert len(call["allow_patterns"]) == 3


def test_revision_and_token_reach_the_hub(pushed: FakeHub, receiver: Path) -> None:
    pushed.calls.clear()
    pull_bases(REPO, revision=COMMIT, token="secret", cache=receiver)
    assert all(kwargs["token"] == "secret" for _, kwargs in pushed.calls)
    assert pushed.asked("model_info")[0]["revision"] == COMMIT
    with pytest.raises(CacheError, match="no such revision"):
        pull_bases(REPO, revision="v9", cache=receiver)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("base", [None, BASE], ids=["unchecked", "checked"])
def test_what_is_damaged_is_named_and_left_out(
    damage: Callable[[Path], None], base: BaseWeights | None, pushed: FakeHub, receiver: Path
) -> None:
    bad = file_of(pushed, "tall")
    damage(bad)
    moved = pull_bases(REPO, base, cache=receiver)
    assert moved.files == 2 and list(moved.flaws) == [bad.name]
    assert names(receiver) == names(bad.parent) - {bad.name}


def test_a_file_that_is_something_else_is_named_and_left_out(
    pushed: FakeHub, receiver: Path
) -> None:
    bad = file_of(pushed, "tall")
    tensors = {name: tensor.clone() for name, tensor in load_file(bad).items()}
    bad.unlink()
    save_file(tensors, bad, {"format": "pt"})
    moved = pull_bases(REPO, cache=receiver)
    assert moved.files == 2 and "something else" in moved.flaws[bad.name]
    assert names(receiver) == names(bad.parent) - {bad.name}


def test_a_forgery_needs_the_base_to_be_found_and_is_then_replaced(
    pushed: FakeHub, sender: Path, receiver: Path
) -> None:
    digest = BASE.digests["square"]
    u, v = torch.eye(8).half(), torch.eye(8).half()
    write_basis(receiver, digest, Basis(u, v, torch.linspace(2, 1, 8)))
    forged = basis_path(receiver, digest)
    assert pull_bases(REPO, cache=receiver).present == 1
    assert pull_bases(REPO, BASE, cache=receiver).files == 1
    assert forged.read_bytes() == (sender / forged.name).read_bytes()
    # And the other way round: from the hub.
    write_basis(file_of(pushed, "square").parent, digest, Basis(u, v, torch.ones(8)))
    forged.unlink()
    moved = pull_bases(REPO, BASE, cache=receiver)
    assert moved.files == 0 and "residual" in moved.flaws[forged.name]
    assert not forged.exists()
    assert pull_bases(REPO, cache=receiver).files == 1


def test_names_that_lead_elsewhere_are_not_asked_for(pushed: FakeHub, receiver: Path) -> None:
    digest = next(iter(OTHER.digests.values()))
    content = file_of(pushed, "tall").read_bytes()
    for name in (f"{digest}.safetensors", f"bases/deep/{digest}.safetensors", "bases/[a-f]*"):
        path = pushed.root / REPO / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert pull_bases(REPO, cache=receiver).files == 3
    (call,) = pushed.asked("snapshot_download")
    assert sorted(call["allow_patterns"]) == sorted(
        f"bases/{own}.safetensors" for own in BASE.digests.values()
    )


def test_what_came_before_the_line_broke_is_kept(pushed: FakeHub, receiver: Path) -> None:
    pushed.fails_after = 2
    with pytest.raises(CacheError) as raised:
        pull_bases(REPO, cache=receiver)
    assert "the line is cut" in str(raised.value) and "second line" not in str(raised.value)
    assert len(stored_bases(receiver)) == 2 == len(names(receiver))
    pushed.fails_after = None
    moved = pull_bases(REPO, cache=receiver)
    assert (moved.files, moved.present) == (1, 2)


def test_a_disk_without_room_is_noticed_before_anything_is_downloaded(
    pushed: FakeHub, receiver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheError, match="100 bytes free"):
        pull_bases(REPO, cache=receiver)
    assert pushed.asked("snapshot_download") == [] and not receiver.exists()


def test_a_cache_that_cannot_be_written_is_an_error(pushed: FakeHub, tmp_path: Path) -> None:
    # A file where the folder should be: holds for root too, whom permissions do not stop.
    (tmp_path / "occupied").write_text("")
    with pytest.raises(NotADirectoryError, match="occupied"):
        pull_bases(REPO, cache=tmp_path / "occupied" / "cache")


def test_a_repository_without_such_bases_is_named(pushed: FakeHub, receiver: Path) -> None:
    with pytest.raises(CacheError, match="has 3 bases, but none of this base model's weights"):
        pull_bases(REPO, OTHER, cache=receiver)
    for path in (pushed.root / REPO / "bases").iterdir():
        path.unlink()
    with pytest.raises(CacheError, match="has no bases; expected files bases/<digest>"):
        pull_bases(REPO, cache=receiver)
    with pytest.raises(CacheError, match="the hub shows no repository 'me/absent'"):
        pull_bases("me/absent", cache=receiver)
    assert not receiver.exists()


def test_the_real_client_without_a_hub_is_one_sentence(sender: Path, receiver: Path) -> None:
    # HF_HUB_OFFLINE is set for all tests.
    with pytest.raises(CacheError, match="the hub was not reached for 'me/bases'") as raised:
        pull_bases(REPO, cache=receiver)
    assert "\n" not in str(raised.value)
    with pytest.raises(CacheError, match="the hub was not reached for 'me/bases'") as raised:
        push_bases(REPO, BASE, "some/base", cache=sender)
    assert "\n" not in str(raised.value)
    with pytest.raises(CacheError, match="'me bases' is no id of a repository"):
        pull_bases("me bases", cache=receiver)


def test_formats_to_come_are_left_out(pushed: FakeHub, receiver: Path) -> None:
    bad = file_of(pushed, "tall")
    change(bad, {"format": "svfit-basis-99"})
    moved = pull_bases(REPO, cache=receiver)
    assert moved.flaws == {bad.name: "not a basis file of this version"}
