"""A headless Chromium for the tests that look at pages as people do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver import Chrome

PATIENCE = 120
"""Seconds for whatever a page does; a busy machine takes its time."""

# Without the last five, Chromium calls home when it starts.
OPTIONS = (
    "--headless=new",
    "--window-size=1360,1500",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
"""WebGL without a GPU, which Model Explorer needs. What else a page shows takes longer so."""
WITHOUT_WEBGL = ("--disable-gpu",)


@contextlib.contextmanager
def chromium(*, webgl: bool = False) -> Iterator[Chrome]:
    """Starts the browser; its network requests and console are logged."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("there is no Chromium (Debian: chromium and chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*OPTIONS, *(WEBGL if webgl else WITHOUT_WEBGL)):
        options.add_argument(option)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def waited(driver: Chrome, condition: Callable[[], bool]) -> None:
    """Waits for what the page is about to do."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, PATIENCE).until(lambda _: condition())


def console(driver: Chrome) -> list[str]:
    """What the page has written to the console since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Chrome) -> list[str]:
    """The addresses that the page has asked for since the last time."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
