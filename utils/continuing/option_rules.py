"""Rules for each option: its value in a continued run, and whether it changes results.

python -m utils.continuing.option_rules      prints the table of docs/continuing.md
"""

from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

from utils.errors import run_command


class Rule(NamedTuple):
    """The rule for all options that match one of `keys`; ``*`` matches any part of a key.

    continued: which value a continued run uses. "here": always the command's. "free" and "fixed": the checkpoint's;
        if the command gives another value, "free" applies it in full and "fixed" raises an error.
    changes_result: whether tables and dashboards treat runs with different values as different runs.
    """

    keys: tuple[str, ...]
    continued: Literal["here", "free", "fixed"]
    changes_result: bool
    note: str


RULES: Final = (
    Rule(
        keys=(
            "task",
            "ckpt_path",
            "run_dir",
            "run_name",
            "output_dir",
            "dataset_root_dir",
            "dataset.cache_dir",
            "plan.*",
            "export.*",
            "embed.*",
            "callbacks.*.dirpath",
            "callbacks.*.folder",
            "callbacks.*.filename",
        ),
        continued="here",
        changes_result=False,
        note="folders and files on this machine; a checkpoint never decides where a run writes",
    ),
    Rule(
        keys=("backbone.description.*", "dataset.description.*"),
        continued="here",
        changes_result=False,
        note="facts of a backbone or dataset; only their YAML sets them",
    ),
    Rule(
        keys=(
            "trainer.accelerator",
            "trainer.devices",
            "trainer.num_nodes",
            "trainer.strategy",
            "dataset.num_workers",
            "dataset.cache",
            "dataset.shard_cache_gb",
            "dataset.augment_on",
            "dataset.eval_batch_size",
            "grad_cache.*",
            "backbone.gradient_checkpointing",
            "loss.terms.*.chunk_size",
            "optimizer.fused",
            "compile",
        ),
        continued="free",
        changes_result=False,
        note="speed and memory; results agree up to rounding",
    ),
    Rule(
        keys=(
            "logger.*",
            "callbacks.last.every_n_steps",
            "callbacks.progress.*",
            "callbacks.epoch_line.*",
            "callbacks.throughput.*",
            "callbacks.amp_overflow.*",
            "trainer.log_every_n_steps",
            "trainer.enable_*",
            "trainer.num_sanity_val_steps",
            "trainer.deterministic",
            "trainer.benchmark",
            "shown_queries",
            "evaluation.metrics.*",
            "evaluation.rerank",
            "evaluation.rerankers.*",
            "evaluation.plots.*",
            "evaluation.figures",
            "evaluation.changes.*",
            "evaluation.page",
            "img_size_str",
            "dataset.label",
            "optimizer.name",
        ),
        continued="free",
        changes_result=False,
        note="logging, saving, display and names; img_size_str itself is a name, img_size is what counts",
    ),
    Rule(
        keys=("trainer.max_*", "trainer.min_*"),
        continued="free",
        changes_result=True,
        note="the schedule uses the new length; the first lines print the learning rate before and after",
    ),
    Rule(
        keys=("optimizer.param_groups.*", "scheduler.*", "optimizer"),
        continued="free",
        changes_result=True,
        note="the optimizer state comes from the checkpoint, rates and decay from the options",
    ),
    Rule(
        keys=("dataset.images",),
        continued="free",
        changes_result=False,
        note="where the images lie; the annotations decide which they are",
    ),
    Rule(
        keys=("backbone.folder", "dataset.annotations", "dataset.shards", "dataset.shards.*"),
        continued="free",
        changes_result=True,
        note="another place of the same backbone, from which frozen weights are read, of the same data",
    ),
    Rule(
        keys=("callbacks.*", "evaluation.*", "trainer.limit_val_batches", "trainer.limit_test_batches", "trainer"),
        continued="free",
        changes_result=True,
        note="end of training, evaluation, choice of the checkpoint; for trainer=OPTION each key has its own rule",
    ),
)
OTHERS: Final = Rule((), "fixed", True, "model, data, losses, batches, precision, seed: a new value needs a new run")

# Option -> the value of runs before it existed. Checkpoints without it are continued and tested with this value.
BEFORE: Final = {
    "dataset.interpolation": "bicubic",
    "backbone.pos_interpolation": "bicubic",
    "evaluation.precision": "trainer",
}
# Newer group -> the option that applies to checkpoints without this group.
GROUPS_BEFORE: Final = {"evaluation": "default", "masking": "uniform"}

_CONTINUED: Final = {
    "here": "the command's value, never the checkpoint's",
    "free": "the checkpoint's value; a value given on the command replaces it",
    "fixed": "the checkpoint's value; another value is refused",
}


def rule_of(key: str) -> Rule:
    """Returns the rule for an option, or for a config group, by its dotted key."""
    return next((rule for rule in RULES if any(matches(key, pattern) for pattern in rule.keys)), OTHERS)


def table() -> str:
    """Returns all rules as a Markdown table."""
    lines = ["| options | in a continued run | changes a result | |", "|---|---|---|---|"]
    for rule in (*RULES, OTHERS):
        keys = ", ".join(f"`{key}`" for key in rule.keys) or "all others"
        changes = "yes" if rule.changes_result else "no"
        lines.append(f"| {keys} | {_CONTINUED[rule.continued]} | {changes} | {rule.note} |")
    return "\n".join(lines)


def matches(key: str, pattern: str) -> bool:
    """Returns whether a rule's pattern matches an option, or names all options of the group `key`."""
    return fnmatchcase(key, pattern) or key == pattern.removesuffix(".*")


if __name__ == "__main__":
    run_command(lambda: print(table()))
