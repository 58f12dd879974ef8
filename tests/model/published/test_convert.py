"""Conversion of OpenAI's layout: the same features, scores and heads as the architecture written out plainly."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.backbones import Backbone, load_backbone
from model.features import Features
from model.heads import GlobalHead, TokenSelectionHead
from model.objectives import ID, MLM, SDM, ModelSpec, Objective
from model.published.convert import convert
from model.published.converted import load_head, load_heads, mask_row, ranking_notes, write_converted
from model.published.file import read_state
from model.tbps import TBPS
from tests.model.objectives.make_term import make_term
from tests.model.openai_clip import EMBED, LENGTH, PATCH, VOCABULARY, Irra, Rde
from utils.checkpoints.folder import read_interpolation
from utils.errors import UserError

SIZE = (6 * PATCH, 2 * PATCH)  # a grid of 3 to 1, as that of 384 x 128
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]


@pytest.fixture
def irra() -> Irra:
    torch.manual_seed(0)
    model = Irra(patches=12, identities=7).eval()
    for parameter in model.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, std=0.3)  # so that a norm or bias in the wrong place shows
    return model


def saved(model: nn.Module, path: Path, **beside: Any) -> Path:
    torch.save({"model": model.state_dict(), "epoch": 3, **beside}, path)
    return path


def backbone_of(path: Path, folder: Path, size: tuple[int, int] = SIZE) -> Backbone:
    folder.mkdir()
    write_converted(convert(read_state(path), source=path), folder, source=path)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return load_backbone("clip", "clip", folder, size, sigmoid=False, max_length=LENGTH).eval()


def batch(size: tuple[int, int] = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Raw pixels, the pixels that a tower sees, and captions that end in the largest id."""
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=random)
    ids = torch.randint(1, VOCABULARY - 2, (3, LENGTH), generator=random)
    ids[:, 0] = VOCABULARY - 2
    ids[torch.arange(3), torch.tensor([5, 11, 7])] = VOCABULARY - 1
    normalized = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return pixels, normalized, ids


@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_features_and_scores_equal_the_architecture_written_out(irra: Irra, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "best.pth"
    torch.save({"model": {prefix + name: value for name, value in irra.state_dict().items()}}, path)
    backbone = backbone_of(path, tmp_path / "converted")
    pixels, normalized, ids = batch()
    mask = torch.ones_like(ids, dtype=torch.bool)
    image, text = backbone.image(pixels), backbone.text(ids, mask)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(image.tokens, irra.base_model.encode_image(normalized), **close)
    torch.testing.assert_close(image.pooled, irra.base_model.encode_image(normalized)[:, 0], **close)
    torch.testing.assert_close(text.tokens, irra.base_model.encode_text(ids), **close)
    ends = irra.base_model.encode_text(ids)[torch.arange(3), ids.argmax(dim=1)]
    torch.testing.assert_close(text.pooled, ends, **close)
    assert backbone.logit_scale_and_bias()[0].item() == pytest.approx(50)

    spec = ModelSpec(EMBED, EMBED, num_classes=7, vocab_size=VOCABULARY)
    objective = Objective({"mlm": make_term(MLM, spec), "id": make_term(ID, spec)}).eval()
    lines = load_heads(objective, tmp_path / "converted")
    assert [line.split(" starts from ")[0] for line in lines] == ["mlm", "id"]
    assert not any("but not" in line for line in lines)
    assert lines[0].endswith("; words attend to padding, as they did there")
    mlm: Any = objective.terms["mlm"]
    scores = mlm.head(mlm.interaction(text.tokens, image.tokens, mask))
    torch.testing.assert_close(scores, irra.scores(normalized, ids), **close)
    classifier: Any = objective.terms["id"]
    torch.testing.assert_close(
        classifier.classifier(image.pooled[:, None])[:, 0], irra.classifier(image.pooled), **close
    )


def test_the_loss_of_a_published_head_on_padded_captions_is_that_of_the_architecture_written_out(
    irra: Irra, tmp_path: Path
) -> None:
    for module in (irra.cross_attn, irra.cross_modal_transformer, irra.mlm_head):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)  # so that every word has a say in every other
    backbone = backbone_of(saved(irra, tmp_path / "a.pth"), tmp_path / "converted")
    pixels, normalized, ids = batch()
    mask = torch.arange(LENGTH) <= ids.argmax(dim=1)[:, None]
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    ids[:, 2] = VOCABULARY - 3  # [MASK]
    scores = irra.scores(normalized, ids.masked_fill(~mask, 0))
    expected = nn.functional.cross_entropy(scores[:, 2], labels[:, 2])

    def loss(attend_padding: bool | None) -> Tensor:
        term = make_term(
            MLM, ModelSpec(EMBED, EMBED, num_classes=7, vocab_size=VOCABULARY), attend_padding=attend_padding
        )
        load_heads(Objective({"mlm": term}), tmp_path / "converted")
        positions = (labels != -100).flatten().nonzero()[:, 0]
        padded = ids.masked_fill(~mask, VOCABULARY - 1)  # as transformers' tokenizer does
        words = {"mlm_labels": labels, "mlm_positions": positions}
        encoder = TBPS(backbone, GlobalHead(EMBED, backbone.grid))
        return term(Features(encoder, {"image": pixels}, {"text_masked": (padded, mask)}, words))[0]

    torch.testing.assert_close(loss(None), expected, rtol=1e-5, atol=0)
    assert loss(True) == loss(None)
    assert abs(loss(False) - expected) > 1e-4 * expected


def test_the_mask_token_of_a_published_head_is_the_third_row_from_the_end(irra: Irra, tmp_path: Path) -> None:
    backbone_of(saved(irra, tmp_path / "a.pth"), tmp_path / "converted")
    assert mask_row(tmp_path / "converted", VOCABULARY) == VOCABULARY - 3
    assert mask_row(tmp_path / "converted", VOCABULARY + 1) is None
    assert mask_row(tmp_path, VOCABULARY) is None
    torch.save(irra.base_model.state_dict(), tmp_path / "clip.pt")
    backbone_of(tmp_path / "clip.pt", tmp_path / "plain")
    assert mask_row(tmp_path / "plain", VOCABULARY) is None
    term = make_term(MLM, ModelSpec(EMBED, EMBED, num_classes=7, vocab_size=VOCABULARY))
    assert load_heads(Objective({"mlm": term}), tmp_path / "plain") == []
    assert not term.attend_padding


@torch.no_grad()
def test_half_precision_is_read_as_its_own_values_in_fp32(irra: Irra, tmp_path: Path) -> None:
    rounded = irra.half().float()
    backbone = backbone_of(saved(irra.half(), tmp_path / "half.pth"), tmp_path / "converted")
    pixels, normalized, _ = batch()
    expected = rounded.float().base_model.encode_image(normalized)
    torch.testing.assert_close(backbone.image(pixels).tokens, expected, rtol=1e-5, atol=1e-5)


def test_at_another_size_positions_are_resized_from_the_published_grid(irra: Irra, tmp_path: Path) -> None:
    backbone = backbone_of(saved(irra, tmp_path / "a.pth"), tmp_path / "converted", (12 * PATCH, 4 * PATCH))
    table = irra.base_model.visual.positional_embedding.detach()
    grid = table[1:].T.reshape(1, -1, 6, 2)
    expected = torch.nn.functional.interpolate(grid, size=(12, 4), mode="bicubic", align_corners=False)
    own = backbone.hub_model.vision_model.embeddings.position_embedding.weight
    torch.testing.assert_close(own, torch.cat([table[:1], expected.flatten(2)[0].T]))


def test_heads_of_other_sizes_stay_as_they_are_and_are_named(irra: Irra, tmp_path: Path) -> None:
    backbone_of(saved(irra, tmp_path / "a.pth"), tmp_path / "converted")
    spec = ModelSpec(EMBED, EMBED, num_classes=1_003, vocab_size=VOCABULARY)
    objective = Objective({"sdm": make_term(SDM, spec), "id": make_term(ID, spec)})
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    [line] = load_heads(objective, tmp_path / "converted")
    assert "classifier.weight is 7 x 128, here 1,003 x 128" in line
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert load_heads(objective, tmp_path) == []
    [note] = ranking_notes(tmp_path / "converted", GlobalHead(EMBED), 3)
    assert "trained on 7 identities, this dataset has 3" in note
    assert ranking_notes(tmp_path / "converted", GlobalHead(EMBED), 7) == []
    assert ranking_notes(tmp_path, GlobalHead(EMBED), 7) == []


def test_the_report_tells_what_became_of_every_part(irra: Irra, tmp_path: Path) -> None:
    state = read_state(saved(irra, tmp_path / "a.pth")) | {
        "prompt.weight": torch.zeros(2),
        "prompt.bias": torch.zeros(2),
    }
    published = convert(state, source=tmp_path)
    report = published.report()
    for part in (
        r"6 x 2: used, and resized to 3 x 3",
        r"7 identities",
        r"made: scale 50",
        r"prompt\*",
        r"dropped",
    ):
        assert re.search(part, report), report
    used = len(published.weights) + len(published.heads) + sum(published.dropped.values())
    split = 2 * 2 * (2 * 2)  # q, k, v of 2 layers in 2 towers come as one weight and one bias each
    assert used == len(state) + split + published.scale_made


@pytest.fixture
def rde() -> Rde:
    torch.manual_seed(0)
    model = Rde(patches=12).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return model


@torch.no_grad()
def test_a_checkpoint_of_rde_ranks_as_published_with_its_selection_heads(rde: Rde, tmp_path: Path) -> None:
    path, folder = saved(rde, tmp_path / "rde.pth"), tmp_path / "converted"
    backbone = backbone_of(path, folder)
    pixels, normalized, ids = batch()
    torch.testing.assert_close(
        backbone.image(pixels).tokens, rde.base_model.encode_image(normalized), rtol=1e-5, atol=1e-5
    )
    assert not convert(read_state(path), source=path).dropped

    head = TokenSelectionHead(EMBED, backbone.grid, text_length=LENGTH, width=2 * EMBED)
    assert load_head(head, folder) == [f"token selection starts from {folder / 'heads.safetensors'}"]
    encoder = TBPS(backbone, head).eval()
    mask = torch.arange(LENGTH) <= ids.argmax(dim=1)[:, None]
    found = encoder.encode_image(pixels).embedding, encoder.encode_text(ids, mask).embedding
    for own, published in zip(found, rde.ranked(normalized, ids.masked_fill(~mask, 0)), strict=True):
        torch.testing.assert_close(own, published, rtol=1e-5, atol=1e-5)
    assert ranking_notes(folder, head, 3) == []


def test_a_ranking_without_the_selection_heads_of_rde_says_so(rde: Rde, tmp_path: Path) -> None:
    path, folder = saved(rde, tmp_path / "rde.pth"), tmp_path / "converted"
    backbone_of(path, folder)
    published = convert(read_state(path), source=path)
    for told in (published.report(), *ranking_notes(folder, GlobalHead(EMBED), 3)):
        assert "this one uses only the global embedding, unless head=token_selection" in told
    with pytest.raises(
        UserError, match=r"image_selection\.linear\.weight of token selection is 256 x 128, expected 64 x"
    ):
        load_head(TokenSelectionHead(EMBED, (6, 2), text_length=LENGTH, width=64), folder)


def test_a_backbone_without_selection_heads_says_that_they_are_new(irra: Irra, tmp_path: Path) -> None:
    backbone_of(saved(irra, tmp_path / "irra.pth"), tmp_path / "converted")
    lines = load_head(TokenSelectionHead(EMBED, (6, 2), text_length=LENGTH, width=64), tmp_path / "converted")
    assert lines == [f"token selection is new: {tmp_path / 'converted'} has none"]


def test_a_scale_and_a_square_grid_are_kept(tmp_path: Path) -> None:
    model = Irra(patches=9, identities=2)
    sizes = {name: torch.tensor(12) for name in ("input_resolution", "context_length", "vocab_size")}
    state = model.base_model.state_dict() | {"logit_scale": torch.tensor(4.6)} | sizes
    torch.save(state, tmp_path / "clip.pt")
    backbone = backbone_of(tmp_path / "clip.pt", tmp_path / "converted", (12, 12))
    assert backbone.logit_scale_and_bias()[0].item() == pytest.approx(99.48, abs=0.1)
    assert {file.name for file in (tmp_path / "converted").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert not convert(read_state(tmp_path / "clip.pt"), source=tmp_path).dropped


def test_images_are_resized_as_the_published_code_does(irra: Irra, tmp_path: Path) -> None:
    (tmp_path / "converted").mkdir()
    path = saved(irra, tmp_path / "a.pth")
    write_converted(convert(read_state(path), source=path), tmp_path / "converted", source=path)
    assert read_interpolation(tmp_path / "converted") == "bilinear"


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_positions_of_a_grid_that_fits_stay_bit_by_bit(irra: Irra, tmp_path: Path, mode: str) -> None:
    backbone_of(saved(irra, tmp_path / "a.pth"), tmp_path / "converted")
    backbone = load_backbone(
        "clip", "clip", tmp_path / "converted", SIZE, sigmoid=False, max_length=LENGTH, pos_interpolation=mode
    )
    own = backbone.hub_model.vision_model.embeddings.position_embedding.weight
    assert torch.equal(own, irra.base_model.visual.positional_embedding)


def test_what_lies_beside_the_weights_is_not_executed(irra: Irra, tmp_path: Path) -> None:
    harmless = saved(irra, tmp_path / "a.pth", args=argparse.Namespace(lr=1e-5))
    assert "visual.proj" in read_state(harmless)
    path = saved(irra, tmp_path / "b.pth", logger=Path("runs"))
    with pytest.raises(
        UserError, match=r"b.pth cannot be read: it holds [\w.]+, which cannot be rebuilt without executing"
    ):
        read_state(path)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "net", "weights", None])
@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "_orig_mod.", "backbone.", "clip.", "model.", "base_model."),
        *("module._orig_mod.", "_orig_mod.module.clip.", "model.backbone.base_model.", "module.module."),
    ],
)
def test_known_wrappers_and_prefixes_are_taken_off(
    irra: Irra, tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    bare = irra.base_model.state_dict()
    weights: dict[str, Any] = {prefix + name: value for name, value in bare.items()}
    torch.save(weights if wrapper is None else {wrapper: weights, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    found = read_state(tmp_path / "a.pth")
    assert found.keys() == bare.keys()
    assert all(torch.equal(found[name], bare[name]) for name in bare)


def test_wrappers_within_each_other_and_a_compiled_part_are_taken_off(irra: Irra, tmp_path: Path) -> None:
    bare = irra.base_model.state_dict()
    weights = {name.replace("visual.", "visual._orig_mod."): value for name, value in bare.items()}
    torch.save({"state_dict": {"model": weights, "epoch": 3}, "model": "ViT-B/16"}, tmp_path / "a.pth")
    assert read_state(tmp_path / "a.pth").keys() == bare.keys()


def test_numbers_of_numpy_lie_beside_the_weights(irra: Irra, tmp_path: Path) -> None:
    beside = {"best": np.float64(71.2), "step": np.int64(7), "flag": np.bool_(True), "row": np.float32(1)}
    path = saved(irra, tmp_path / "a.pth", **beside)
    assert "visual.proj" in read_state(path)
    with pytest.raises(UserError, match=r"it holds numpy._core.multiarray._reconstruct, which cannot be rebuilt"):
        read_state(saved(irra, tmp_path / "b.pth", array=np.zeros(3)))


def test_safetensors_are_read_as_well(irra: Irra, tmp_path: Path) -> None:
    bare = irra.base_model.state_dict()
    save_file({f"module.{name}": value.half().contiguous() for name, value in bare.items()}, tmp_path / "a.safetensors")
    found = read_state(tmp_path / "a.safetensors")
    assert found.keys() == bare.keys()
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_two_models_in_one_file_and_weights_that_are_not_finite_are_refused(irra: Irra, tmp_path: Path) -> None:
    bare = irra.base_model.state_dict()
    torch.save({**bare, "module.visual.proj": bare["visual.proj"]}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"has two tensors named 'visual.proj', the second is 'module.visual.proj'"):
        read_state(tmp_path / "a.pth")
    bare["ln_final.weight"][3] = float("nan")
    torch.save({"model": bare}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b.pth holds NaN or infinite weights, the first in 'ln_final.weight'"):
        read_state(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("visual.conv1.weight", torch.tensor(1.0), r"'visual.conv1.weight' is of shape \(\), expected 4 dimensions"),
        ("visual.conv1.weight", torch.zeros(64, 3, 0, 0), r"'visual.conv1.weight' is of shape \(64, 3, 0, 0\)"),
        ("positional_embedding", None, "it has no 'positional_embedding'"),
        ("text_projection", torch.zeros(128), r"'text_projection' is of shape \(128,\), expected 2 dimensions"),
        ("transformer.resblocks.0.attn.in_proj_weight", torch.zeros(7, 2), "is not a whole CLIP ViT"),
        ("transformer.resblocks.0.mlp.c_fc.weight", None, "it has no 'transformer.resblocks.0.mlp.c_fc.weight'"),
    ],
)
def test_shapes_that_no_clip_has_are_one_sentence(
    irra: Irra, tmp_path: Path, name: str, value: Tensor | None, message: str
) -> None:
    state = {**irra.base_model.state_dict(), name: value}
    weights = {key: tensor for key, tensor in state.items() if tensor is not None}

    def converted() -> None:
        write_converted(convert(weights, source=Path("a.pth")), tmp_path / "folder", source=Path("a.pth"))

    with pytest.raises(UserError, match=message):
        converted()


def test_files_that_are_no_such_checkpoint_are_one_sentence(irra: Irra, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(saved(irra, tmp_path / "a.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "jit.pt"))
    for file, message in {
        "truncated.pth": "it is damaged, cut short or not a file of torch.save; download it again",
        "text.pth": "it is damaged or not a file of torch.save; download it again",
        "empty.pth": "holds no weights",
        "jit.pt": "TorchScript archive; CLIP itself is downloaded by",
        "absent.pth": "does not exist",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            read_state(tmp_path / file)
        assert "\n" not in str(caught.value)


def test_other_architectures_and_grids_are_one_sentence(irra: Irra, tmp_path: Path) -> None:
    state = read_state(saved(irra, tmp_path / "a.pth"))
    source = Path("a.pth")
    with pytest.raises(UserError, match="is a CLIP with a ResNet"):
        convert(state | {"visual.layer1.0.conv1.weight": torch.zeros(1)}, source=source)
    with pytest.raises(UserError, match=r"is not a CLIP in OpenAI's layout: it has no 'visual.conv1.weight'"):
        convert({"bert.embeddings": torch.zeros(1)}, source=source)
    with pytest.raises(UserError, match=r"--img-size 16x16: that is 16 patches of 4 pixels, .* positions for 12"):
        convert(state, source=source, img_size=(16, 16))
    assert convert(state, source=source, img_size=(16, 12)).grid == (4, 3)
    with pytest.raises(UserError, match=r"positions for 10 patches of an unknown grid; give --img-size"):
        convert(state | {"visual.positional_embedding": torch.zeros(11, 64)}, source=source)
    del state["ln_final.weight"]
    with pytest.raises(UserError, match=r"is not a whole CLIP ViT \(Missing key\(s\).*final_layer_norm.weight"):
        write_converted(convert(state, source=source), tmp_path / "folder", source=source)
