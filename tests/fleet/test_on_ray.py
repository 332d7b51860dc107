"""A fleet on Ray's own processes, one of which is killed in the middle of a step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from left_by_runs import shifts, steps_logged
from tiny_training import make_config

from svfit_diffusion.fleet import crew
from svfit_diffusion.fleet.driver import Died, Finished, Fleet
from svfit_diffusion.fleet.settings import FleetSettings
from svfit_diffusion.fleet.subjects import FleetSubject
from svfit_diffusion.fleet.worker import Worker
from svfit_diffusion.training import shared_pass
from svfit_diffusion.training.objective import losses_in_one_pass
from svfit_diffusion.training.run import train


class Mortal(Worker):
    """Is killed in the third step that it makes, unless that has happened before."""

    def train(self, pack: Sequence[FleetSubject]) -> dict[str, str]:
        steps = 0

        def losses(*asked: Any) -> Any:
            nonlocal steps
            steps += 1
            grave = Path(pack[0].config.instance_data_dir).parent / "grave"
            if steps == 3 and not grave.exists():
                grave.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return losses_in_one_pass(*asked)

        shared_pass.losses_in_one_pass = losses
        return super().train(pack)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, whose workers know what is defined here."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def test_a_killed_worker_costs_the_steps_since_a_checkpoint(
    cluster: None, saved_pipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "Worker", Mortal)
    common: dict[str, Any] = {
        "pretrained_model_name_or_path": str(saved_pipe),
        "resolution": 16,
        "checkpointing_steps": 1,
    }
    steps = {"rex": 2, "mia": 4, "tom": 1}
    subjects = [
        FleetSubject(name, make_config(tmp_path, **common, seed=seed, max_train_steps=steps[name]))
        for seed, name in enumerate(steps)
    ]
    out = tmp_path / "out"
    settings = FleetSettings(
        str(out), cpus_per_worker=1, subjects_per_pass=2, scratch=str(tmp_path / "scratch")
    )
    news = list(Fleet(subjects, settings).news())
    (died,) = (one for one in news if isinstance(one, Died))
    assert died.names == ["mia"]  # rex was done by then
    assert "died" in died.reason
    done = {one.name: one.record for one in news if isinstance(one, Finished)}
    assert {name: (own["steps"], own["begun"]) for name, own in done.items()} == {
        "rex": (2, 1),
        "mia": (4, 2),
        "tom": (1, 1),
    }
    for name, last in steps.items():
        assert steps_logged(out / name) == list(range(1, last + 1))
    alone = train(replace(subjects[1].config, output_dir=str(tmp_path / "alone")))
    expected = shifts(alone)
    # To rounding, as tests/training/test_several_subjects.py has it.
    assert (shifts(out / "mia") - expected).norm() <= 1e-3 * expected.norm() > 0
    assert not list((tmp_path / "scratch").glob("*/runs/*/checkpoint-4"))
    # The same again has nothing to do.
    assert not list(Fleet(subjects, settings).news())
