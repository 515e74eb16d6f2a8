"""A real browser, without a window."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

T = TypeVar("T")

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_HERE = CHROMIUM is not None and CHROMEDRIVER is not None
WAIT_SECONDS = 60.0
"""Long, because a busy machine shows a page slowly."""
AXE = Path(__file__).parents[3] / "vendored/axe.min.js"


class Chromium:
    """One browser with one page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1440, height: int = 1000, dark: bool = False) -> None:
        """Load a page on a screen of this size, in the light or in the dark."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(url)

    def wait_for(self, condition: Callable[[], T], message: str = "") -> T:
        """Wait until the condition is true; returns what it then is."""
        waiting = WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=0.05)
        return waiting.until(lambda _: condition(), message)

    def wait_for_text(self, text: str, panel: str = "body") -> None:
        """Wait until a part of the page has this text."""
        self.wait_for(lambda: text in self.text(panel), f"{text!r} is not in {panel}")

    def text(self, selector: str = "body") -> str:
        """What people see of a part of the page."""
        return str(self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def js(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def hosts(self) -> set[str]:
        """Where requests went to since the last call, as scheme://host:port."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return {
            "/".join(url.split("/")[:3]) for url in urls if not url.startswith(("data:", "chrome", "about:"))
        }

    def complaints(self) -> list[str]:
        """What the browser wrote to its console since the last call: scripts that fail, what the policy forbids."""
        return [entry["message"] for entry in self._log("browser")]

    def barriers(self) -> list[str]:
        """The rules of axe that the page violates, and where."""
        self.js(AXE.read_text())
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        return [
            f"{violation['id']}: {node['html']}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]

    def _log(self, name: str) -> list[dict[str, Any]]:
        return list(self.driver.get_log(name))  # type: ignore[no-untyped-call]

    def picture(self, height: int | None = None) -> bytes:
        """The page as WebP, down to `height` or its end."""
        width, whole = self.js("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
        options = {"format": "webp", "quality": 90, "captureBeyondViewport": True, "clip": clip}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        return base64.b64decode(shot["data"])


@contextmanager
def chromium(*, javascript: bool = True) -> Iterator[Chromium]:
    """A browser for the length of the block."""
    options = webdriver.ChromeOptions()
    assert CHROMIUM is not None
    assert CHROMEDRIVER is not None
    options.binary_location = CHROMIUM
    options.add_argument("--headless=new")
    options.add_argument("--disable-gpu")
    options.add_argument("--hide-scrollbars")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's cannot be had as root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        driver.set_script_timeout(WAIT_SECONDS)
        yield Chromium(driver)
    finally:
        driver.quit()
