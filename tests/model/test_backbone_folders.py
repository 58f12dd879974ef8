"""Folders of backbones that are damaged, foreign or hostile: each is refused in one sentence, and none is obeyed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.text.tokens import load_tokenizer
from model.backbones import load_backbone
from model.backbones.position_embeddings import write_positions
from model.published.converted import ranking_notes
from utils.checkpoints.folder import Architecture, IncompleteError, check_folder, read_interpolation
from utils.errors import UserError

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(hub_folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(hub_folders["siglip"], tmp_path / "siglip"))


@pytest.fixture
def tokenizer(small_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_root / "tiny_siglip_checkpoints", tmp_path / "tokenizer"))


def load(folder: Path, **options: Any) -> Any:
    return load_backbone("m_siglip", "siglip", folder, (32, 32), sigmoid=True, max_length=12, **options)


def change(path: Path, how: Change) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(how(content) or content))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(
        UserError, match=rf"^backbone 'm_siglip': .*{message}.*run 'uv run prepare_checkpoints.py m_siglip'"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda c: [c], "config.json is not a JSON object"),
        (
            lambda c: c["text_config"].update(num_hidden_layers="x"),
            "num_hidden_layers is 'x', expected a number of ",
        ),
        (lambda c: c["text_config"].update(num_hidden_layers=10**7), "config.json describes 10000002 layers"),
        (lambda c: c["text_config"].update(vocab_size=10**7), r"is \(40, 32\).* asks for \(10000000, 32\)"),
        (
            lambda c: c["vision_config"].update(hidden_size=10**12),
            "hidden_size is 10{12}, expected a number",
        ),
        (lambda c: c["vision_config"].update(hidden_size=-32), "hidden_size is -32, expected a number"),
        (lambda c: c["vision_config"].update(patch_size=0), "patch_size is 0, expected a number"),
        (lambda c: c["vision_config"].update(num_attention_heads=0.5), "num_attention_heads is 0.5, expected a number"),
        (lambda c: c["text_config"].update(layer_norm_eps=float("nan")), "layer_norm_eps is nan"),
        (lambda c: c["text_config"].update(attention_dropout=7), "attention_dropout is 7"),
        (lambda c: c["text_config"].update(hidden_act="os.system"), "describes no model that can be built"),
        (lambda c: c.update(text_config=5), "text_config is 5, expected the sizes of a tower"),
        (lambda c: c["vision_config"].update(model_type="bert"), "vision_config is of a 'bert' model"),
    ],
)
def test_a_config_that_no_model_has(folder: Path, how: Change, message: str) -> None:
    change(folder / "config.json", how)
    refused(folder, message)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1', "1" * 10_000, "\ufeff{}"])
def test_a_config_that_is_no_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json is not JSON")


def test_what_a_config_names_is_not_done(folder: Path) -> None:
    """Code, kernels from the hub, quantization and causal attention are no hyper-parameters of a tower."""
    expected = load(folder).text(torch.zeros(1, 12, dtype=torch.int64), torch.ones(1, 12).bool()).pooled
    for name in ("modeling_x.py", "configuration_x.py"):
        (folder / name).write_text("raise SystemExit('executed')")
    more = {
        "auto_map": {"AutoConfig": "configuration_x.X", "AutoModel": "modeling_x.X"},
        "_attn_implementation": "kernels-community/flash-attn",
        "_attn_implementation_internal": "kernels-community/flash-attn",
        "quantization_config": {"quant_method": "gptq"},
        "return_dict": False,
    }
    change(folder / "config.json", lambda c: {**c, **more, "text_config": {**c["text_config"], **more}})
    found = load(folder).text(torch.zeros(1, 12, dtype=torch.int64), torch.ones(1, 12).bool()).pooled
    assert torch.equal(found, expected)


def test_adapters_and_shards_beside_the_weights_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"})
    )
    load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.bin"}, "metadata": {}}))
    refused(folder, "model.safetensors cannot be read: there is no such file")


def test_what_a_run_leaves_is_told_from_a_folder_to_fill(folder: Path, tmp_path: Path) -> None:
    """The hub/ folder of another family, and adapters without a backbone."""
    change(folder / "config.json", lambda c: {**c, "model_type": "clip"})
    with pytest.raises(UserError, match="describes a 'clip' model, expected 'siglip'; choose the backbone= that wrote"):
        load(folder)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapters holds LoRA adapters and no backbone; merge them with task=export"):
        read_interpolation(tmp_path / "adapters")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "image_mean is None, expected three numbers"),
        ({"image_mean": [0.5] * 3}, "image_std is None, expected three numbers"),
        ({"image_mean": [0.5] * 2, "image_std": [0.5] * 3}, r"image_mean is \[0.5, 0.5\]"),
        ({"image_mean": "abc", "image_std": [0.5] * 3}, "image_mean is 'abc'"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5, 0, 0.5]}, r"image_std is \[0.5, 0, 0.5\]"),
        ({"image_mean": [float("nan")] * 3, "image_std": [0.5] * 3}, "image_mean is .nan"),
    ],
)
def test_pixel_statistics_that_are_none(folder: Path, content: dict[str, Any], message: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    refused(folder, message)


def spoiled(folder: Path, **weights: torch.Tensor | None) -> None:
    kept = load_file(folder / "model.safetensors") | {name.replace("__", "."): value for name, value in weights.items()}
    save_file({name: value for name, value in kept.items() if value is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([float("nan")]), "holds NaN or infinite weights, the first in 'logit_scale'"),
        (torch.tensor([1]), r"'logit_scale' is \(1,\) torch.int64, but its config.json asks for \(1,\) torch.float32"),
        (torch.zeros(2), r"'logit_scale' is \(2,\)"),
        (None, "lacks 'logit_scale'"),
    ],
)
def test_weights_that_are_no_weights(folder: Path, value: torch.Tensor | None, message: str) -> None:
    spoiled(folder, logit_scale=value)
    refused(folder, message)


def test_a_header_that_lies(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (0, 2**40, 2**63, int.from_bytes(content[:8], "little") - 3):
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        refused(folder, "model.safetensors cannot be read: it is damaged")


def test_positions_of_another_model(folder: Path) -> None:
    write_positions(folder, torch.zeros(8, 24), (4, 2))
    refused(folder, "has positions of width 24, 0 of them before the patches; the model needs width 32, 0 before")
    write_positions(folder, torch.zeros(9, 32), (4, 2))
    refused(folder, "1 of them before the patches; the model needs width 32, 0 before")
    write_positions(folder, torch.zeros(8, 32), (100, 2))
    refused(folder, r"has positions of shape \(8, 32\) for 100 x 2 patches")
    save_file({"x": torch.zeros(1)}, folder / "positions.safetensors")
    refused(folder, "positions.safetensors cannot be read")


def test_heads_that_are_none(folder: Path) -> None:
    (folder / "heads.safetensors").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"heads.safetensors cannot be read: .*; delete it, or convert"):
        ranking_notes(folder, None, 5)
    save_file({"id.classifier.weight": torch.full((3, 2), float("inf"))}, folder / "heads.safetensors")
    with pytest.raises(UserError, match=r"heads.safetensors holds NaN or infinite weights"):
        ranking_notes(folder, None, 5)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"\0" * 100),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"tokenizer_class": 5}'),
        ("tokenizer_config.json", b'{"tokenizer_class": "Trainer"}'),
        ("tokenizer_config.json", b'{"model_max_length": "x"}'),
        ("tokenizer_config.json", b'{"pad_token": null}'),
        ("config.json", b"[]"),
    ],
)
def test_a_tokenizer_that_is_none(tokenizer: Path, file: str, content: bytes) -> None:
    (tokenizer / file).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"The (folder|tokenizer in) {tokenizer} .*prepare_checkpoints.py` fills it again"
    ):
        load_tokenizer(tokenizer)


def test_a_vocabulary_of_garbage(tokenizer: Path) -> None:
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "spiece.model").write_bytes(b"garbage" * 100)
    with pytest.raises(UserError, match="holds no tokenizer that transformers can load"):
        load_tokenizer(tokenizer)


def test_code_that_a_tokenizer_names_is_not_run(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers would ask the user
    (tokenizer / "tokenization_x.py").write_text(f"open({str(tokenizer / 'executed')!r}, 'w')\nclass X: pass\n")
    named = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}, "tokenizer_class": "X"}
    change(tokenizer / "tokenizer_config.json", lambda c: {**c, **named})
    change(
        tokenizer / "config.json", lambda c: {**c, "auto_map": {"AutoConfig": "tokenization_x.X"}, "model_type": "x"}
    )
    with pytest.raises(UserError, match=r"\(it names code of its own, which is not run\)"):
        load_tokenizer(tokenizer)
    assert not (tokenizer / "executed").exists()


def test_a_record_of_a_download_names_its_own_files_only(tokenizer: Path) -> None:
    architecture = Architecture("siglip", 128, 128, 16, None)
    check_folder(tokenizer, architecture)
    for sums in ({"../other/model.safetensors": "0"}, ["model.safetensors"], 5):
        (tokenizer / "hub.json").write_text(json.dumps({"sha256": sums}))
        with pytest.raises(IncompleteError, match=r"hub.json names other files than those of its folder"):
            check_folder(tokenizer, architecture)
