"""The page's server in this process, a client for its JSON, and Debian's Chromium to look at it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn

REQUIRED_ENV = "OTEL_CMB_REQUIRE_BROWSER"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def get(url: str, method: str = "GET", **headers: str) -> Answer:
    """One request, nothing followed, no proxy; header names with `_` for `-`."""
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with opener.open(urllib.request.Request(url, method=method, headers=named), timeout=30) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application on a free port of this machine; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def until(condition: Callable[[], Any], seconds: float = 60, what: str = "") -> Any:
    """The first true answer; fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what or condition}")
        time.sleep(0.03)


def browser_paths() -> tuple[str, str]:
    """Browser and driver; without them the test is skipped, or fails where they are required."""
    found = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if found[0] and found[1]:
        return found[0], found[1]
    reason = "no browser here: apt-get install chromium chromium-driver"
    if os.environ.get(REQUIRED_ENV) == "1":
        pytest.fail(f"{REQUIRED_ENV}=1, but {reason}")
    pytest.skip(reason)


class Browser:
    """Chromium without a window. `page` is selenium's driver."""

    def __init__(self, profile: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        chromium, driver = browser_paths()
        options = Options()
        options.binary_location = chromium
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
            "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
            "--disable-sync", "--no-first-run", "--hide-scrollbars", "--window-size=1400,900",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.page = webdriver.Chrome(options=options, service=Service(driver))
        self.page.set_page_load_timeout(60)

    def screen(self, width: int = 1400, height: int = 900, *, dark: bool = False) -> None:
        """Size and colours of the reader's screen."""
        self.page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        })
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, url: str, *, wait: str = ".row, .runs tbody tr, .empty:not([hidden])") -> None:
        self.page.get("about:blank")
        self.page.get(url)
        until(lambda: self.all(wait), what=f"{wait} at {url}")

    def all(self, selector: str) -> list[Any]:
        return list(self.page.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return until(lambda: self.all(selector), what=selector)[0]

    def run(self, script: str, *arguments: Any) -> Any:
        return self.page.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def attribute(self, selector: str, name: str) -> str:
        """Asked in one step: what is drawn anew between finding and asking is no fault of the page."""
        return str(self.run("return document.querySelector(arguments[0])?.getAttribute(arguments[1]) ?? ''", selector, name))

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.page).send_keys(key).perform()

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time: refused scripts, exceptions, failed requests."""
        return [entry["message"] for entry in self.page.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def close(self) -> None:
        self.page.quit()
