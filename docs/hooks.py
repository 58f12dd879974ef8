"""What mkdocs makes of this repository before it builds: the page of all options."""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root), str(root / "docs")]  # mkdocs takes them away when it has read this file
    from options import page

    files.append(File.generated(config, "options.md", content=page()))
    return files
