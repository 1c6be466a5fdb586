"""Chromium: a browser to drive, over the pipe of its DevTools protocol. The standard library is enough for that.

A page's messages are collected as they come: what it logged, what its policy refused, what it asked the network for.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-quic --disable-dev-shm-usage --hide-scrollbars --mute-audio --disable-extensions"
).split()
SECONDS = 120.0
# What DevTools answers when a page was on the way to another document while it was asked.
GONE = ("navigated or closed", "Cannot find context", "context was destroyed", "context with specified id")


class BrowserError(Exception):
    pass


class Navigated(BrowserError):
    """The document that was asked has gone, because its page is on the way to another one."""


@dataclass
class Page:
    """One tab. `logged`: errors and warnings; `asked`: every address that it asked for."""

    browser: Chromium
    session: str
    logged: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    loaded: int = 0

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def open(self, address: str) -> None:
        before = self.loaded
        self.send("Page.navigate", url=address)
        self.browser.pump(lambda: self.loaded > before)

    def size(self, width: int, height: int = 900) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def scripts(self, allowed: bool) -> None:
        self.send("Emulation.setScriptExecutionDisabled", value=not allowed)

    def value(self, expression: str) -> Any:
        """Of JavaScript; a promise is waited for."""
        said = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise BrowserError(said["exceptionDetails"].get("exception", {}).get("description", str(said)))
        return said["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true, in this document or in the one that follows it."""
        end = time.monotonic() + SECONDS
        while not self._true(expression):
            if time.monotonic() > end:
                said = self.value("document.querySelector('.vsp-status')?.textContent")
                raise BrowserError(f"never came true: {expression}; the panel says {said!r}; logged: {self.logged}")
            time.sleep(0.05)

    def _true(self, expression: str) -> bool:
        try:
            return bool(self.value(f"Boolean({expression})"))
        except Navigated:
            return False

    def press(self, key: str) -> None:
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9,
                 "Enter": 13, " ": 32}  # fmt: skip
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key],
                      text=text if kind == "keyDown" else "")  # fmt: skip

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


class Chromium:
    def __init__(self) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            raise BrowserError("no Chromium is installed. Run: apt-get install chromium")
        self._home = tempfile.TemporaryDirectory(prefix="vsp-chromium-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The browser reads from 3 and writes to 4, whatever the numbers are here.
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        words = [program, *FLAGS, f"--user-data-dir={self._home.name}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", *words], pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._count = b"", 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}

    def page(self) -> Page:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.size(1280)
        return page

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        self.pump(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if "error" in answer:
            message = answer["error"].get("message", "")
            gone = any(words in message for words in GONE)
            raise (Navigated if gone else BrowserError)(f"{method}: {answer['error']}")
        return answer["result"]

    def pump(self, until: Any) -> None:
        end = time.monotonic() + SECONDS
        while not until():
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise BrowserError("Chromium does not answer")
            data = os.read(self._in, 1 << 16)
            if not data:
                raise BrowserError("Chromium has ended")
            *whole, self._buffer = (self._buffer + data).split(b"\0")
            for message in whole:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        page, said = self._pages.get(message.get("sessionId", "")), message.get("params", {})
        if page is None:
            return
        match message["method"]:
            case "Page.loadEventFired":
                page.loaded += 1
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                page.logged.append(said["entry"]["text"])
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                page.logged.append(" ".join(str(one.get("value", one.get("description"))) for one in said["args"]))
            case "Runtime.exceptionThrown":
                page.logged.append(str(said["exceptionDetails"].get("exception", {}).get("description")))
            case "Page.javascriptDialogOpening":
                page.logged.append(f"dialog: {said['message']}")
            case "Network.requestWillBeSent":
                page.asked.append(said["request"]["url"])

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._home.cleanup()
