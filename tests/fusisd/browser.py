"""A real Chromium without a window, driven by the DevTools protocol over two pipes: JSON messages that end in a NUL.

The standard library is enough for that: --remote-debugging-pipe has the browser read them from descriptor 3 and answer on 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium-headless-shell", "chromium")
LIMIT_S = 30.0
OPTIONS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox",  # a container's root has no sandbox, and the page is ours
    "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking",
)  # fmt: skip


def executable() -> str | None:
    """The browser that this machine has."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser process; `page` opens pages in it."""

    def __init__(self, program: str, home: Path) -> None:
        """`home`: an empty directory for its profile."""
        to_read, self._writing = os.pipe()
        self._reading, to_write = os.pipe()
        # above 9, so that none is in the way of the other when they become 3 and 4
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write)]
        lead = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        command = ["bash", "-c", lead, "bash", program, *OPTIONS, f"--user-data-dir={home}"]
        environment = {**os.environ, "HOME": str(home)}
        with open(home / "log", "wb") as log:
            self._process = subprocess.Popen(command, pass_fds=ends, stdout=log, stderr=log, env=environment)
        for end in (*ends, to_read, to_write):
            os.close(end)
        self._rest = bytearray()
        self._last = 0
        self._events: deque[dict[str, Any]] = deque()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(LIMIT_S)
        os.close(self._writing)
        os.close(self._reading)

    def call(self, method: str, session: str | None = None, /, **parameters: Any) -> Any:
        """The result of a command. Raises AssertionError for an error, and when it takes too long."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            said = self._message(deadline_s)
            if "id" not in said:
                self._events.append(said)
            elif said["id"] == self._last:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]

    def events(self, session: str) -> list[dict[str, Any]]:
        """What the browser said of its own accord about a page."""
        return [event for event in self._events if event.get("sessionId") == session]

    def _message(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"the browser did not answer within {LIMIT_S} s"
            piece = os.read(self._reading, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        message, _, rest = bytes(self._rest).partition(b"\0")
        self._rest[:] = rest
        found: dict[str, Any] = json.loads(message)
        return found


class Page:
    """One page of a browser, in a context of its own."""

    def __init__(
        self, browser: Browser, width: int = 1440, height: int = 900, dark: bool = False, script: bool = True
    ) -> None:
        """`width`, `height`: in CSS pixels. `script` false: JavaScript is off."""
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command about this page."""
        return self._browser.call(method, self._session, **parameters)

    def open(self, address: str) -> None:
        """Go there."""
        self.call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives, also in a page whose own scripts are off."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self) -> str:
        """What a person reads."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def key(self, key: str) -> None:
        """Press and let go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else "")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and exceptions."""
        self.value("0")  # what was said before is here now
        found = []
        for event in self._browser.events(self._session):
            match event["method"], event["params"]:
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    found.append(str(details))
                case "Log.entryAdded", {"entry": {"level": "error" | "warning"} as entry}:
                    found.append(f"{entry['text']} {entry.get('url', '')}")
                case "Runtime.consoleAPICalled", {"type": "error" | "warning", "args": args}:
                    found.append(str(args))
        return found

    def requested(self) -> list[str]:
        """Every address that was asked for."""
        events = self._browser.events(self._session)
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
