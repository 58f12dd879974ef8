"""The provenance of a run, which makes it repeatable: code, command, options, versions and data."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.continuing.composed import BY_NAME, KEY
from utils.continuing.option_rules import rule_of
from utils.continuing.plain_values import flat

ROOT = Path(__file__).parents[2]
SOURCES = ("*.py", "config/**/*.yaml", *(f"{part}/**/*.py" for part in ("data", "model", "solver", "utils", "search")))
PACKAGES = ("torch", "torchvision", "transformers", "lightning")


def provenance(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the provenance of a run, for its record.

    Args:
        config: the resolved config as plain containers.
        data: facts about the dataset: the hash of its annotations, the counts of its splits.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "code": dict(code()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "options": options_hash(config),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES}
        | {"cuda": torch.version.cuda if cuda else None},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "seed": config["seed"],
        "data": dict(data),
    }


@lru_cache
def code() -> Mapping[str, Any]:
    """Returns the git commit, whether the tree was clean, and a hash of all source files as they are.

    Commit and clean are None if this folder is not a git repository, such as an unpacked archive.
    """
    digest = hashlib.sha256()
    for file in sorted({file for pattern in SOURCES for file in ROOT.glob(pattern)}):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    commit = clean = None
    if _git("ls-files", "--error-unmatch", "trainer.py") is not None:
        commit = (_git("rev-parse", "HEAD") or "").strip() or None
        clean = _git("status", "--porcelain", "--untracked-files=no") == ""
    return {"commit": commit, "clean": clean, "sources": digest.hexdigest()}


def options_hash(config: Mapping[str, Any]) -> str:
    """Returns a hash of the options that change a result, without the seed."""
    options = {
        key: Path(str(value)).name if key in BY_NAME else value
        for key, value in flat({part: config[part] for part in config if part not in (KEY, "seed")})
        if rule_of(key).changes_result
    }
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_info(path: str | Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's path, finished epochs, optimizer steps and SHA-256."""
    place = {"path": str(path), "epochs": checkpoint.get("epoch"), "step": checkpoint.get("global_step")}
    return place | {"sha256": file_hash(path)}


def _git(*arguments: str) -> str | None:
    """Returns the output of a git command in this project's folder, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
