"""Pseudo labels: distances, clusters, outlier mining, and the prototypes of clusters. No identities are used."""

from model.prototypes.clustering import JaccardDBSCAN, KMeans, dbscan, kmeans
from model.prototypes.jaccard import k_reciprocal_jaccard
from model.prototypes.labeler import ClusteringResult, Labeler, Labels
from model.prototypes.memory import PrototypeMemory
from model.prototypes.mining import Modality, mine_outliers
from model.prototypes.statistics import cluster_statistics

__all__ = [
    "ClusteringResult",
    "JaccardDBSCAN",
    "KMeans",
    "Labeler",
    "Labels",
    "Modality",
    "PrototypeMemory",
    "cluster_statistics",
    "dbscan",
    "k_reciprocal_jaccard",
    "kmeans",
    "mine_outliers",
]
