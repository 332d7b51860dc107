"""What a newcomer is offered on each base model."""

from __future__ import annotations

import pytest

from app.first_steps import PLAIN_PROMPT, examples_for
from app.settings import SAMPLES, AppSettings
from svfit_diffusion.files.adapter import WEIGHTS_NAME


@pytest.mark.parametrize(
    ("base", "adapters"),
    [("toybox_flow", {"flow_blue_clock", "flow_blue_car"}), ("toybox", {"blue_car"})],
)
def test_an_embedded_base_begins_with_its_own_adapters(base: str, adapters: set[str]) -> None:
    assert all((SAMPLES / "adapters" / name / WEIGHTS_NAME).is_file() for name in adapters)
    at_hand = [path.name for path in (SAMPLES / "adapters").iterdir()]
    examples = examples_for(str(SAMPLES / base), at_hand)
    assert examples[0].adapter in adapters
    assert {example.adapter for example in examples} == {*adapters, None}


def test_without_its_adapters_or_on_another_base_prompts_need_none() -> None:
    for base, at_hand in ((AppSettings().base, []), ("another/base", ["flow_blue_clock"])):
        examples = examples_for(base, at_hand)
        assert examples[0].prompt == PLAIN_PROMPT
        assert not any(example.adapters for example in examples)


def test_one_deleted_adapter_takes_its_examples_along() -> None:
    examples = examples_for(AppSettings().base, ["flow_blue_car", "rex"])
    assert [example.adapter for example in examples[:2]] == ["flow_blue_car", None]
