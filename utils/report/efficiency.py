"""What a model costs: parameters, operations, width of the embeddings."""

from typing import NamedTuple


class Efficiency(NamedTuple):
    """The cost of an encoder.

    parameters, trained: of the encoder, without the modules of losses; `trained` are those that get a gradient.
    image_gflops, caption_gflops: 1e9 floating-point operations of encoding one image and one caption that fills all
        positions. A multiplication and an addition are two operations; only matrix products, convolutions and attention
        count.
    width: of an embedding.
    """

    parameters: int
    trained: int
    image_gflops: float
    caption_gflops: float
    width: int

    def __str__(self) -> str:
        share = "all" if self.trained == self.parameters else f"{self.trained:,}"
        return (
            f"{self.parameters:,} parameters, {share} trained; {self.image_gflops:.3g} GFLOPs an image, "
            f"{self.caption_gflops:.3g} a caption; embeddings of width {self.width:,}"
        )
