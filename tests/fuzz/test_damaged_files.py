"""Whatever becomes of a file: it is refused in words of ours, or does no harm.

In CI the same examples each time; `make fuzz` tries others for an hour. What was once taken wrongly
is kept in `corpus/<target>/<case>/`, and tried as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples import share
from hypothesis import given
from hypothesis import strategies as st
from targets import CORPUS, TARGETS, Adapters, CacheFiles, Checkpoints, Pictures, Target

CASES = {type_.__name__: type_ for type_ in TARGETS}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """What is refused is warned of, thousands of times."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Target], Target]:
    made: dict[type[Target], Target] = {}
    for kind in TARGETS:
        made[kind] = kind(tmp_path_factory.mktemp(kind.__name__))
    return made


@share(100)
@given(data=st.data())
def test_adapters(targets: dict[type[Target], Target], data: st.DataObject) -> None:
    targets[Adapters].check(data.draw(targets[Adapters].damages()))


@share(150)
@given(data=st.data())
def test_cache_files(targets: dict[type[Target], Target], data: st.DataObject) -> None:
    targets[CacheFiles].check(data.draw(targets[CacheFiles].damages()))


@share(60)
@given(data=st.data())
def test_checkpoints(targets: dict[type[Target], Target], data: st.DataObject) -> None:
    targets[Checkpoints].check(data.draw(targets[Checkpoints].damages()))


@share(200)
@given(data=st.data())
def test_pictures(targets: dict[type[Target], Target], data: st.DataObject) -> None:
    targets[Pictures].check(data.draw(targets[Pictures].damages()))


@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_not_damaged_is_accepted(
    kind: type[Target], targets: dict[type[Target], Target]
) -> None:
    assert targets[kind].check(targets[kind].good)


@pytest.mark.parametrize(
    "case", sorted(CORPUS.glob("*/*")), ids=lambda case: f"{case.parent.name}-{case.name}"
)
def test_what_was_once_taken_wrongly(case: Path, targets: dict[type[Target], Target]) -> None:
    damaged = {path.name: path.read_bytes() for path in case.iterdir()}
    assert not targets[CASES[case.parent.name]].check(damaged)
