"""Losses: pure functions of tensors, the terms that feed them, and the objective that sums the terms."""

from model.objectives.alignment import TAL, tal
from model.objectives.base import EmbeddedPairs, LossReport, LossTerm, ModelSpec, Objective, Stats
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
from model.objectives.distribution import ASDM, CMPM, SDM, a_sdm, cmpm, sdm
from model.objectives.efa import EFA, efa
from model.objectives.identity import ID, id_loss
from model.objectives.mlm import MLM, mlm_loss
from model.objectives.prototypes import ICPM, PCM, icpm, pcm
from model.objectives.ranking import CMR, Ranking, cmr_loss, commonality, ranking_loss
from model.objectives.self_supervised import SimCLR, simclr

__all__ = [
    "ASDM",
    "CITC",
    "CMPM",
    "CMR",
    "EFA",
    "ICPM",
    "ID",
    "ITC",
    "MLM",
    "NCITC",
    "NITC",
    "PCM",
    "RITC",
    "SDM",
    "TAL",
    "CrossModalCircle",
    "EmbeddedPairs",
    "InModalCircle",
    "LossReport",
    "LossTerm",
    "ModelSpec",
    "Objective",
    "Ranking",
    "SimCLR",
    "Stats",
    "a_sdm",
    "build_objective",
    "check_needs",
    "citc",
    "cmpm",
    "cmr_loss",
    "commonality",
    "cross_modal_circle",
    "efa",
    "icpm",
    "id_loss",
    "in_modal_circle",
    "itc",
    "mlm_loss",
    "nc_itc",
    "nitc",
    "pcm",
    "ranking_loss",
    "ritc",
    "sdm",
    "simclr",
    "tal",
]
