"""What ranking yields. Imports nothing heavy, so that reports start at once."""

from dataclasses import dataclass

METRICS = ("R1", "R5", "R10", "mAP", "mINP")
DIRECTIONS = ("t2i", "i2t")


@dataclass(frozen=True)
class RetrievalMetrics:
    """Percentages over the `queries` that were ranked; `skipped` more had no positive in the gallery."""

    R1: float
    R5: float
    R10: float
    mAP: float  # noqa: N815
    mINP: float  # noqa: N815
    queries: int
    skipped: int = 0

    def as_dict(self) -> dict[str, float]:
        """The five percentages by name."""
        return {name: getattr(self, name) for name in METRICS}
