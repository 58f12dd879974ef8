"""The commands index, query and serve, with a real encoder."""

import re
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.annotations import read_dataset
from data.images.read import read_image
from encoder_loading import load_encoder
from search.command_line import main
from search.extra import check_extra
from search.tables import Tables
from tests.forked import run_python
from utils.errors import UserError


@pytest.fixture(scope="module")
def place(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, and their index."""
    folder = tmp_path_factory.mktemp("command")
    shutil.copytree(small_root / "DRAWN-PEDES" / "imgs", folder / "photos")
    (folder / "photos" / "bad.jpg").write_text("no image")
    model = str(small_root / "tiny_siglip_checkpoints")
    assert main(["index", str(folder / "photos"), "--model", model, "--index", str(folder / "index")]) == 0
    return folder


def test_an_index_is_updated_and_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = ["--index", str(place / "index")]
    photos = len(list((place / "photos").iterdir())) - 1
    main(["index", str(place / "photos"), *index])
    printed = capsys.readouterr().out
    assert f"images  0 new, 0 changed, {photos} unchanged, 0 gone\n" in printed
    assert f"encoded 0; the index has {photos} images\n" in printed
    assert "bad.jpg (not an image)\n" in printed
    main(["query", "một người đàn ông mặc áo đỏ", "-k", "3", *index])
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"  ([123])  -?0\.\d{3}  /\S+\.jpg", line)[1] for line in lines] == ["1", "2", "3"]  # type: ignore[index]
    image = lines[0].split()[-1]
    main(["query", "--image", image, "-k", "1", "--folder", str(place / "photos"), *index])
    assert capsys.readouterr().out == f"  1  1.000  {image}\n"


def test_embeddings_and_scores_are_those_of_the_encoder(
    place: Path, small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder(small_root / "tiny_siglip_checkpoints")
    rows = Tables(place / "index")._images.search().to_arrow().to_pylist()
    vectors = {Path(row["path"]).name: np.array(row["vector"]) for row in rows}
    record = read_dataset("drawn", small_root).test[0]
    expected = encoder.images(read_image(record, encoder.resize)[None])[0].numpy()
    assert vectors[record.image_path.name] == pytest.approx(expected, abs=1e-6)
    sentence = record.captions[0]
    main(["query", sentence, "-k", "5", "--index", str(place / "index")])
    found = [Path(line.split()[-1]).name for line in capsys.readouterr().out.splitlines()]
    query = encoder.texts([sentence])[0].numpy()
    assert found == sorted(vectors, key=lambda name: -float(vectors[name] @ query))[:5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "--index", "{place}/index"], "give a sentence, or a picture with --image FILE"),
        (["query", "red", "--image", "x.png", "--index", "{place}/index"], "give a sentence, or a picture"),
        (["query", "--image", "{place}/none.png", "--index", "{place}/index"], "none.png cannot be read"),
        (["query", "red", "--folder", "{place}/none", "--index", "{place}/index"], "none: there is no such folder"),
        (["query", "red", "--index", "{place}/nowhere"], "there is no index in"),
        (["index", "{place}/none", "--index", "{place}/index"], "none: there is no such folder"),
        (["index", "{place}/photos", "--index", "{place}/new"], "there is no index in"),
        (
            ["index", "{place}/photos", "--model", "{root}/tiny_clip_checkpoints", "--index", "{place}/index"],
            "is bound",
        ),
        (["serve", "--index", "{place}/nowhere"], "there is no index in"),
    ],
)
def test_mistakes_are_told_in_one_sentence(place: Path, small_root: Path, arguments: list[str], message: str) -> None:
    filled = [argument.format(place=place, root=small_root) for argument in arguments]
    with pytest.raises(UserError, match=re.escape(message)):
        main(filled)


def test_missing_packages_are_told_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "lancedb" else find(name, *rest)

    monkeypatch.setattr("search.extra.find_spec", without)
    sentence = "search needs packages that are not installed (lancedb); run `uv sync --extra search`"
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_extra()
    done = run_python("-m", "search", "query", "red")
    assert (done.returncode, done.stderr.strip()) == (2, f"error: {sentence}")
