"""A real browser: Debian's Chromium without a screen, driven by the WebDriver that comes with it.

Where ``INTURN_SCREENSHOTS`` names a directory, what the browser shows is kept there to be looked at.
"""

import os
import re
import shutil
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from ops.server_process import ServerUnavailableError
from tests.stacks import wait_until

PATIENCE_SECONDS = 30
DESKTOP, PHONE = (1280, 900), (390, 844)
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root it starts in none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
MISSING = "no Chromium with its WebDriver here: `apt-get install chromium chromium-driver` brings both"


class Browser:
    """One window.

    Args:
        login: sent with every request, as a person has typed it once.
    """

    def __init__(self, driver: webdriver.Chrome, login: str) -> None:
        self._driver = driver
        self._screenshots = os.environ.get("INTURN_SCREENSHOTS", "")
        headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": headers})
        self.resize(DESKTOP)

    def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """As who has chosen ``dark`` or ``light`` for all pages."""
        chosen = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in chosen.items()]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        self._driver.get(url)

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return self._driver.execute_script(script)

    def all(self, selector: str) -> list[WebElement]:
        return self._driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self._driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """What is to be read there, at one moment: the page may change itself meanwhile."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), one => one.innerText)"
        return [str(text) for text in self._driver.execute_script(script, selector)]

    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def follow(self, selector: str) -> None:
        """Click on a link that leads to another page, at once: the page may change itself meanwhile."""
        self._driver.execute_script("window.before = true; document.querySelector(arguments[0]).click()", selector)
        wait_until(lambda: self.run("return document.readyState === 'complete' && !window.before"), PATIENCE_SECONDS)

    def complaints(self) -> list[str]:
        """What the console has said since it was last asked: errors of scripts, and what the policy has refused."""
        return [str(each["message"]) for each in self._driver.get_log("browser")]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.run("return document.documentElement.scrollWidth - window.innerWidth"))

    def shoot(self, name: str) -> None:
        """Keep what is to be seen, all of the page."""
        if self._screenshots:
            height = self.run("return document.documentElement.scrollHeight")
            width = self.run("return window.innerWidth")
            clip = {"x": 0, "y": 0, "width": width, "height": min(height, 3000), "scale": 1}
            shot = self._driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            path = Path(self._screenshots) / f"{re.sub('[^a-z0-9]+', '-', name)}.png"
            path.write_bytes(b64decode(shot["data"]))


@contextmanager
def browser(directory: Path, login: str) -> Iterator[Browser]:
    """A browser that nobody has used before. Skips where there is none; root's CI has to have one."""
    options = webdriver.ChromeOptions()
    options.binary_location, program = _programs()
    for flag in (*FLAGS, f"--user-data-dir={directory}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program))
    try:
        yield Browser(driver, login)
    finally:
        driver.quit()


def _programs() -> tuple[str, str]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    if os.environ.get("CI") and os.geteuid() == 0:
        raise ServerUnavailableError(MISSING)
    pytest.skip(MISSING)
