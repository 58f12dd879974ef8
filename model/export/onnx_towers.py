"""Both towers of an encoder as ONNX files: writing, quantisation to 8 bits, and running by ONNX Runtime."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from model.tbps import TBPS
from utils.errors import UserError, library_errors

PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript")
OPSET: Final = 18  # the one that PyTorch's exporter writes; ONNX Runtime reads it since version 1.14
TOWERS: Final = {"image": "image.onnx", "text": "text.onnx"}
INPUTS: Final = {"image": ("pixels",), "text": ("input_ids", "attention_mask")}
LARGEST: Final = (
    1_900_000_000  # bytes of weights in an .onnx file, of which protobuf allows 2 GiB; more go into a file beside
)
QUANTIZED: Final = ("MatMul", "Gemm", "Gather")  # ONNX Runtime has no fast 8-bit convolution with dynamic ranges


class _ImageTower(nn.Module):
    def __init__(self, encoder: TBPS) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.encode_image(pixels).embedding


class _TextTower(nn.Module):
    def __init__(self, encoder: TBPS) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder.encode_text(input_ids, attention_mask.bool()).embedding


def check_packages() -> None:
    """Raises `UserError` if a package that writes or runs ONNX is absent."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        raise UserError(
            f"export.formats: ONNX needs the packages {', '.join(PACKAGES)}, but {', '.join(absent)} is not installed; "
            "install them with 'uv sync --extra export'"
        )


def write_onnx(encoder: TBPS, folder: Path, *, size: tuple[int, int], max_length: int) -> None:
    """Writes image.onnx and text.onnx to `folder`. Both take a batch of any size and give the ranked embeddings.

    image.onnx: "pixels" uint8 ``(B, 3, H, W)``, RGB, already resized; normalisation is inside. text.onnx: "input_ids"
    and "attention_mask", int64 ``(B, L)``, padded to `max_length`. Outputs: "image_embedding" and "text_embedding",
    fp32 ``(B, E)``.

    Args:
        encoder: an encoder without adapters, on the CPU, in evaluation mode.
        size: (height, width) of images in pixels.
        max_length: tokens of a caption.

    Raises:
        UserError: PyTorch cannot export a tower of this backbone with this head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids, mask = (torch.ones(2, max_length, dtype=torch.int64) for _ in range(2))  # two: one tensor would be one input
    towers: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "image": (_ImageTower(encoder), (torch.zeros(2, 3, *size, dtype=torch.uint8),)),
        "text": (_TextTower(encoder), (ids, mask)),
    }
    kind = f"{type(encoder.backbone).__name__} with {type(encoder.head).__name__}"
    for name, (tower, example) in towers.items():
        batch = torch.export.Dim("batch")
        with (
            _quiet(),
            library_errors(f"PyTorch cannot export the {name} tower of {kind} to ONNX", "leave ONNX out"),
        ):
            program: Any = torch.onnx.export(
                tower.eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=INPUTS[name],
                output_names=[f"{name}_embedding"],
                dynamic_shapes=tuple({0: batch} for _ in example),
                verbose=False,
            )
            program.save(folder / TOWERS[name], external_data=_bytes_of(tower) > LARGEST)


def quantize(source: Path, folder: Path) -> None:
    """Writes the ONNX files in `source` to `folder` with weights of 8 bits, one scale for each output channel.

    Activations are quantised while the model runs, with the range that they have then, so no images are needed.
    Convolutions and everything else stay in fp32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder.mkdir(parents=True, exist_ok=True)
    for file in TOWERS.values():
        with _quiet():
            quantize_dynamic(
                source / file,
                folder / file,
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=(source / f"{file}.data").exists(),
            )


def size_of(folder: Path) -> int:
    """Returns the bytes of the ONNX files in `folder`."""
    return sum(file.stat().st_size for file in folder.glob("*.onnx*"))


class OnnxEncoder:
    """The ONNX files in a folder, run by ONNX Runtime on the CPU."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other programs may use the cores
        self._sessions = {
            name: onnxruntime.InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
            for name, file in TOWERS.items()
        }

    def images(self, pixels: Tensor) -> Tensor:
        """Returns the embeddings ``(B, E)`` of uint8 pixels ``(B, 3, H, W)``."""
        return self._run("image", pixels)

    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the embeddings ``(B, E)`` of token ids and their mask ``(B, L)``."""
        return self._run("text", ids, mask.long())

    def _run(self, name: str, *inputs: Tensor) -> Tensor:
        named = {key: tensor.numpy() for key, tensor in zip(INPUTS[name], inputs, strict=True)}
        return torch.from_numpy(self._sessions[name].run(None, named)[0])


def _bytes_of(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the notices of the exporter, and keeps the attention of `nn.MultiheadAttention` in operations of ONNX."""
    fast = torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.WARNING)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logging.disable(logging.NOTSET)
