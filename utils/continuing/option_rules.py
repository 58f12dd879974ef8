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
            "callbacks.*.dirpath",
            "callbacks.*.folder",
            "callbacks.*.filename",
        ),
        continued="here",
        changes_result=False,
        note="where things lie on this machine; a file never says where to write",
    ),
    Rule(
        keys=("backbone.description.*", "dataset.description.*"),
        continued="here",
        changes_result=False,
        note="what a backbone and a dataset are: as their YAML says, and no option of a run",
    ),
    Rule(
        keys=(
            "trainer.accelerator",
            "trainer.devices",
            "trainer.num_nodes",
            "trainer.strategy",
            "dataset.num_workers",
            "dataset.cache",
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
        note="how fast and in how much memory; results agree up to rounding",
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
            "img_size_str",
            "dataset.label",
            "optimizer.name",
        ),
        continued="free",
        changes_result=False,
        note="what is logged, saved and shown, and how things are called; of img_size_str, img_size counts",
    ),
    Rule(
        keys=("trainer.max_*", "trainer.min_*"),
        continued="free",
        changes_result=True,
        note="the schedule follows the new length; the first lines say where the learning rate was and goes on",
    ),
    Rule(
        keys=("optimizer.param_groups.*", "scheduler.*", "optimizer"),
        continued="free",
        changes_result=True,
        note="moments and step counts come from the checkpoint, rates and decay from the options",
    ),
    Rule(
        keys=("backbone.folder",),
        continued="free",
        changes_result=True,
        note="where the backbone lies; it has to be the same one, frozen weights are read from it",
    ),
    Rule(
        keys=("callbacks.*", "evaluation.*", "trainer.limit_val_batches", "trainer.limit_test_batches", "trainer"),
        continued="free",
        changes_result=True,
        note="when training stops, how it is ranked, what checkpoint wins; trainer=OPTION: each key by its own rule",
    ),
)
OTHERS: Final = Rule((), "fixed", True, "model, data, losses, batches, precision, seed: another value is another run")

# Option -> the value of runs before it existed. Checkpoints without it are continued and tested with this value.
BEFORE: Final = {
    "dataset.interpolation": "bicubic",
    "backbone.pos_interpolation": "bicubic",
    "evaluation.precision": "trainer",
}
# Newer group -> the option that applies to checkpoints without this group.
GROUPS_BEFORE: Final = {"evaluation": "default"}

_CONTINUED: Final = {
    "here": "this command's, never the checkpoint's",
    "free": "the checkpoint's; one that is given is applied in full",
    "fixed": "the checkpoint's; another one is refused",
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
