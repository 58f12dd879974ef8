"""Construction of an objective from `loss.terms` of the config, and the check that the run provides what it needs."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from model.objectives.base import LossTerm, ModelSpec, Objective, Ramp
from utils.errors import UserError, nearest

OF_EVERY_TERM: Final = ("weight", "ramp")  # config/loss/term/_base.yaml

# A need that only some configurations provide -> the option that provides it.
PROVIDERS: Final[Mapping[str, str]] = {
    "pids": "pseudo_label=none",
    "image_labels": "pseudo_label=dbscan",
    "text_labels": "pseudo_label=dbscan",
    "pair_weights": "pseudo_label=consensus",
    "parts": "head=part",
    "id_logits": "+loss/term@loss.terms.id=id",
}


def build_objective(terms: DictConfig, spec: ModelSpec) -> Objective:
    """Returns the objective that is the weighted sum of `terms`.

    Args:
        terms: `loss.terms` of the config: name -> `weight`, `ramp` and the other keys of the term's YAML.
        spec: sizes of the composed model and data.

    Raises:
        UserError: there are no terms, or one of them cannot be built.
    """
    if not terms:
        raise UserError("loss.terms is empty: add a loss, e.g. +loss/term@loss.terms.nitc=nitc")
    found: Any = OmegaConf.to_container(terms, resolve=True)
    return Objective({name: _build_term(name, settings, spec) for name, settings in found.items()})


def check_needs(objective: Objective, provided: Collection[str]) -> None:
    """Raises `UserError` if a term of `objective` needs something that neither this run nor another term provides.

    The message names the term, the need, and the option that provides it. `provided` lists the views and labels of
    this run.
    """
    provided = {*provided, *objective.provides}
    for name, term in objective.terms.items():
        missing = sorted(term.needs - set(provided))  # type: ignore[operator]
        if missing:
            raise UserError(f"loss.terms.{name} needs {missing[0]!r}, {_remedy(missing[0], provided)}")


def _remedy(need: str, provided: Collection[str]) -> str:
    if need in PROVIDERS:
        return f"which this run lacks: set {PROVIDERS[need]} or leave the term out"
    known = {*provided, *PROVIDERS}
    return f"which is unknown; expected one of {', '.join(sorted(known))}.{nearest(need, known)}"


def _build_term(name: str, settings: Mapping[str, Any], spec: ModelSpec) -> LossTerm:
    if "_target_" not in settings:
        term, given = f"loss.terms.{name}", " ".join(f"loss.terms.{name}.{k}={value}" for k, value in settings.items())
        raise UserError(
            f"{term} cannot be built: there is no such loss in this composition, but there are settings for it; add it "
            f"with '+loss/term@{term}={name} {given}', or drop the settings with '~{term}'"
        )
    try:
        built = instantiate({key: value for key, value in settings.items() if key not in OF_EVERY_TERM})(spec=spec)
        built.weight, built.ramp = _weight(settings.get("weight", 1.0)), _ramp(settings.get("ramp"))
    except TypeError as error:
        raise UserError(f"loss.terms.{name} cannot be built: {error}") from error
    except UserError as error:
        raise UserError(f"loss.terms.{name}.{error}") from error
    if built.reads_tokens and spec.patches == 0:
        raise UserError(
            f"loss.terms.{name} reads the patches of an image, but the image tower of this backbone has none (it is a "
            f"ConvNet): choose a backbone with a vision transformer, or leave the term out with ~loss.terms.{name}"
        )
    return built


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"weight: {value!r} given, expected a number")
    return float(value)


def _ramp(value: Any) -> Ramp | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) != {"first", "last"}:
        raise UserError(f"ramp: {value!r} given, expected null or epochs such as {{first: 5, last: 20}}")
    return Ramp(**value)
