"""From the config's loss terms to an objective whose needs are met."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from model.objectives.base import LossTerm, ModelSpec, Objective
from utils.errors import UserError, nearest

Make = Callable[..., LossTerm] | Mapping[str, Any]

# What is not there under every configuration -> the option that brings it.
PROVIDERS: Final[Mapping[str, str]] = {
    "pids": "pseudo_label=none",
    "image_labels": "pseudo_label=dbscan",
    "text_labels": "pseudo_label=dbscan",
    "parts": "head=part",
    "id_logits": "+loss/term@loss.terms.id=id",
}


def build_objective(terms: Mapping[str, Make], spec: ModelSpec) -> Objective:
    """Returns the objective of `terms`.

    Args:
        terms: name -> partial that still takes `spec`, as Hydra instantiates `loss.terms`; a mapping of settings
            where there is no loss that they are for.
        spec: of the composed model and data.

    Raises:
        UserError: there are no terms, or one of them cannot be built.
    """
    if not terms:
        raise UserError("loss.terms is empty: add a loss, e.g. +loss/term@loss.terms.nitc=nitc")
    return Objective({name: _build_term(name, make, spec) for name, make in terms.items()})


def check_needs(objective: Objective, provided: Collection[str]) -> None:
    """Passes an objective that needs nothing beyond `provided`, the views and labels of this run, and its terms.

    Raises:
        UserError: naming the term, the need, and the option that provides it.
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


def _build_term(name: str, make: Make, spec: ModelSpec) -> LossTerm:
    if isinstance(make, Mapping):
        term, settings = (
            f"loss.terms.{name}",
            " ".join(f"loss.terms.{name}.{key}={value}" for key, value in make.items()),
        )
        raise UserError(
            f"{term} cannot be built: there is no such loss in this composition, only settings for it; add it with "
            f"'+loss/term@{term}={name} {settings}', or drop the settings with '~{term}'"
        )
    try:
        return make(spec=spec)
    except TypeError as error:
        raise UserError(f"loss.terms.{name} cannot be built: {error}") from error
    except UserError as error:
        raise UserError(f"loss.terms.{name}.{error}") from error
