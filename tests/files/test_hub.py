"""The model card and the upload, against a hub that only writes down what it is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from svfit_diffusion.files import hub
from svfit_diffusion.files.adapter import WEIGHTS_NAME
from svfit_diffusion.files.metadata import AdapterMetadata

METADATA = AdapterMetadata(base_model="some/base", instance_prompt='a photo of "sks" dog: big')


@pytest.mark.parametrize("pictured", [False, True])
def test_model_card_is_valid_and_complete(tmp_path: Path, pictured: bool) -> None:
    if pictured:
        (tmp_path / hub.PICTURE_NAME).touch()
    card = ModelCard.load(hub.write_model_card(tmp_path, "me/rex", METADATA, 12345))
    assert card.data.base_model == "some/base"
    assert card.data.get("instance_prompt") == METADATA.instance_prompt
    assert "svfit" in (card.data.tags or [])
    assert 'pipe.load_svfit_weights("me/rex")' in card.text
    assert "12,345" in card.text
    assert (hub.PICTURE_NAME in card.text) == pictured


def test_local_base_is_no_hub_link(tmp_path: Path) -> None:
    metadata = AdapterMetadata(base_model=str(tmp_path), instance_prompt="a photo of sks dog")
    assert (
        ModelCard.load(hub.write_model_card(tmp_path, "rex", metadata, 1)).data.base_model is None
    )


def test_push_uploads_the_adapter_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class Address(str):
        repo_id = "me/rex"

    monkeypatch.setattr(hub, "create_repo", lambda *_, **__: Address("https://hub/me/rex"))
    monkeypatch.setattr(hub, "upload_folder", lambda **kwargs: calls.append(kwargs))
    assert hub.push_adapter(tmp_path, "rex", "secret") == "https://hub/me/rex"
    (call,) = calls
    assert SimpleNamespace(**call).repo_id == "me/rex"
    assert WEIGHTS_NAME in call["allow_patterns"]
    assert not any(
        "checkpoint" in pattern or "class" in pattern for pattern in call["allow_patterns"]
    )
