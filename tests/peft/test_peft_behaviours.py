"""SVFit behaves under PEFT as PEFT's own suites ask of a method (`peft_behaviours`)."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("peft_behaviours")

from peft_behaviours import BEHAVIOURS  # noqa: E402
from peft_kinds import KINDS  # noqa: E402

ALSO_OF_LLAMA = {
    "test_load_multiple_adapters",
    "test_merge_layers_multi",
    "test_mixed_adapter_batches",
    "test_requires_grad",
    "test_training_custom_models",
}
"""Its layers are those of others; these are about targets that PEFT finds by itself."""
CASES = [
    (name, kind)
    for name in BEHAVIOURS
    for kind in KINDS
    if kind != "Llama" or name in ALSO_OF_LLAMA
]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}-{kind}" for name, kind in CASES])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_behaviour(name: str, kind: str, tmp_path: Path) -> None:
    BEHAVIOURS[name](KINDS[kind], tmp_path)
