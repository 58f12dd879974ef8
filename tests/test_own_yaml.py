"""A backbone and a dataset of one's own: one YAML each, in the folder that --config-dir names, and no other edit."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import constants
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

import trainer
from data.annotations import read_dataset
from data.annotations.layouts import layout_of
from data.doctor import examine
from prepare_checkpoints import prepare
from tests.forked import run_python
from tests.http_server import web_server
from tests.small_run import ANY_METHOD, CONFIG_DIR, SMALL
from utils.continuing.composed import composer, described
from utils.errors import UserError

REPOSITORY = CONFIG_DIR.parent
BACKBONE = """
defaults: [_clip, _self_]
name: our_clip
max_length: 48
description:
  repository: ours/clip-small
  architecture:
    projection_dim: 128
    text_config: {hidden_size: 128, intermediate_size: 512, num_hidden_layers: 3, num_attention_heads: 4,
                  vocab_size: %d}
    vision_config: {hidden_size: 128, intermediate_size: 512, num_hidden_layers: 3, num_attention_heads: 4,
                    image_size: 128}
"""
DATASET = """
defaults: [_base, _self_]
name: our_pedes
description:
  folder: OUR-PEDES
  files: [ours.json, older.json]
  path_key: picture
  caption_keys: {zh: sentence, en: [first, second]}
  source: ask us
  official:
    train: {images: 24, captions: 48, ids: 12}
"""


class Own:
    """The two YAMLs in `config_dir`, and in `root` the dataset and, where it is prepared, the backbone."""

    def __init__(self, folder: Path, small_root: Path) -> None:
        self.config_dir, self.root = folder / "config", folder / "root"
        self.published = small_root / "tiny_clip_checkpoints"
        vocabulary = json.loads((self.published / "config.json").read_text())["text_config"]["vocab_size"]
        self.write("backbone/our_clip.yaml", BACKBONE % vocabulary)
        self.write("dataset/our_pedes.yaml", DATASET)
        shutil.copytree(small_root / "DRAWN-PEDES" / "imgs", self.root / "OUR-PEDES" / "imgs")
        records = json.loads((small_root / "DRAWN-PEDES" / "data_captions.json").read_text(encoding="utf-8"))
        ours = [
            {"id": r["id"], "split": r["split"], "picture": r["file_path"], "sentence": "一个女人穿红色的衣服。"}
            | dict(zip(("first", "second"), r["en_captions"], strict=True))
            for r in records
        ]
        (self.root / "OUR-PEDES" / "ours.json").write_text(json.dumps(ours), encoding="utf-8")

    def write(self, file: str, text: str) -> None:
        (self.config_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (self.config_dir / file).write_text(text, encoding="utf-8")

    def config(self, *overrides: str, small: tuple[str, ...] = SMALL) -> DictConfig:
        own = ("backbone=our_clip", "dataset=our_pedes", f"dataset_root_dir={self.root}", f"run_dir={self.root}/run")
        with composer(self.config_dir):
            return compose("demo", overrides=[*small, "logger=csv", *own, *overrides])

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_python(*arguments, "--config-dir", str(self.config_dir))


@pytest.fixture
def own(tmp_path: Path, small_root: Path) -> Own:
    return Own(tmp_path, small_root)


def test_a_backbone_is_planned_prepared_and_loaded(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    with composer(own.config_dir):
        planned = trainer.plan(own.config("task=plan", small=(*ANY_METHOD, "loss=itc")))
    assert 0.5 < planned["plan/peak_gb"] < 2
    assert not (own.root / "our_clip_checkpoints").exists()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with web_server() as server, composer(own.config_dir):
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        server.serve_model("ours/clip-small", {file.name: file.read_bytes() for file in own.published.iterdir()})
        folder = prepare("our_clip", own.root)
        own.write("backbone/our_clip.yaml", (BACKBONE % 49_408))
        with pytest.raises(UserError, match=r"holds a clip model .* expected a clip model .* 49408 tokens"):
            prepare("our_clip", own.root)
    assert folder == own.root / "our_clip_checkpoints"
    assert instantiate(own.config().backbone).embed_dim == 128


def test_a_dataset_is_read_and_examined(own: Own) -> None:
    with composer(own.config_dir):
        layout = layout_of("our_pedes")
        assert (layout.language, layout.files, layout.path_key) == ("zh", ("ours.json", "older.json"), "picture")
        chinese, english = (read_dataset("our_pedes", own.root, language=language) for language in (None, "en"))
        report = examine("our_pedes", own.root, decode=False)
    assert chinese.train[0].captions == ("一个女人穿红色的衣服。",)
    assert [len(record.captions) for record in english.train[:2]] == [2, 2]
    assert report["trainable"]
    assert report["splits"]["train"]["official"]["ids"] == 12
    with pytest.raises(UserError, match=r"^There is no dataset 'our_pedes'; expected one of cuhk_pedes, custom, drawn"):
        read_dataset("our_pedes", own.root)


def test_the_commands_know_both(own: Own) -> None:
    shutil.copytree(own.published, own.root / "our_clip_checkpoints")
    assert "our_clip" in own.run("trainer.py", "--help").stdout
    for command in (["prepare_checkpoints.py", "our_clip"], ["-m", "data.doctor", "our_pedes", "--fast"]):
        done = own.run(*command, "--root", str(own.root))
        assert done.returncode == 0, done.stderr
    overrides = ("backbone=our_clip", "dataset=our_pedes", "dataset.language=en", f"dataset_root_dir={own.root}")
    done = own.run("trainer.py", "task=test", "logger=csv", *SMALL, *overrides, f"output_dir={own.root}/outputs")
    assert done.returncode == 0, done.stderr
    assert "as it is on our_clip" in done.stdout


def test_a_dataset_is_read_within_the_hydra_app_of_another_program(tmp_path: Path, small_root: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("loss: 3")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert read_dataset("drawn", small_root).language == "en"
        assert compose("theirs").loss == 3


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("dataset/ours.yaml", "name: ours", r"^dataset/ours\.yaml does not describe a dataset; begin it with"),
        ("dataset/ours.yaml", "defaults: [_vase]", r"^dataset/ours\.yaml cannot be composed \(.*_vase"),
        ("dataset/ours.yaml", "a: [", r"^dataset/ours\.yaml cannot be composed \("),
        ("dataset/ours.yaml", "defaults: [_base]", r"^dataset/ours\.yaml does not describe a dataset \(Missing"),
        ("dataset/ours.yaml", DATASET + "  path_kye: x", r"^dataset/ours\.yaml .* \(.*path_kye"),
        ("dataset/ours.yaml", DATASET + "language: fr", r"^dataset\.language=fr is not in dataset ours; expected 'zh'"),
    ],
)
def test_a_wrong_yaml_is_one_sentence(own: Own, file: str, text: str, message: str) -> None:
    own.write(file, text)
    with composer(own.config_dir), pytest.raises(UserError, match=message):
        layout_of("ours")


def test_a_backbone_that_comes_from_nowhere_is_one_sentence(own: Own) -> None:
    own.write("backbone/ours.yaml", "defaults: [_clip, _self_]\nname: ours")
    own.write("backbone/blip.yaml", "defaults: [_clip, _self_]\nname: blip\nfamily: blip")
    with composer(own.config_dir):
        with pytest.raises(UserError, match=r"ours\.yaml: neither repository nor steps has a value; give one of them"):
            prepare("ours", own.root)
        blip = compose("demo", overrides=["backbone=blip"]).backbone
    with pytest.raises(Exception, match=r"backbone\.family=blip is unknown; expected siglip or clip"):
        instantiate(blip)


def test_sizes_of_the_drawn_dataset_are_those_that_are_drawn() -> None:
    from data.synthetic import SyntheticSpec

    spec, official = SyntheticSpec(), layout_of("drawn").official
    for split in ("train", "val", "test"):
        ids = getattr(spec, split)
        images = ids * spec.images_per_identity
        assert official[split] == (images, images * spec.captions_per_image, ids)
    assert described("dataset", "drawn").description.folder == "DRAWN-PEDES"
