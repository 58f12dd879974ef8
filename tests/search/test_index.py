"""An index answers by sentence, by picture and by its own images, only for its own model."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import search
from search import tables
from search.index import Index
from search.indexing import model_of
from search.tables import ImageRow, Tables, id_of
from tests.search.color_encoder import COLORS, ColorEncoder, draw, names
from utils.errors import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos").resolve()
    for place, color in (("cam1", "red"), ("cam1/late", "yellow"), ("cam10", "green"), ("it's", "blue"), ("", "white")):
        draw(folder / place / f"{color}.png", color)
    return folder


@pytest.fixture(scope="module")
def index(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    made = search.Index.open(tmp_path_factory.mktemp("index"))
    made.add_folder(photos, ColorEncoder())
    return made


def test_a_sentence_finds_the_image_that_fits_it(index: Index, photos: Path) -> None:
    hits = index.query("a person in red", 3)
    assert [Path(hit.path).name for hit in hits] == ["red.png", "yellow.png", "white.png"]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.5**0.5, 3**-0.5], abs=1e-3)
    assert hits[0].path == str(photos / "cam1" / "red.png")
    assert len(index.query("blue", 50)) == 5


def test_a_picture_finds_what_is_like_it_and_an_image_finds_others(index: Index) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), COLORS["green"]).save(file, "PNG")
    first, *_ = index.query_picture(file.getvalue(), 2)
    assert Path(first.path).name == "green.png"
    assert [Path(hit.path).name for hit in index.similar(first.id, 1)] == ["yellow.png"]
    assert first.id not in {hit.id for hit in index.similar(first.id, 5)}


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("cam1", {"red.png", "yellow.png"}),
        ("cam1/late", {"yellow.png"}),
        ("cam10", {"green.png"}),
        ("it's", {"blue.png"}),
        ("", {"red.png", "yellow.png", "green.png", "blue.png", "white.png"}),
        ("cam", set()),
        ("x') OR true --", set()),
    ],
)
def test_a_folder_is_a_filter(index: Index, photos: Path, place: str, found: set[str]) -> None:
    assert set(names(index, "red", folder=photos / place)) == found


def test_folders_are_counted_with_what_is_below_them(index: Index, photos: Path) -> None:
    own = {"": 5, "cam1": 2, "cam1/late": 1, "cam10": 1, "it's": 1}
    assert index.folders() == {str(photos / place): count for place, count in own.items()}


def test_an_index_is_opened_again(index: Index) -> None:
    again = Index.open(index._tables.place)
    again._encoder = ColorEncoder()
    assert names(again, "blue", 1) == ["blue.png"]


def test_the_same_tables_are_reached_by_an_address(photos: Path, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/index"
    index = Index.open(address)
    assert index.add_folder(photos, ColorEncoder()).new == 5
    assert Index.open(address).folders() == index.folders()
    assert names(index, "green", 1) == ["green.png"]


def test_another_model_is_refused(index: Index, photos: Path) -> None:
    with pytest.raises(UserError, match=r"is bound to the model .*colors\.ckpt, whose .* differ from .*new\.ckpt"):
        index.add_folder(photos, ColorEncoder("other", "new.ckpt"))
    assert names(index, "red", 1) == ["red.png"]


def test_the_model_is_loaded_from_where_it_was_or_where_it_is_said_to_be(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model.ckpt"
    Index.open(tmp_path / "index").add_folder(photos, ColorEncoder(source=str(place)))
    with pytest.raises(UserError, match=r"model\.ckpt, is not there any more; say where with --model"):
        Index.open(tmp_path / "index").query("red")
    loaded: list[Path] = []

    def load(source: str | Path) -> ColorEncoder:
        loaded.append(Path(source))
        return ColorEncoder("colors" if Path(source).name != "other.ckpt" else "other", str(source))

    monkeypatch.setattr("encoder_loading.load_encoder", load)
    place.touch()
    index = Index.open(tmp_path / "index")
    assert names(index, "red", 1) == names(index, "a red coat", 1) == ["red.png"]
    assert loaded == [place], "once"
    assert names(Index.open(tmp_path / "index", "moved.ckpt"), "red", 1) == ["red.png"]
    with pytest.raises(UserError, match=r"is bound to the model .*differ from those of other\.ckpt"):
        Index.open(tmp_path / "index", "other.ckpt").query("red")


def test_the_same_model_at_another_place_is_noted(photos: Path, tmp_path: Path) -> None:
    for source in ("first.ckpt", "second.ckpt"):
        Index.open(tmp_path).add_folder(photos, ColorEncoder(source=source))
    model = Tables(tmp_path).model
    assert model is not None
    assert Path(model.source).name == "second.ckpt"


@pytest.mark.parametrize(("sentence", "k", "message"), [(" ", 3, "the sentence is empty"), ("red", 0, "k: 0 given")])
def test_wrong_questions_are_refused(index: Index, sentence: str, k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        index.query(sentence, k)


def test_what_is_not_there_is_told(index: Index, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no index in .*nowhere"):
        Index.open(tmp_path / "nowhere").query("red")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match="the index has no such image"):
        index.similar("' OR true --")
    with pytest.raises(UserError, match=r"the picture cannot be read \(not an image\)"):
        index.query_picture(b"GIF9")


def test_foreign_tables_are_refused(tmp_path: Path) -> None:
    table = tables.lancedb.connect(tmp_path).create_table("images", [{"vector": [1.0, 2.0]}])
    tables.lancedb.connect(tmp_path).create_table("unreadable", schema=table.schema)
    with pytest.raises(UserError, match="is not an index of this project"):
        Index.open(tmp_path).query("red")


def test_many_images_get_an_index_of_vectors_that_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "EXACT_UP_TO", 1_000)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((1_200, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    paths = [f"/photos/{n}.jpg" for n in range(len(vectors))]
    rows = [ImageRow(id_of(path), path, "/photos", 1, 1, path, b"", v) for path, v in zip(paths, vectors, strict=True)]
    made = Tables(tmp_path)
    made.bind(model_of(ColorEncoder()))
    for start in (0, 600):
        made.write(rows[start : start + 600], [])
        made.settle()
    [found] = made._images.list_indices()
    assert found.columns == ["vector"]
    query = torch.nn.functional.normalize(torch.tensor([1.0, 2, 3, 4, 5, 6]), dim=0).numpy()
    best = [paths[n] for n in np.argsort(-(vectors @ query))[:10]]
    assert [hit.path for hit in made.nearest(query, 10)] == best
