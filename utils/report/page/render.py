"""Writes HTML from the templates of this folder."""

import base64
import io
from functools import cache
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

PAGE_FILE = "report.html"  # of a run, in its folder
TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Returns the page that `template` makes of `values`; texts are escaped."""
    return _environment().get_template(template).render(values)


def picture_uri(path: Path) -> str:
    """Returns the picture in a file as a ``data:`` address."""
    return _uri(path.read_bytes(), guess_type(path)[0] or "image/png")


def thumbnail_uri(image: Image.Image, height: int) -> str:
    """Returns an image, made smaller, as a ``data:`` address."""
    width = min(4 * height, max(1, round(image.width * height / image.height)))
    small, file = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0), io.BytesIO()
    small.save(file, "JPEG", quality=75)
    return _uri(file.getvalue(), "image/jpeg")


def _uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return environment
