"""A newcomer's first visit to the app: seconds to each first thing, and pictures of all pages.

    python -m benchmarks.first_visit [--subject NAME] [--quick] [--pictures FOLDER] [--docs]

The app is started as users start it, on the embedded base model, and visited by a browser that
knows nothing but what the pages say and unfolds nothing: a picture, a training on the photos that
the page offers, "Try it now", a comparison, an inspection; and on the way each page's mistakes.
Every state is photographed wide and narrow, light and dark, for people to look at. Needs the extra
`test` and a Chromium.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.report import ROOT, Row, print_table, write_report

LOOKS = {
    "wide_light": (1280, "light"),
    "wide_dark": (1280, "dark"),
    "phone_light": (390, "light"),
    "phone_dark": (390, "dark"),
}
"""Width of the window in pixels, and colours."""

SHOWN = {
    "generate_light": "generate_full_wide_light",
    "compare_dark": "compare_full_wide_dark",
    "train_after_light": "train_over_wide_light",
    "inspect_dark": "inspect_full_wide_dark",
}
"""The documentation's pictures, and which of a visit's they are."""

_HEIGHT = 844  # of the window
_SHOWN_HEIGHT = 1000  # of the documentation's pictures, at most
_PATIENCE = 1800 * 1000  # milliseconds, of whoever waits for a training
_FADE = 500  # milliseconds in which colours and bars come to rest

# Notes when the words of an element change.
_LISTEN = """selector => {
  const place = document.querySelector(selector), heard = [];
  let last = place.textContent.trim();
  const hear = () => {
    if (place.textContent.trim() !== last) {
      last = place.textContent.trim();
      heard.push([performance.now() / 1000, last]);
    }
  };
  new MutationObserver(hear).observe(place, {childList: true, characterData: true, subtree: true});
  window.heard = heard;
}"""


class Camera:
    """Photographs a page in all `LOOKS`.

    Args:
        page: the page, which looks as the first of them otherwise.
        folder: where the pictures go.
    """

    def __init__(self, page: Page, folder: Path) -> None:
        self._page = page
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, state: str) -> None:
        """Photograph the whole page, however long it is."""
        for look in LOOKS:
            self._dress(look)
            path = self._folder / f"{state}_{look}.png"
            self._page.screenshot(path=path, full_page=True)
        self._dress(next(iter(LOOKS)))

    def _dress(self, look: str) -> None:
        width, colours = LOOKS[look]
        self._page.set_viewport_size({"width": width, "height": _HEIGHT})
        self._page.emulate_media(color_scheme=colours)  # type: ignore[arg-type]
        self._page.wait_for_timeout(_FADE)


class Visit:
    """A visit, page by page.

    Args:
        page: the browser's, at the app.
        camera: of it.
        subject: what the newcomer calls the adapter.

    Attributes:
        rows: what was measured.
    """

    def __init__(self, page: Page, camera: Camera, subject: str) -> None:
        self._page = page
        self._camera = camera
        self._subject = subject
        self.rows: list[Row] = []

    def first_picture(self) -> None:
        """Press the button of the page that is open."""
        self._camera.take("generate_fresh")
        with self._timed("click to first picture"):
            self._generate()
        self._camera.take("generate_full")

    def train(self, quick: bool) -> None:
        """Train on the photos that the page offers, after the first mistake that it tells of."""
        page = self._page
        self._open("Train")
        self._camera.take("train_fresh")
        page.click("#train-go")
        page.locator("#train-drop .field-problem").wait_for()
        self._camera.take("train_error")
        page.click("#train-sample-photos")
        page.locator("#train-tiles .gallery-item").nth(4).wait_for()
        page.fill("#train-name textarea", self._subject)
        page.fill("#train-instance-prompt textarea", "a photo of sks bus")
        if quick:
            page.get_by_label("Quick").check()
        self._camera.take("train_filled")
        page.evaluate(_LISTEN, "#train-status")
        with self._timed("click to first trained subject"):
            page.click("#train-go")
            self._says("train", "step")
            self._camera.take("train_running")
            self._says("train", "is ready to use")
        heard = [at for at, _ in page.evaluate("window.heard")]
        silence = max((b - a for a, b in itertools.pairwise(heard)), default=0.0)
        self.rows.append({"what": "longest time without a new word", "seconds": silence})
        page.locator("#train-rows img").first.wait_for()
        self._camera.take("train_over")

    def try_it(self) -> None:
        """Follow "Try it now" to pictures of the subject."""
        self._page.click("#train-try")
        self._page.locator("#generate-go").wait_for()
        self._generate()
        self._camera.take("generate_own")
        self._page.fill("#generate-prompt textarea", "a photo of " * 100)
        self._page.click("#generate-go")
        self._page.locator("#generate-problem .problem").wait_for()
        self._camera.take("generate_error")

    def compare(self) -> None:
        """Draw the comparison that the page suggests, after one that cannot be."""
        page = self._page
        self._open("Compare")
        self._camera.take("compare_fresh")
        page.fill("#compare-x-values textarea", "strong")
        page.click("#compare-go")
        page.locator("#compare-problem .problem").wait_for()
        self._camera.take("compare_error")
        page.fill("#compare-x-values textarea", "0, 0.7, 1")
        with self._timed("click to a comparison of 6 pictures"):
            page.click("#compare-go")
            self._says("compare", "Done")
        page.locator("#compare-grid img").wait_for()
        self._camera.take("compare_full")

    def inspect(self) -> None:
        """See what there is to see of the adapter."""
        page = self._page
        with self._timed("click to an inspection"):
            self._open("Inspect")
            page.locator("#inspect-weight svg").wait_for()
        self._camera.take("inspect_full")

    def _generate(self) -> None:
        self._page.click("#generate-go")
        self._says("generate", "Done")
        self._page.locator("#generate-result img").first.wait_for()

    def _open(self, tab: str) -> None:
        self._page.get_by_role("tab", name=tab).click()

    def _says(self, page: str, words: str) -> None:
        self._page.locator(f"#{page}-status", has_text=words).wait_for(timeout=_PATIENCE)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.rows.append({"what": what, "seconds": time.perf_counter() - began})


@contextmanager
def app_in(folder: Path) -> Iterator[str]:
    """The app in service, with its files in a folder; its address."""
    words = ["--adapters", str(folder / "adapters"), "--outputs", str(folder / "outputs")]
    command = [sys.executable, "-m", "app", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            opened = next((line for line in server.stdout if line.startswith("Open ")), "")
            if not opened:
                raise SystemExit("the app did not start")
            yield opened.removeprefix("Open ").strip()
        finally:
            server.terminate()


def walk(pictures: Path, subject: str, quick: bool) -> tuple[list[Row], list[str]]:
    """The whole visit.

    Returns:
        What was measured, and what the browser complained of.
    """
    complaints: list[str] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as address:
        rows: list[Row] = [{"what": "start to ready", "seconds": time.perf_counter() - began}]
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            page = chromium.new_page()
            page.set_default_timeout(120_000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            opened = time.perf_counter()
            page.goto(address)
            page.locator("#generate-go").wait_for()
            rows.append({"what": "page to usable", "seconds": time.perf_counter() - opened})
            visit = Visit(page, Camera(page, pictures), subject)
            visit.first_picture()
            visit.train(quick)
            visit.try_it()
            visit.compare()
            visit.inspect()
            chromium.close()
    return rows + visit.rows, complaints


def renew_documentation(pictures: Path) -> None:
    """Put the pictures that the documentation shows in their place, small."""
    for name, state in SHOWN.items():
        with Image.open(pictures / f"{state}.png") as shot:
            top = shot.convert("RGB").crop((0, 0, shot.width, min(shot.height, _SHOWN_HEIGHT)))
            top.save(ROOT / "app" / "screenshots" / f"{name}.jpg", quality=80, optimize=True)


def main() -> None:
    """Visit, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subject", default="my bus", help="Name of the adapter.")
    parser.add_argument("--quick", action="store_true", help="The shortest training.")
    parser.add_argument("--pictures", type=Path, default=ROOT / "outputs" / "first_visit")
    parser.add_argument("--docs", action="store_true", help="Renew the documentation's pictures.")
    options = parser.parse_args()
    rows, complaints = walk(options.pictures, options.subject, options.quick)
    if options.docs:
        renew_documentation(options.pictures)
    print_table(rows, ["what", "seconds"])
    print("\n".join(complaints) or "The browser complained of nothing.")
    print(write_report("first_visit", rows, quick=options.quick, complaints=complaints))


if __name__ == "__main__":
    main()
