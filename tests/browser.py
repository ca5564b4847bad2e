"""Headless Chromium for tests of the HTML reports, driven by the W3C WebDriver protocol.

    with Browser(tmp_path / "profile") as browser:
        browser.open(page, width=390, dark=True)

Needs `chromium` and `chromedriver` on the PATH (`MISSING` says what is missing).
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

_LACKING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
MISSING = (
    f"no {' and no '.join(_LACKING)}: apt-get install chromium chromium-driver" if _LACKING else ""
)
"""Why there is no browser, and the remedy; empty if there is one."""

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "about:blank",
)
_DIRECT = build_opener(ProxyHandler({}))
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

_CONTRAST = """
const colour = text => {
  const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return text.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
};
const mix = (a, x, y) => a * x + (1 - a) * y;
const over = (top, under) => [0, 1, 2].map(i => mix(top[3], top[i], under[i])).concat(1);
const back = node => {
  const layers = [];
  for (let at = node; at; at = at.parentElement)
    layers.push(colour(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
};
const light = c => [0, 1, 2].map(i => c[i] / 255)
  .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  const text = walk.currentNode.data;
  if (!text.trim() || !node.checkVisibility() || node.closest("script, style, noscript")) continue;
  const under = back(node), style = getComputedStyle(node);
  const drawn = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const ink = over(colour(drawn), under);
  const [dark, bright] = [light(ink), light(under)].sort((a, b) => a - b);
  found.push([(bright + .05) / (dark + .05), node.tagName + ": " + text.slice(0, 30)]);
}
return found.sort((a, b) => a[0] - b[0])[0];
"""
"""The text with the least contrast to what lies under it (WCAG 2 ratio, semi-transparent
backgrounds composed), as [ratio, text]."""


class Browser:
    """One session of Chromium with an empty profile, which must not exist yet."""

    def __init__(self, profile: Path) -> None:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            self._root = f"http://127.0.0.1:{self._port()}"
            options = {"args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
            session = self._ask("/session", capabilities={"alwaysMatch": wanted})
            self._root += f"/session/{session['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise

    def _port(self) -> str:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                return found[1]
        raise RuntimeError("chromedriver has not started")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("", "DELETE")
        finally:
            self._driver.kill()
            self._driver.wait()

    def _ask(self, path: str, method: str = "POST", **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = Request(
            self._root + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with _DIRECT.open(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def _devtools(self, command: str, **params: Any) -> Any:
        return self._ask("/goog/cdp/execute", cmd=command, params=params)

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of this size, in light or dark mode."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("/url", url=page.absolute().as_uri())

    def run(self, script: str, *args: Any) -> Any:
        """Value of a JavaScript function body."""
        return self._ask("/execute/sync", script=script, args=list(args))

    def all(self, selector: str) -> list[str]:
        """Handles of the elements that a CSS selector finds."""
        found = self._ask("/elements", using="css selector", value=selector)
        return [element[_ELEMENT] for element in found]

    def click(self, selector: str, number: int = 0) -> None:
        """Click as a user does; AssertionError if something lies over the element."""
        self._ask(f"/element/{self.all(selector)[number]}/click")

    def press(self, key: str) -> None:
        """Press a key ("\\ue014" is the right arrow) where the focus is."""
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("/actions", actions=[{"type": "key", "id": "keys", "actions": strokes}])

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """PNG of the window, or of the whole page."""
        picture = self._devtools("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(picture))
        return path

    def complaints(self) -> list[str]:
        """What the console said since the last call: errors, warnings, violations of policy."""
        return [entry["message"] for entry in self._ask("/se/log", type="browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, whether or not the page was let."""
        time.sleep(0.3)  # events reach the log with a delay
        messages = [
            json.loads(entry["message"])["message"]
            for entry in self._ask("/se/log", type="performance")
        ]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        # The window that the browser begins with has a page of the browser's own.
        own = ("chrome://", "chrome-untrusted://")
        return [str(p["request"]["url"]) for p in sent if not p["documentURL"].startswith(own)]

    def least_contrast(self) -> tuple[float, str]:
        """Ratio and beginning of the text that is hardest to read."""
        ratio, text = self.run(_CONTRAST)
        return float(ratio), str(text)

    def sideways(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(
            self.run("const d = document.documentElement; return d.scrollWidth - d.clientWidth")
        )
