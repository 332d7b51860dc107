"""Whatever becomes of a file: it is refused in words of ours, or does no harm.

In CI the same examples each time; `make fuzz` tries others for an hour. What was once taken wrongly
is kept in `corpus/<target>/<case>/`, and tried as well.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from examples import share
from hypothesis import given
from hypothesis import strategies as st
from targets import (
    CORPUS,
    TARGETS,
    Adapters,
    CacheFiles,
    Checkpoints,
    PeftFolders,
    Pictures,
    Records,
    Target,
)

MakeTarget = Callable[[type[Target]], Target]
CASES = {type_.__name__: type_ for type_ in TARGETS}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """What is refused is warned of, thousands of times."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> MakeTarget:
    """Makes a target, or gives the one it has made."""
    return functools.cache(lambda kind: kind(tmp_path_factory.mktemp(kind.__name__)))


@share(100)
@given(data=st.data())
def test_adapters(target: MakeTarget, data: st.DataObject) -> None:
    own = target(Adapters)
    own.check(data.draw(own.damages()))


@share(150)
@given(data=st.data())
def test_cache_files(target: MakeTarget, data: st.DataObject) -> None:
    own = target(CacheFiles)
    own.check(data.draw(own.damages()))


@share(60)
@given(data=st.data())
def test_checkpoints(target: MakeTarget, data: st.DataObject) -> None:
    own = target(Checkpoints)
    own.check(data.draw(own.damages()))


@share(200)
@given(data=st.data())
def test_pictures(target: MakeTarget, data: st.DataObject) -> None:
    own = target(Pictures)
    own.check(data.draw(own.damages()))


@share(25)
@given(data=st.data())
def test_peft_folders(target: MakeTarget, data: st.DataObject) -> None:
    own = target(PeftFolders)
    own.check(data.draw(own.damages()))


@share(50)
@given(data=st.data())
def test_records(target: MakeTarget, data: st.DataObject) -> None:
    own = target(Records)
    own.check(data.draw(own.damages()))


@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_not_damaged_is_accepted(kind: type[Target], target: MakeTarget) -> None:
    assert target(kind).check(target(kind).good)


@pytest.mark.parametrize(
    "case", sorted(CORPUS.glob("*/*")), ids=lambda case: f"{case.parent.name}-{case.name}"
)
def test_what_was_once_taken_wrongly(case: Path, target: MakeTarget) -> None:
    damaged = {path.name: path.read_bytes() for path in case.iterdir()}
    assert not target(CASES[case.parent.name]).check(damaged)
