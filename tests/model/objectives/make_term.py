"""Loss terms under the values of their YAML."""

from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from model.objectives import LossTerm, ModelSpec

TERMS = Path(__file__).parents[3] / "config" / "loss" / "term"
Term = TypeVar("Term", bound=LossTerm)


def make_term(cls: type[Term], spec: ModelSpec, **options: Any) -> Term:
    """Returns a term with `options`, else the values of its YAML; of the views, "image" unless `options` has others."""
    files = [OmegaConf.load(file) for file in sorted(TERMS.glob("*.yaml"))]
    (settings,) = [file for file in files if file.get("_target_") == f"model.objectives.{cls.__name__}"]
    # What the settings of terms refer to.
    config = OmegaConf.create({"loss": {"softlabel_ratio": 0.0}, "backbone": {"sigmoid": True}, "term": settings})
    values: Any = OmegaConf.to_container(config, resolve=True)
    general = ("defaults", "weight", "ramp")
    plain = {key: value for key, value in values["term"].items() if key not in general and not key.startswith("_")}
    if "views" in plain:
        plain["views"] = ["image"]
    return cls(spec=spec, **plain | options)
