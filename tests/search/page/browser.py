"""A page in headless Chromium that a test clicks and types on, over the DevTools protocol (a pipe, no port)."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.utils.report.page.browser import CHROMIUM

KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
SECONDS = 30.0


class Browser:
    """A page. `requests` lists what it asked the network for, `complaints` what came on its console."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._number, self._session = to, back, b"", 0, {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.tell(f"{domain}.enable")

    @classmethod
    @contextmanager
    def started(cls, profile: Path) -> Iterator[Self]:
        (read, to), (back, write) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
        line = [str(CHROMIUM), *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        shell = f'exec "$@" 3<&{read} 4>&{write}'
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(["bash", "-c", shell, "bash", *line], pass_fds=(read, write), **quiet) as process:
            os.close(read)
            os.close(write)
            try:
                yield cls(to, back)
            finally:
                process.kill()
                os.close(to)
                os.close(back)

    def tell(self, method: str, **parameters: Any) -> Any:
        """Returns the result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """Returns the value of an expression on the page."""
        result = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Returns the value of an expression when it is true; fails if it does not become so."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(condition)):
            assert time.monotonic() < end, f"{condition} is still false; {self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def open(self, address: str, width: int = 1280, height: int = 900, *, scale: float = 1) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        self.tell("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.tell("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Presses and releases a key."""
        printed = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"windowsVirtualKeyCode": KEYS.get(key, ord(key.upper()[0]))}
        self.tell("Input.dispatchKeyEvent", type="keyDown", key=key, **printed, **code)
        self.tell("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))

    def _read(self) -> Any:
        while b"\0" not in self._rest:
            part = os.read(self._back, 2**16)
            assert part, "Chromium has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(message)
        name, values = answer.get("method"), answer.get("params")
        if name == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        if name in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(values)[:500])
        return answer
