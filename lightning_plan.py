"""What a config costs, computed without files: the memory of a training step, and the operations of the encoder."""

from collections.abc import Callable

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from data.annotations import size_of
from data.batch import IMAGE, TEXT
from data.loading.chosen import chosen_dataset
from data.loading.dummy_batch import blank_batch, published_identities
from lightning_models import build_module
from model.prototypes import PrototypeMemory
from model.tbps import build_encoder
from solver.fake_adamw8bit import AdamW8bitStates
from utils.errors import UserError
from utils.memory.plan import Traced, processes
from utils.memory.trace import fake_gpu, measure_step
from utils.report.efficiency import Efficiency
from utils.training.precision import AUTOCAST


def trace_step(cfg: DictConfig, batch_size: int) -> Traced:
    """Returns the memory that a training step of `cfg` takes on a GPU. It computes nothing and needs no files.

    The step is the one of `LitTBPS` on fake tensors, with AMP, LoRA, GradCache and recomputed activations as in `cfg`.
    Towers are not compiled; compiled towers take less memory. Assumptions: captions fill all positions, there are as
    many clusters as identities, and one fused kernel updates all parameters.

    Args:
        batch_size: number of pairs in the batch of one process.

    Raises:
        UserError: training would refuse `cfg` too, or the precision is not in `AUTOCAST`.
    """
    precision = str(cfg.trainer.precision)
    if precision not in AUTOCAST:
        raise UserError(f"trainer.precision: {precision} cannot be planned, only {', '.join(AUTOCAST)}")
    if cfg.dataset.annotations is None:
        identities = published_identities(cfg.dataset.name, cfg.dataset.proportion)
    else:
        identities = size_of(chosen_dataset(cfg, ()).train).ids
    together = processes(cfg)
    with torch.device("meta"):
        module = build_module(cfg, build_encoder(cfg, weights=False), identities).train()
    with fake_gpu():
        module.to_empty(device="cpu")
        for memory in (part for part in module.modules() if isinstance(part, PrototypeMemory)):
            memory.prototypes = memory.prototypes.new_zeros(identities, memory.prototypes.shape[1])
        batch = blank_batch(module.objective.needs, batch_size, cfg.img_size, cfg.backbone.max_length)

        def loss() -> Tensor:
            with torch.autocast("cpu", dtype=AUTOCAST[precision], enabled=AUTOCAST[precision] is not None):
                return module.objective(module.features(batch, gather=lambda rows: torch.cat([rows] * together))).total

        parameters = list(module.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if cfg.optimizer.algorithm == "adamw8bit":
            optimizer: Optimizer = AdamW8bitStates(trained)
        else:
            fused = None if cfg.optimizer.algorithm == "muon" else True  # Muon has no fused kernel
            optimizer = instantiate(cfg.optimizer, fused=fused)(module.named_parameters())
        step = measure_step(
            module,
            loss,
            optimizer,
            [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)],
            accumulated=cfg.trainer.accumulate_grad_batches,
            ddp=together > 1,
        )
    return Traced(step, *(sum(parameter.numel() for parameter in some) for some in (parameters, trained)))


def measure_efficiency(cfg: DictConfig) -> Efficiency:
    """Returns the cost of the encoder that `cfg` describes. It is built without weights, and nothing is computed."""
    with torch.device("meta"):
        encoder = build_encoder(cfg, weights=False).eval().to("meta")
        batch = blank_batch(frozenset({IMAGE, TEXT}), 2, cfg.img_size, cfg.backbone.max_length)
    parameters = list(encoder.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    encoder.requires_grad_(False)  # the counter would ask for the gradients of a module that gets a parameter
    return Efficiency(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=trained,
        image_gflops=_gflops(lambda size: encoder.encode_image(batch[IMAGE][:size])),
        caption_gflops=_gflops(lambda size: encoder.encode_text(*(rows[:size] for rows in batch[TEXT]))),
        width=encoder.embed_dim,
    )


@torch.no_grad()
def _gflops(encode: Callable[[int], object]) -> float:
    """Returns what a second row adds to a batch of one, without what all rows share: DoRA's norms of the weights."""
    found = []
    for size in (1, 2):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(size)
        found.append(counter.get_total_flops())
    return (found[1] - found[0]) / 1e9
