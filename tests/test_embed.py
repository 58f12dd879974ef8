"""task=embed: rows in order, with their paths or captions; what cannot be read is listed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trainer
from encoder_loading import load_encoder
from tests.small_run import command
from utils.errors import UserError


def embed(root: Path, *overrides: str) -> dict[str, float]:
    folder = root / "tiny_siglip_checkpoints"
    size = ("img_size_str=128x128", "backbone.max_length=32", "dataset.eval_batch_size=2", f"backbone.folder={folder}")
    with command("task=embed", f"dataset_root_dir={root}", *size, *overrides) as cfg:
        return trainer.embed(cfg)


def drawn(folder: Path) -> list[np.ndarray]:
    """Five images, one in a subfolder, one turned by EXIF, and two files that are no images."""
    (folder / "sub").mkdir(parents=True)
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (90, 40, 3), dtype=np.uint8) for _ in range(5)]
    for name, picture in zip(("a.png", "b.png", "c.PNG", "sub/d.png"), pictures, strict=False):
        Image.fromarray(picture).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pictures[4]).save(folder / "e.png", exif=exif)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return pictures


def test_images_are_embedded_in_the_order_of_their_paths_and_broken_ones_are_listed(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = drawn(tmp_path / "photos")
    counts = embed(small_root, f"embed.images={tmp_path / 'photos'}", f"embed.out={tmp_path / 'out.npy'}")
    assert counts == {"embed/rows": 5, "embed/unreadable": 1}
    rows = np.load(tmp_path / "out.npy")
    paths = (tmp_path / "out.paths.txt").read_text().splitlines()
    assert paths == ["a.png", "b.png", "c.PNG", "e.png", "sub/d.png"]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    upside_down = pictures[4][::-1, ::-1]
    loaded = load_encoder(small_root / "tiny_siglip_checkpoints", "cpu")
    shown = [*pictures[:3], upside_down, pictures[3]]
    pixels = torch.stack([loaded.resize(Image.fromarray(picture)) for picture in shown])
    np.testing.assert_allclose(rows, loaded.images(pixels).numpy(), atol=1e-5)
    assert (tmp_path / "out.unreadable.txt").read_text().startswith("broken.jpg\t")
    assert "1 of 6 images cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_captions_are_embedded_with_their_texts(suffix: str, small_root: Path, tmp_path: Path) -> None:
    captions = ["a man in red", "một người phụ nữ", "a woman, with a bag"]
    file = tmp_path / f"in{suffix}"
    content = {
        ".txt": "\n".join(captions) + "\n\n",
        ".csv": "id,text\n" + "".join(f'{row},"{caption}"\n' for row, caption in enumerate(captions)),
        ".jsonl": "".join(json.dumps({"text": caption}) + "\n" for caption in captions),
    }[suffix]
    file.write_text(content, encoding="utf-8")
    places = (f"embed.captions={file}", f"embed.out={tmp_path / 'out.npy'}", "embed.column=text")
    assert embed(small_root, *places)["embed/rows"] == 3
    assert (tmp_path / "out.captions.txt").read_text(encoding="utf-8").splitlines() == captions
    expected = load_encoder(small_root / "tiny_siglip_checkpoints", "cpu")
    expected.tokenize.max_length = 32
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected.texts(captions).numpy(), atol=1e-5)


def test_parquet_has_the_paths_and_the_embeddings_as_columns(small_root: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    drawn(tmp_path / "photos")
    for name in ("out.parquet", "out.npy"):
        embed(small_root, f"embed.images={tmp_path / 'photos'}", f"embed.out={tmp_path / name}")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["path"].to_pylist() == ["a.png", "b.png", "c.PNG", "e.png", "sub/d.png"]
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), np.load(tmp_path / "out.npy"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((), r"task=embed needs embed.out=FILE.npy, and embed.images=FOLDER or embed.captions=FILE"),
        (("embed.images=x", "embed.captions=y", "embed.out=a.npy"), r"task=embed needs embed.out"),
        (("embed.images=x", "embed.out=a.csv"), r"embed.out: a.csv given, expected a file that ends in .npy or"),
        (("embed.images=nowhere", "embed.out=a.npy"), r"embed.images: nowhere is no folder"),
        (("embed.captions=nowhere.txt", "embed.out=a.npy"), r"nowhere.txt cannot be read \(No such file"),
        (("embed.captions=a.docx", "embed.out=a.npy"), r"a.docx .*expected a file that ends in .txt, .csv"),
    ],
)
def test_absent_and_wrong_options_are_named(overrides: tuple[str, ...], told: str, small_root: Path) -> None:
    with pytest.raises(UserError, match=told):
        embed(small_root, *overrides)
