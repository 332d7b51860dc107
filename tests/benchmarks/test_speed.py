"""The speed benchmark: its arithmetic, its rows, its peers; nothing here depends on a clock."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from benchmarks import measuring, report, speed, speed_training
from benchmarks.architectures import sd15_unet, sdxl_unet, sharing_weights, unet_inputs
from benchmarks.methods import find_method
from benchmarks.speed_adapters import SWITCH, among, resident_memory_of, resident_rows
from benchmarks.speed_inference import random_adapter
from benchmarks.speed_methods import FLOOR, FULL, LORA, METHODS, SVFIT, AutogradRebuild, chosen
from benchmarks.speed_parallel import calculated_rows, lora_bytes, ring_seconds
from benchmarks.speed_rows import COLUMNS, Target, judged, make_row, timing_rows, value_rows
from benchmarks.speed_training import step_rows, training_step
from svfit_diffusion.adapters.targets import attention_layers
from svfit_diffusion.spectrum.solver import singular_basis

STEP = Target("group", "cpu", "step", "ours", 1.1, "peer")


def test_ratio_is_the_median_of_ratios_within_rounds() -> None:
    # Medians of 2 and 2 would say 1; round by round ours takes twice as long.
    ours, peer = timing_rows("step", {"ours": [2, 4, 2], "peer": [1, 2, 8]}, "peer")
    assert (ours["value"], ours["min"], ours["max"]) == (2, 2, 4)
    assert (ours["ratio"], ours["ratio_min"], ours["ratio_max"]) == (2, 0.25, 2)
    assert ours["rounds"] == 3
    assert peer["ratio"] == 1


def test_value_rows_compare_with_the_one_named() -> None:
    ours, _ = value_rows("memory", {"ours": 3.0, "peer": 2.0}, "MB", "peer", setting="tiny")
    assert (ours["value"], ours["ratio"], ours["setting"]) == (3.0, 1.5, "tiny")


@pytest.mark.parametrize(("ratio", "holds"), [(1.1, True), (1.11, False)])
def test_target_bounds_the_ratio_where_there_is_one(ratio: float, holds: bool) -> None:
    rows = [make_row("step", "ours", 100.0, "s", "peer", ratio)]
    assert [(row["target"], row["holds"]) for row in judged(rows, [STEP], "")] == [(1.1, holds)]


@pytest.mark.parametrize(("seconds", "holds"), [(12.0, True), (12.1, False)])
def test_target_bounds_the_value_where_nothing_is_compared(seconds: float, holds: bool) -> None:
    target = Target("load", "cpu", "load", "ours", 12)
    (row,) = judged([make_row("load", "ours", seconds, "s")], [target], "")
    assert row["holds"] is holds


def test_rows_without_a_target_are_left_alone() -> None:
    row = make_row("step", "ours", 1.0, "s", "floor", 9.0)
    assert judged([row], [STEP], "why")[0] == row


def test_target_without_a_row_becomes_a_row_with_a_reason() -> None:
    (row,) = judged([], [STEP], "out of memory")
    assert set(COLUMNS) <= set(row)
    assert (row["value"], row["holds"], row["reason"]) == (None, None, "out of memory")
    assert (row["what"], row["target"]) == ("step", 1.1)


def test_interleaved_calls_everything_once_a_round_and_starts_elsewhere_each_time() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = measuring.interleaved(calls, rounds=3, device="cpu")
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 3)


def test_peak_memory_sees_what_a_call_allocates_and_not_what_came_before() -> None:
    big = torch.ones(200 << 18)  # 200 MB
    del big

    def allocate() -> None:
        torch.ones(100 << 18)  # 100 MB

    measuring.trim_memory()
    before = measuring.memory_status()["VmRSS"]
    grown = measuring.peak_bytes_of(allocate, "cpu") - before
    assert 90e6 < grown < 150e6


def test_ring_formula() -> None:
    assert ring_seconds(1e9, 1, 1e9, 1e-3) == 0
    assert ring_seconds(1e9, 2, 1e9, 1e-3) == pytest.approx(1 + 2e-3)
    assert ring_seconds(1e9, 4, 1e9, 0) == pytest.approx(1.5)
    assert ring_seconds(0, 8, 1e9, 1e-3) == pytest.approx(14e-3)


def test_lora_bytes_are_those_of_its_trained_values() -> None:
    assert lora_bytes() == 4 * 1_594_368  # as `benchmarks/results/adapter_size.json` counts


def test_calculated_rows_say_so() -> None:
    rows = calculated_rows({SVFIT: 374_784, LORA: lora_bytes()})
    assert all("calculated" in row["what"] + row["setting"] for row in rows)
    ours = [row for row in rows if row["method"] == SVFIT]
    assert all(row["ratio_to"] == LORA and row["ratio"] < 1 for row in ours)


def test_sizes_of_the_real_architectures() -> None:
    with torch.device("meta"):
        small, large = sd15_unet(), sdxl_unet()
    assert sum(p.numel() for p in small.parameters()) == 859_520_964
    assert sum(p.numel() for p in large.parameters()) == 2_567_463_684
    assert (len(attention_layers(small)), len(attention_layers(large))) == (128, 560)


def test_copies_share_weights_and_nothing_else(tiny_unet: Any) -> None:
    copies = [sharing_weights({"unet": tiny_unet})["unet"] for _ in range(2)]
    for ours, theirs in zip(*(copy.parameters() for copy in copies), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
        assert ours is not theirs
    chosen(LORA)[0].adapt({"unet": copies[0]}, 1)
    assert copies[1].state_dict().keys() == tiny_unet.state_dict().keys()


def test_autograd_rebuild_against_a_dense_oracle() -> None:
    torch.manual_seed(0)
    weight, delta, x = torch.randn(6, 4), torch.randn(4), torch.randn(3, 4)
    rebuild = AutogradRebuild(singular_basis(weight))
    with torch.no_grad():
        rebuild.delta.copy_(delta)
    (x @ rebuild(weight).mT).square().sum().backward()

    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    dense = sigma + delta.double()
    dense.requires_grad_()
    output = x.double() @ (u @ torch.diag(dense) @ vh).mT
    output.square().sum().backward()
    torch.testing.assert_close(x @ rebuild(weight).mT, output.float())
    torch.testing.assert_close(rebuild.delta.grad, dense.grad.float(), rtol=1e-4, atol=1e-4)


def tiny_inputs(models: Any) -> dict[str, Any]:
    return unet_inputs(models["unet"], 2, tiny.LATENT_SIZE, "cpu", tiny.TEXT_LENGTH)


@pytest.fixture
def tiny_models(tiny_unet: Any, tiny_text_encoder: Any) -> dict[str, Any]:
    return {"unet": tiny_unet, "text_encoder": tiny_text_encoder}


@pytest.mark.parametrize("components", [("unet",), ("unet", "text_encoder")], ids=str)
def test_training_steps_of_all_methods_end_to_end(
    tiny_models: dict[str, Any], components: tuple[str, ...]
) -> None:
    models = {component: tiny_models[component] for component in components}
    inputs = tiny_inputs(models)
    methods = (*METHODS, find_method(FULL))
    rows = step_rows("tiny", models, methods, inputs, rounds=1, device="cpu")
    named = {(row["method"], row["ratio_to"]) for row in rows}
    assert named == set(itertools.product([m.name for m in methods], [LORA, FLOOR]))
    assert all(set(COLUMNS) <= set(row) and row["value"] > 0 for row in rows)
    assert "batch 2, 8×8 latents" in rows[0]["setting"]
    json.dumps(rows)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_step_trains_what_its_method_trains(tiny_models: dict[str, Any], method: Any) -> None:
    adapted = method.adapt(tiny_models, 1)
    before = [parameter.detach().clone() for parameter in adapted.parameters]
    training_step(tiny_models, adapted, tiny_inputs(tiny_models), "cpu")()
    changed = [
        not torch.equal(parameter, old)
        for parameter, old in zip(adapted.parameters, before, strict=True)
    ]
    # LoRA's A has no gradient while B is zero.
    assert sum(changed) >= len(changed) // 2


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_step_in_half_precision_as_on_a_gpu(
    tiny_models: dict[str, Any], method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        speed_training, "precision", lambda device: torch.autocast(device, torch.bfloat16)
    )
    half: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    adapted = []
    for copies in (sharing_weights(tiny_models) for _ in range(2)):
        adapted.append(method.adapt(copies, 1))
        speed_training.halve_frozen(copies, half)
        training_step(copies, adapted[-1], tiny_inputs(copies), "cpu")()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in adapted[0].parameters)
    assert copies["unet"].conv_in.weight.dtype == torch.bfloat16
    assert tiny_models["unet"].conv_in.weight.dtype == torch.float32
    assert half[tiny_models["unet"].conv_in.weight.data_ptr()] is not None


def test_floor_lets_gradients_flow_through_all_but_the_first_keys_and_values(
    tiny_models: dict[str, Any],
) -> None:
    without = set()

    def noting(path: str) -> Callable[..., None]:
        def note(layer: Any, args: Any, output: torch.Tensor) -> None:
            if not output.requires_grad:
                without.add(path)

        return note

    (floor,) = chosen(FLOOR)
    adapted = floor.adapt(tiny_models, 1)
    for model in tiny_models.values():
        for path, layer in attention_layers(model).items():
            layer.register_forward_hook(noting(path))
    training_step(tiny_models, adapted, tiny_inputs(tiny_models), "cpu")()
    expected = set()
    for model, (q, k, v) in zip(
        tiny_models.values(),
        (("to_q", "to_k", "to_v"), ("q_proj", "k_proj", "v_proj")),
        strict=True,
    ):
        first = next(path for path in attention_layers(model) if path.endswith(f".{q}"))
        expected |= {first.removesuffix(q) + name for name in (k, v)}
    assert without == expected
    assert not any(p.requires_grad for model in tiny_models.values() for p in model.parameters())


def test_random_adapter_loads(tiny_pipe: Any) -> None:
    models = {"unet": tiny_pipe.unet, "text_encoder": tiny_pipe.text_encoder}
    tiny_pipe.load_svfit_weights(random_adapter(models, seed=0), "a", show_progress=False)
    assert tiny_pipe.get_list_svfit_adapters() == {"unet": ["a"], "text_encoder": ["a"]}


def test_resident_adapters_are_counted_and_compared(tiny_pipe: Any) -> None:
    models = {"unet": tiny_pipe.unet, "text_encoder": tiny_pipe.text_encoder}
    rows = resident_rows(tiny_pipe, models, (2, 5), rounds=1, device="cpu")
    assert tiny_pipe.get_list_svfit_adapters()["unet"] == [f"a{number}" for number in range(5)]
    named = {row["what"]: row for row in rows}
    assert len(named) == len(rows) == 2 * 3 + 3
    switch = named[among(5, SWITCH)]
    assert switch["ratio_to"] == among(2, SWITCH)
    assert switch["ratio"] > 0
    assert resident_memory_of(5) in named


def fail(device: str, rounds: int) -> list[report.Row]:
    raise MemoryError("no room")


def make_nothing(device: str, rounds: int) -> list[report.Row]:
    return []


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "isolated", lambda function, *args: function(*args))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("measure", "reason"),
    [(fail, "MemoryError: no room"), (make_nothing, "the group made no such row")],
)
def test_failing_group_becomes_rows_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, measure: Any, reason: str
) -> None:
    monkeypatch.setitem(speed.GROUPS, "switch", speed.Group(measure))
    rows = speed.measure("switch", "cpu", 1)
    assert len(rows) == sum((t.group, t.device) == ("switch", "cpu") for t in speed.TARGETS) > 0
    assert {(row["value"], row["holds"], row["reason"]) for row in rows} == {(None, None, reason)}


@pytest.mark.usefixtures("in_process")
def test_failing_group_without_targets_is_still_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.GROUPS, "load_sdxl", speed.Group(fail))
    (row,) = speed.measure("load_sdxl", "cpu", 1)
    assert (row["what"], row["reason"]) == ("load_sdxl", "MemoryError: no room")


def die() -> None:
    os._exit(1)


def test_process_that_is_killed_raises_here() -> None:
    with pytest.raises(Exception, match="terminated abruptly"):
        measuring.isolated(die)


def test_every_target_belongs_to_a_group_on_its_device() -> None:
    for target in speed.TARGETS:
        assert target.device in speed.GROUPS[target.group].devices
    keys = [(t.group, t.device, t.what, t.method, t.ratio_to) for t in speed.TARGETS]
    assert len(set(keys)) == len(keys)


def test_what_a_run_leaves_out_stays_in_the_table() -> None:
    rows = speed.left_out(list(speed.GROUPS), ["train_step"], "cpu")
    reasons = {(row["group"], row["device"]): row["reason"] for row in rows}
    assert reasons["train_step_gpu", "cuda"] == "not measured: needs --device cuda"
    assert "--rows resident" in reasons["resident", "cpu"]
    assert ("train_step", "cpu") not in reasons
    assert all(row["value"] is None and row["holds"] is None for row in rows)


@pytest.mark.usefixtures("in_process")
def test_run_of_one_group_writes_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def one_row(device: str, rounds: int) -> list[report.Row]:
        return [make_row("step", "ours", 1.0, "s")]

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setitem(speed.GROUPS, "train_step_full", speed.Group(one_row))
    monkeypatch.setattr("sys.argv", ["speed", "--rows", "train_step_full", "--rounds", "2"])
    speed.main()
    written = json.loads((tmp_path / "speed_train_step_full.json").read_text())
    assert written["rounds"] == 2
    assert {"command", "commit", "versions", "machine"} <= set(written)
    (row,) = written["rows"]
    assert {*COLUMNS, "group", "device"} <= set(row)


def test_report_names_differ() -> None:
    assert speed.report_name("cpu", []) == "speed"
    assert speed.report_name("cuda", []) == "speed_cuda"
    assert speed.report_name("cuda", ["load"]) == "speed_cuda_load"
