"""The embedded dataset: drawn pedestrians with captions in Vietnamese and English, in the format of VN3K."""

from data.synthetic.generate import FOLDER, SyntheticSpec, generate, generate_once

__all__ = ["FOLDER", "SyntheticSpec", "generate", "generate_once"]
