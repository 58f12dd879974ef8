"""Opens a page in headless Chromium and runs a script on it."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def after(page: Path, script: str) -> Any:
    """Returns the object `told` that `script` makes on the page; an error on the console fails.

    It runs in a copy of the page, at its end.
    """
    ending = f"<script>{script}; document.title = JSON.stringify(told);</script></body>"
    copy = page.with_name(f"driven-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", ending), encoding="utf-8")
    assert CHROMIUM is not None
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*line, copy.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr, re.findall(r".*CONSOLE.*", done.stderr)
    return json.loads(unescape(re.findall(r"<title>(.*?)</title>", done.stdout, re.S)[0]))
