"""A real headless Chromium."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Page, sync_playwright


@contextlib.contextmanager
def chromium(*, width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[tuple[Page, list[str]]]:
    """A page of Debian's Chromium that reaches loopback only, and what its console complains of."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            # The tests may run as root, and in a container with little shared memory.
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
            proxy={"server": "http://127.0.0.1:9", "bypass": "127.0.0.1"},
        )
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            is_mobile=width < 500,
        )
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        try:
            yield page, complaints
        finally:
            browser.close()
