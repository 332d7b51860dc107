"""An event loop for a test, whether or not a browser has one in this thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio


def run(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """What a coroutine function comes to."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, function, *args).result(120)
