"""Fixtures: the app in service on a tiny base model, and a browser to visit it with.

`app_server` is one server for the whole session, with the random adapters of `ADAPTERS`; `page` is
a fresh visitor's browser page. Gradio and Playwright are imported only where a test asks for them.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from svfit_diffusion import inject, sigma_parameters
from svfit_diffusion.adapters.components import models_of

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

ADAPTERS = ("rex", "tom")
"""Adapters in the served library, which random shifts make visible."""

SECONDS = 60
"""How long a browser waits for anything quick."""
LONG = 240_000
"""How long it waits for trainings and large pictures, on a busy machine, in milliseconds."""


@dataclass(frozen=True)
class AppServer:
    """A running app.

    Attributes:
        url: its address.
        services: what its pages share.
        server: Gradio's application, with its routes.
    """

    url: str
    services: Any
    server: Any


def write_random_adapter(
    path: Path, seed: int, make_pipeline: Callable[[], Any] = tiny.make_tiny_pipeline
) -> Path:
    """Write a random adapter of a pipeline's denoiser and first text encoder; return the path."""
    pipe = make_pipeline()
    generator = torch.Generator().manual_seed(seed)
    for model in list(models_of(pipe).values())[:2]:
        inject(model, show_progress=False)
        for _, delta in sigma_parameters(model):
            delta.data = torch.randn(delta.shape, generator=generator) * 0.4
    written = pipe.save_svfit_weights(path.parent / "written")
    path.parent.mkdir(parents=True, exist_ok=True)
    return written.replace(path)


def wait_for_trainings() -> None:
    """Wait until no training runs or waits, of any app of this process."""
    for thread in threading.enumerate():
        if thread.name == "trainings":
            thread.join(LONG / 1000)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., AppServer]]:
    """Start an app on a tiny base model, with settings beyond the usual; closed in the end."""
    from app.pages.layout import build_app, launch_settings
    from app.services import build_services
    from app.settings import AppSettings

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    started = []

    def start(
        make_pipeline: Callable[[], Any] = tiny.make_tiny_pipeline, **settings: Any
    ) -> AppServer:
        folder = tmp_path_factory.mktemp("app")
        make_pipeline().save_pretrained(folder / "base")
        for seed, name in enumerate(ADAPTERS):
            write_random_adapter(folder / "adapters" / f"{name}.safetensors", seed, make_pipeline)
        services = build_services(
            AppSettings(
                base=str(folder / "base"),
                adapters=folder / "adapters",
                outputs=folder / "outputs",
                device="cpu",
                port=free_port(),
                **settings,
            )
        )
        app = build_app(services)
        server, url, _ = app.launch(prevent_thread_lock=True, **launch_settings(services))
        started.append((app, services))
        return AppServer(url, services, server)

    yield start
    for app, services in started:
        app.close()
        services.close()


@pytest.fixture(scope="session")
def app_server(serve: Callable[..., AppServer]) -> AppServer:
    """The app, in service until the session ends."""
    return serve()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; tests that need it are skipped, and say so loudly, where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _skip_browser_tests("playwright is not installed")
    with sync_playwright() as playwright:
        try:
            # Debian's, or else one that `playwright install chromium` has put there.
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        except Error as error:
            _skip_browser_tests(str(error).splitlines()[0])
        yield chromium
        chromium.close()


def expect(locator: Any) -> Any:
    """Playwright's assertions of what becomes true on a page, on a busy machine too."""
    from playwright.sync_api import expect as expect_of

    expect_of.set_options(timeout=1000 * SECONDS)
    return expect_of(locator)


def _skip_browser_tests(reason: str) -> None:
    message = f"NO BROWSER, so the pages of the app are NOT TESTED: {reason}"
    warnings.warn(message, stacklevel=1)
    pytest.skip(message)


@pytest.fixture
def visit(browser: Any, app_server: AppServer) -> Iterator[Callable[..., Any]]:
    """Open the app in a fresh browser session, `visit(width=390)` as on a phone."""
    contexts = []

    def open_page(width: int = 1280, url: str = app_server.url, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        context.set_default_timeout(1000 * SECONDS)
        page = context.new_page()
        page.goto(url)
        arrive(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit: Callable[..., Any]) -> Any:
    """The app in a fresh browser session."""
    return visit()


def arrive(page: Any) -> None:
    """Wait until the app can be used, after going there or coming back."""
    page.locator("#generate-go").wait_for()
    _see(page)


def open_tab(page: Any, name: str) -> None:
    """Choose a page of the app; on a phone, Gradio may keep it behind a button."""
    tab = page.get_by_role("tab", name=name)
    if tab.is_visible():
        tab.click()
    else:
        page.get_by_role("button", name="More tabs").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    _see(page)


def unfold(page: Any, section: str) -> None:
    """Open folded settings, by their selector, unless they are open."""
    button = page.locator(section).get_by_role("button", name="settings").first
    if "open" not in button.get_attribute("class").split():
        button.click()
        _see(page)


def choose(page: Any, field: str, option: str) -> None:
    """Choose in a dropdown, by its selector, and leave it as visitors do."""
    text = page.locator(f"{field} input")
    text.click()
    page.get_by_role("option", name=option, exact=True).click()
    text.blur()  # which closes the list where several can be chosen
    page.locator(field).get_by_role("listbox").wait_for(state="detached")


def chosen(page: Any, field: str) -> list[str]:
    """What a dropdown shows as chosen, by its selector."""
    texts: list[str] = page.locator(f"{field} .token").all_inner_texts()
    return texts or [page.locator(f"{field} input").input_value()]


def _see(page: Any) -> None:
    """Wait until what was opened can be seen: fields get their first values once more before that,
    and browsers that are told to, unlike people, fill in fields they have not seen.
    """
    page.evaluate(
        "() => new Promise(seen => requestAnimationFrame(() => requestAnimationFrame(seen)))"
    )
