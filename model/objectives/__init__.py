"""Losses: pure functions of tensors, the terms that feed them, and the objective that sums the terms."""

from model.objectives.base import Facts, LossReport, LossTerm, Objective, Stats
from model.objectives.build import build_objective, check_needs
from model.objectives.circle import (
    NCITC,
    CrossModalCircle,
    InModalCircle,
    cross_modal_circle,
    in_modal_circle,
    nc_itc,
)
from model.objectives.contrastive import CITC, ITC, NITC, RITC, citc, itc, nitc, ritc
from model.objectives.self_supervised import SimCLR, simclr

__all__ = [
    "CITC",
    "ITC",
    "NCITC",
    "NITC",
    "RITC",
    "CrossModalCircle",
    "Facts",
    "InModalCircle",
    "LossReport",
    "LossTerm",
    "Objective",
    "SimCLR",
    "Stats",
    "build_objective",
    "check_needs",
    "citc",
    "cross_modal_circle",
    "in_modal_circle",
    "itc",
    "nc_itc",
    "nitc",
    "ritc",
    "simclr",
]
