"""Figures reach the page as SVG that takes its colour, whatever is drawn and in any thread."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure

from app import plots
from app.inspection import LayerShift, Split

SVG = "{http://www.w3.org/2000/svg}"


def shift(name: str = "mid.attn.to_q", length: int = 12) -> LayerShift:
    sigma = np.geomspace(3, 0.01, length).astype(np.float32)
    delta = np.linspace(-1, 1, length - 2).astype(np.float32)
    return LayerShift("unet", name, sigma, delta, length, float((sigma**2).sum()))


def maps() -> Split:
    whole = np.outer(np.arange(6.0), np.arange(4.0))[None]
    return Split(2, 4, whole, 0.9 * whole, 0.1 * whole)


FIGURES = {
    "curves": lambda: plots.training_curves([0.5, 0.4, 0.3], [0.0, 0.1, 0.2], 10),
    "first step": lambda: plots.training_curves([0.5], [0.0], 10),
    "values": lambda: plots.singular_values(shift()),
    "moved": lambda: plots.moved_layers([shift(), shift("up.0")]),
    "energy": lambda: plots.energy_by_rank([shift(), shift("up.0")], shift()),
    "maps": lambda: plots.weight_maps(maps()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_take_the_colour_of_the_page(name: str) -> None:
    svg = plots.to_svg(FIGURES[name](), "what it <shows> & means")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "what it <shows> & means"
    assert root.attrib["role"] == "img"
    assert "currentColor" in svg and plots.INK not in svg
    # Nothing black or white is left, which one of the two themes would swallow.
    assert not re.search(r"#(000000|ffffff)\b", svg)
    # A style element would hold for the whole page; browsers know links by this prefix alone.
    assert not list(root.iter(f"{SVG}style"))
    assert svg.count(":href=") == svg.count("xlink:href=")
    assert "height" not in root.attrib


def texts(figure: Figure) -> list[str]:
    root = ElementTree.fromstring(plots.to_svg(figure, ""))
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled(name: str) -> None:
    labels = [
        text for axes in FIGURES[name]().axes for text in (axes.get_xlabel(), axes.get_title())
    ]
    assert any(labels)


def test_names_are_text_and_nothing_else() -> None:
    names = ["a_$x^2$_b", "<script>alert(1)</script>"]
    shown = texts(plots.moved_layers([shift(name) for name in names]))
    for name in names:
        assert f"unet.{name}" in [text.strip() for text in shown]
    svg = plots.to_svg(plots.moved_layers([shift(names[1])]), names[1])
    assert "<script" not in svg


def test_energy_names_the_ranks_that_keep_so_much() -> None:
    sigma = np.array([3.0, 1.0, 0.1, 0.01], np.float32)  # energies 9, 1, 0.01, 0.0001
    chosen = LayerShift("unet", "x", sigma, sigma[:1], 4, 10.0101)
    shown = texts(plots.energy_by_rank([chosen], chosen))
    assert "90% with 2 of 4" in shown
    assert "99% with 2 of 4" in shown
    # Of a large weight the leading ones alone are known.
    leading = LayerShift("unet", "x", sigma[:2], sigma[:1], 50, 10.5)
    shown = texts(plots.energy_by_rank([leading, chosen], leading))
    assert "90% with 2 of 50" in shown
    assert not any(text.startswith("99% with") for text in shown)


def test_smoothing_is_a_mean_from_the_start() -> None:
    np.testing.assert_allclose(plots.smoothed([2.0] * 50), 2.0)
    values = plots.smoothed([1.0, 3.0], memory=0.5)
    np.testing.assert_allclose(values, [1.0, (0.5 * 1 + 3) / 1.5])
    assert plots.smoothed([]).shape == (0,)


def test_figures_are_drawn_from_any_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda name: plots.to_svg(FIGURES[name](), ""), [*FIGURES] * 3))
    assert all(svg.startswith("<svg") for svg in drawn)
