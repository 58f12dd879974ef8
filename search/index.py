"""An index of images: folders are added to it, and it is asked by sentence, by picture, or by one of its images."""

from collections import Counter
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from search.indexing import Added, Encoder, add_folder
from search.tables import Hit, ImageRow, Model, Tables
from utils.errors import UserError, check_positive
from utils.images import BadImageError, read_rgb


class Index:
    """An index of images in LanceDB, bound to one model. It can be asked from several threads.

    Args:
        tables: the tables of the index.
        model: a run, a checkpoint or a backbone's folder, as in `encoder_loading.load_encoder`: where the model of the
            index lies now. None: where it lay when a folder was added last.
    """

    def __init__(self, tables: Tables, model: str | Path | None = None) -> None:
        self._tables = tables
        self._model = model
        self._encoder: Encoder | None = None
        self._encoding = Lock()  # a tokenizer serves one thread at a time

    @classmethod
    def open(cls, path: str | Path, model: str | Path | None = None) -> Self:
        """Returns the index at `path`: a folder, or an address such as ``s3://bucket/index``.

        It is created when the first folder is added.
        """
        return cls(Tables(path), model)

    def __len__(self) -> int:
        return len(self._tables)

    def add_folder(self, images: str | Path, encoder: Encoder) -> Added:
        """Brings the index up to date with the folder `images`, see `search.indexing.add_folder`."""
        added = add_folder(self._tables, images, encoder)
        self._encoder = encoder
        return added

    def query(self, sentence: str, k: int = 10, *, folder: str | None = None) -> list[Hit]:
        """Returns the `k` images that fit a sentence best, the best first.

        Args:
            folder: absolute path of the folder that the images have to lie in; None: any.

        Raises:
            UserError: the index is empty, the sentence is, or the model of the index cannot be loaded.
        """
        if not sentence.strip():
            raise UserError("the sentence is empty; describe a person, as in 'a man in a red coat'")
        with self._encoding:
            vector = self.encoder().texts([sentence])[0].numpy()
        return self._nearest(vector, k, folder)

    def query_picture(self, content: bytes, k: int = 10, *, folder: str | None = None) -> list[Hit]:
        """Returns the `k` images that are most like the picture in the bytes of a file.

        Raises:
            UserError: as in `query`, or the picture cannot be read.
        """
        try:
            image = read_rgb(content)
        except BadImageError as error:
            raise UserError(f"the picture cannot be read ({error}); give a JPEG or PNG file") from error
        with self._encoding:
            encoder = self.encoder()
            vector = encoder.images(torch.stack([encoder.resize(image)]))[0].numpy()
        return self._nearest(vector, k, folder)

    def similar(self, image_id: str, k: int = 10, *, folder: str | None = None) -> list[Hit]:
        """Returns the `k` images that are most like an image of the index, without this image.

        Raises:
            UserError: the index has no such image.
        """
        vector = np.asarray(self.image(image_id).vector, dtype=np.float32)
        return [hit for hit in self._nearest(vector, k + 1, folder) if hit.id != image_id][:k]

    def image(self, image_id: str) -> ImageRow:
        """Returns the image with an id.

        Raises:
            UserError: the index has no such image.
        """
        self._check_filled()
        row = self._tables.image(image_id)
        if row is None:
            raise UserError("the index has no such image any more; search again")
        return row

    def folders(self) -> dict[str, int]:
        """Returns the folders with images, by absolute path: the number of images in each and below it."""
        self._check_filled()
        counts: Counter[str] = Counter()
        own = Counter((str(PurePosixPath(path).parent), folder) for path, folder in self._tables.paths())
        for (place, folder), count in own.items():
            counts[place] += count
            while place != folder and place not in ("/", ""):
                place = str(PurePosixPath(place).parent)
                counts[place] += count
        return dict(sorted(counts.items()))

    def encoder(self) -> Encoder:
        """Returns the encoder of the index, loaded at the first call.

        Raises:
            UserError: it cannot be loaded, or is another one than the index is bound to.
        """
        bound = self._check_filled()
        if self._encoder is None:
            from encoder_loading import load_encoder

            source = self._model or bound.source
            if self._model is None and not Path(source).exists():
                raise UserError(f"the model of the index, {source}, is not there any more; say where with --model")
            loaded = load_encoder(source)
            if loaded.fingerprint != bound.fingerprint:
                raise UserError(
                    f"the index {self._tables.place} is bound to the model {bound.source} as it was, whose embeddings "
                    f"differ from those of {loaded.source}; name that model with --model, or make a new index"
                )
            self._encoder = loaded
        return self._encoder

    def _check_filled(self) -> Model:
        model = self._tables.model
        if model is None or not len(self):
            raise UserError(
                f"there is no index in {self._tables.place}; make one with `uv run -m search index PHOTOS --model "
                "RUN`, or name it with --index"
            )
        return model

    def _nearest(self, vector: NDArray[np.float32], k: int, folder: str | None) -> list[Hit]:
        check_positive("k", k)
        self._check_filled()
        return self._tables.nearest(vector, k, folder)
