"""The page of all options: each with its default and its sentence, from the comments of the YAMLs and from docstrings.

A sentence is the comment behind a key, or else what the docstring of the `_target_` says of that argument. Files of a
group describe an option once: in _base.yaml, or in one of the choices.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.utils import get_object

CONFIG = Path(__file__).parents[1] / "config"
ROOT = "base.yaml"
NO_OPTIONS = ("hydra", "defaults")  # of Hydra
# Mappings whose entries have the same options: one line tells of all.
ALIKE = {
    r"^(metrics)\.\w+\.": r"\1.*.",
    r"^(param_groups)\.(?!default\.)\w+\.": r"\1.*.",
    r"^(?:images|texts)\.": "images/texts.",
}
AT_ONCE = r"description\.(architecture|caption_keys|find|official)"  # mappings that one line tells of
PIPE = "\\|"  # within a table
ELSEWHERE = {"loss": "terms."}  # options that another group tells of


class Option(NamedTuple):
    """An option of a group: its dotted key in the composed config, the values that it has by choice, its sentence."""

    key: str
    values: Mapping[str, str]
    sentence: str


def groups() -> list[str]:
    """Returns the groups of config/ that hold options, in the order of base.yaml; "" stands for base.yaml itself."""
    lines = yaml.safe_load((CONFIG / ROOT).read_text(encoding="utf-8"))["defaults"]
    named = [name for line in lines if isinstance(line, dict) for name in line]
    found = [name for name in named if (CONFIG / name).is_dir() and name not in ("experiment", "debug")]
    return ["", *found, "loss/term"]


def options_of(group: str) -> list[Option]:
    """Returns the options of a group, in the order in which its files name them."""
    files = [CONFIG / ROOT] if not group else sorted((CONFIG / group).glob("*.yaml"))
    values: dict[str, dict[str, str]] = {}
    sentences: dict[str, str] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        comments = _comments(text)
        node = yaml.compose(text)
        if not isinstance(node, yaml.MappingNode):
            continue
        documented = _documented(yaml.safe_load(text).get("_target_"))
        for key, line, value in _keys(node):
            if key.startswith(ELSEWHERE.get(group, "?")):
                continue
            for pattern, together in ALIKE.items():
                key = re.sub(pattern, together, key)
            values.setdefault(key, {})[file.stem] = value
            sentence = comments.get(line) or documented.get(key, "")
            if sentence and key not in sentences:
                sentences[key] = sentence
    place = {"": "", "loss/term": "loss.terms.*."}.get(group, f"{group}.")
    return [Option(f"{place}{key}", of, sentences.get(key, "")) for key, of in values.items()]


def page() -> str:
    """Returns the page in Markdown."""
    parts = [
        "# Every option\n",
        "What `--cfg job` prints, and what it means. A value is given as `key=value`, a choice as `group=choice`.\n",
    ]
    for group in groups():
        parts.append(f"\n## {f'`{group}`' if group else 'The whole run'}\n")
        for file in sorted((CONFIG / group).glob("[!_]*.yaml")) if group else []:
            told = _head(file.read_text(encoding="utf-8"))
            parts.append(f"- `{group}={file.stem}`{f': {told}' if told else ''}")
        parts.append("\n| option | what it is | value |\n|---|---|---|")
        for option in options_of(group):
            shown = dict.fromkeys(option.values.values())
            values = ", ".join(f"`{value}`" for value in list(shown)[:4]) + (", ..." if len(shown) > 4 else "")
            parts.append(
                "| "
                + " | ".join(cell.replace("|", "\\|") for cell in (f"`{option.key}`", option.sentence, values))
                + " |"
            )
    return "\n".join(parts) + "\n"


def _keys(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int, str]]:
    """Yields (dotted key, its line, its value as text) of all options; what is called and merged is none."""
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        if name.value.startswith("_") or name.value == "<<" or key in NO_OPTIONS:
            continue
        if isinstance(value, yaml.MappingNode) and value.value and not re.fullmatch(AT_ONCE, key):
            yield from _keys(value, f"{key}.")
        elif isinstance(value, yaml.ScalarNode):
            yield key, name.start_mark.line, value.value or "null"
        else:
            yield key, name.start_mark.line, "[...]" if value.value else yaml.serialize(value).strip()


def _comments(text: str) -> dict[int, str]:
    """Returns line -> the comment behind what stands there, with the comment lines that follow it."""
    found: dict[int, str] = {}
    last = -1
    for number, line in enumerate(text.splitlines()):
        if own := re.match(r"\s+#\s*(.*)", line):
            if last in found:
                found[last] += f" {own[1]}"
        elif behind := re.search(r"\s#\s(.*)$", line):
            last, found[number] = number, behind[1]
        else:
            last = -1
    return found


def _head(text: str) -> str:
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.strip()]
    count = next((i for i, line in enumerate(text.splitlines()) if not line.startswith("#")), 0)
    return " ".join(line for line in lines[:count] if not line.startswith("@package"))


def _documented(target: str | None) -> dict[str, str]:
    """Returns argument -> what the docstring of a class or function says of it."""
    if target is None or not target.startswith(("data.", "model.", "solver.", "utils.")):
        return {}
    made: Any = get_object(target)
    found: dict[str, str] = {}
    for text in (inspect.getdoc(made) or "", inspect.getdoc(getattr(made, "__init__", None)) or ""):
        section = text.partition("Args:\n")[2].split("\n\n")[0]
        for names, said in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", section, re.M):
            found |= {name.strip(): " ".join(said.split()) for name in names.split(",")}
    return found
