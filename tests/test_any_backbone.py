"""Backbones that only their folder describes, on the whole path: train, test the checkpoint, plan, refuse."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

import trainer
from lightning_plan import trace_step
from tests.small_run import ANY_METHOD, command
from utils.errors import UserError

SMALL = (*ANY_METHOD, "loss=itc", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=csv")
OPTIONS = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    folder = tmp_path_factory.mktemp("folders") / "my_open_clip_checkpoints"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.CustomTextCLIP(**OPTIONS).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPTIONS, "preprocess_cfg": {}}))
    return folder


def test_open_clip_trains_with_lora_and_grad_cache_and_is_tested(
    small_root: Path, open_clip_folder: Path, tmp_path: Path
) -> None:
    here = (f"dataset_root_dir={small_root}", f"output_dir={tmp_path}")
    chosen = ("backbone=folder", f"backbone.folder={open_clip_folder}", "lora=default", "grad_cache.micro_batch=4")
    with command(*SMALL, *here, *chosen, f"run_dir={tmp_path / 'run'}") as cfg:
        metrics = trainer.train(cfg)
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    own = {key: config.backbone[key] for key in ("name", "family", "max_length", "sigmoid")}
    # experiment=tiny of the default config cuts captions to 32 tokens
    assert own == {"name": "my_open_clip", "family": "open_clip", "max_length": 32, "sigmoid": False}
    assert (tmp_path / "run" / "adapters" / "adapter_model.safetensors").is_file()
    (best,) = (tmp_path / "run" / "checkpoints").glob("best*.ckpt")
    with command(*ANY_METHOD, *here, "task=test", f"ckpt_path={best}", f"run_dir={tmp_path / 'test'}") as cfg:
        tested = trainer.test(cfg)
    assert tested["test/t2i/mAP"] == pytest.approx(metrics["test/t2i/mAP"])


def test_a_folder_of_transformers_is_tested_as_it_is(small_root: Path, tmp_path: Path) -> None:
    folder = small_root / "tiny_clip_checkpoints"
    results = []
    for chosen in (("backbone=tiny_clip",), ("backbone=folder", f"backbone.folder={folder}")):
        overrides = (*ANY_METHOD, f"dataset_root_dir={small_root}", f"run_dir={tmp_path / str(len(results))}")
        with command(*overrides, "task=test", *chosen, "backbone.max_length=40") as cfg:
            results.append(trainer.test(cfg))
    assert results[0] == results[1]


def test_a_plan_needs_neither_weights_nor_a_folder(tmp_path: Path) -> None:
    small = ("img_size_str=64x32", "dataset_root_dir=nowhere", f"run_dir={tmp_path}", "loss=itc", "backbone=open_clip")
    with command(*small, "backbone.model=ViT-S-32-alt", "lora=default", name="clip") as cfg:
        assert cfg.backbone.max_length == 77
        assert trace_step(cfg, 4).step.activations > 0
    refused = pytest.raises(UserError, match=r"loss.terms.efa reads the patches of an image")
    with command(*small, "backbone.model=RN50", "+loss/term@loss.terms.efa=efa", name="clip") as cfg, refused:
        trace_step(cfg, 4)
