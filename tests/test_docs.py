"""The documentation names what is there, and leaves no option out."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
from options import groups, options_of, page  # noqa: E402

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


@pytest.mark.parametrize("group", groups())
def test_every_option_has_a_sentence(group: str) -> None:
    options = options_of(group)
    assert options
    assert [option.key for option in options if not option.sentence] == []


def test_the_page_of_options_names_each_of_them_once() -> None:
    named = re.findall(r"^\| `([^`]+)` ", page(), re.M)
    assert sorted(named) == sorted(option.key for group in groups() for option in options_of(group))
    assert {"seed", "dataset.batch_size", "optimizer.param_groups.default.lr", "loss.terms.*.gamma"} <= set(named)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_between_the_pages_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8")):
        assert target == "options.md" or (file.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_requirements_for_pip_are_those_of_the_resolution() -> None:
    """`uv export --no-dev -o requirements.txt` brings the file up to date."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    resolved = {package["name"]: package.get("version") for package in lock["package"]}
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    required = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M))
    assert required == {name: resolved[name] for name in required}
    project = next(package for package in lock["package"] if package["name"] == "tbps")
    assert {dependency["name"] for dependency in project["dependencies"]} <= required.keys()
    assert text.count("--hash=sha256:") > len(required)
    assert "://" not in text
