"""Filters for the messages of libraries, so that the run's own lines stay readable."""

import logging
import warnings

NOISE = (
    r".*does not have many workers.*",
    r".*GPU available but not used.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r".*`gradient_checkpointing_enable` is deprecated.*",
    r".*`is_gradient_checkpointing` is deprecated.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*module\(s\) in eval mode at the start of training.*",  # frozen towers are in eval mode
)


def quiet_libraries() -> None:
    """Hides the notices of Lightning, transformers and fontTools; errors and other warnings stay."""
    import transformers

    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
