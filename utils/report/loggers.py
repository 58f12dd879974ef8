"""Loggers for a run's metrics: Weights & Biases, a CSV file, TensorBoard."""

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from utils.errors import UserError, nearest
from utils.ranking.metrics import DIRECTIONS, METRICS
from utils.report.csv_logger import AppendingCSVLogger
from utils.report.plots.pictures import RankedQuery, marked

MODES = ("online", "offline", "disabled")
OLD_MODES = {"dryrun": "offline", "run": "online"}
TAGS = ("strategy", "dataset", "backbone", "lora", "seed")
RUN_ID_FILE = "wandb_run_id"
STEP = "trainer/global_step"
LONGEST_NAME = 128
LONGEST_TAG = 64


def build_loggers(
    options: Mapping[str, Any], run_dir: str | Path, run: Mapping[str, Any], config: Mapping[str, Any]
) -> list[Logger]:
    """Returns the loggers that `options` asks for; all of them continue when a run is resumed.

    Args:
        options: `config/logger/`: csv and tensorboard (bool); wandb with project, group, mode, ...; others: name ->
            what Hydra instantiates as a logger of Lightning.
        run_dir: the run's folder. CSV goes to logs/steps.csv, TensorBoard to tensorboard/, W&B to wandb/.
        run: the settings that distinguish the run from others: strategy, dataset, backbone, lora, seed, and variant
            (all other overrides).
        config: the resolved config as plain containers; W&B shows it in columns, and `run` as `run.*`.

    Raises:
        UserError: if the W&B mode is unknown, the mode is online but nobody is logged in, or W&B does not start.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = []
    if options["csv"]:
        loggers.append(AppendingCSVLogger(run_dir, name="logs", version="", flush_logs_every_n_steps=1))
    if options["tensorboard"]:
        loggers.append(TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False))
    wandb_logger = _wandb_logger(options["wandb"], run_dir, run, config)
    if wandb_logger is not None:
        loggers.append(wandb_logger)
    return [*loggers, *(instantiate(other) for other in options["others"].values() if other is not None)]


@rank_zero_only
def log_picture(
    loggers: Sequence[Logger], picture: Image.Image, *, key: str, step: int, queries: Sequence[RankedQuery] = ()
) -> None:
    """Logs a picture to W&B and TensorBoard; on W&B, `queries` become a table of their images, right or wrong."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with _staged(logger.save_dir or "."):
                if queries:
                    logger.log_table(key, *_ranked_table(queries), step=step)
                else:
                    logger.log_image(key, [picture], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")


@rank_zero_only
def log_page(loggers: Sequence[Logger], page: Path, *, key: str, step: int) -> None:
    """Logs an HTML page to W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            with _staged(logger.save_dir or "."):
                logger.experiment.log({key: wandb.Html(str(page)), STEP: step})


def log_comparison(options: Mapping[str, Any], folder: Path, table: Sequence[Mapping[str, str]], page: Path) -> None:
    """Logs the table and the page of a sweep as a W&B run of their own, unless W&B is disabled.

    Args:
        options: `config/logger/`, of the sweep's jobs.
        folder: the sweep's folder.
        table: the rows of the comparison, with equal keys.
    """
    if _wandb_mode(options["wandb"]["mode"]) == "disabled":
        return
    import wandb

    run = _start_wandb(options["wandb"], folder, name=f"comparison {folder.name}", job_type="comparison")
    rows = [list(row.values()) for row in table]
    with _staged(folder):
        run.log({"comparison": wandb.Table(list(table[0]), rows), "comparison/page": wandb.Html(str(page))})
        run.finish()


@rank_zero_only
def log_provenance(loggers: Sequence[Logger], provenance: Mapping[str, Any]) -> None:
    """Updates the run's provenance in W&B's config to its final state."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update({"provenance": dict(provenance)}, allow_val_change=True)


def _wandb_logger(
    options: Mapping[str, Any], run_dir: Path, run: Mapping[str, Any], config: Mapping[str, Any]
) -> WandbLogger | None:
    """Returns the logger of a started W&B run, or None where W&B is disabled. Only rank 0 starts one."""
    if _wandb_mode(options["mode"]) == "disabled":
        return None
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return WandbLogger(project=options["project"], save_dir=run_dir)
    kind = "-".join(str(run[fact]) for fact in TAGS if fact != "seed")
    name, group = (_short(f"{words} {run['variant']}".rstrip()) for words in (f"{kind}-s{run['seed']}", kind))
    started = _start_wandb(
        options,
        run_dir,
        name=name,
        group=options["group"] or group,
        job_type=config["task"],
        tags=[tag[:LONGEST_TAG] for tag in (*(f"{fact}:{run[fact]}" for fact in TAGS), *options["tags"])],
        config={**config, "run": dict(run)},
    )
    started.define_metric(STEP)
    started.define_metric("*", step_metric=STEP, step_sync=True)
    # By full name: W&B uses the first pattern that matches, so it would ignore val/t2i/* after *.
    metrics = config.get("evaluation", {}).get("metrics", METRICS)
    for name in (f"val/{direction}/{metric}" for direction in DIRECTIONS for metric in metrics):
        started.define_metric(name, step_metric=STEP, step_sync=True, summary="max,last")
    return WandbLogger(experiment=started, project=options["project"], save_dir=run_dir)


def _start_wandb(options: Mapping[str, Any], folder: Path, **settings: Any) -> Any:
    """Starts the W&B run of a folder, or continues it, and returns it; `settings` are those of ``wandb.init``.

    Raises:
        UserError: as `build_loggers` does.
    """
    import wandb

    # A process that logs to W&B passes its service on to the commands that it starts. In that service a killed run
    # stays open, and W&B refuses to continue it: "run ID ... is in use".
    os.environ.pop("WANDB_SERVICE", None)
    wandb.finish()  # an earlier run of this process
    mode = _wandb_mode(options["mode"])
    if mode in ("auto", "online"):
        mode = _checked_login(mode)
    try:
        return wandb.init(
            **{name: options[name] for name in ("project", "entity", "notes")},
            **settings,
            dir=folder,
            id=_run_id(folder),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(quiet=True, silent=mode == "offline"),
        )
    except Exception as error:  # errors of W&B, its service and the disk have no common class
        advice = "check network and `wandb login` or set logger.wandb.mode=offline"
        if mode == "offline":
            advice = f"see that {folder} can be written, or do without W&B: logger.wandb.mode=disabled"
        raise UserError(f"W&B did not start ({error}): {advice}") from error


def _wandb_mode(configured: str) -> str:
    """Returns the W&B mode: "disabled" if the config says so, else WANDB_MODE if it is set, else the config's mode."""
    if configured == "disabled":
        return configured
    source, mode, choices = "logger.wandb.mode", configured, ["auto", *MODES]
    if "WANDB_MODE" in os.environ:
        source, mode, choices = "WANDB_MODE", os.environ["WANDB_MODE"], [*MODES]
        mode = OLD_MODES.get(mode, mode)
    if mode not in choices:
        raise UserError(f"{source}={mode}: no such mode.{nearest(mode, choices)} Choose {', '.join(choices)}")
    return mode


def _checked_login(mode: str) -> str:
    """Returns "online" if W&B finds credentials; else "offline" for auto, with a message. Uses no network."""
    import wandb

    try:
        logged_in = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise UserError(f"W&B credentials: {error}; run `wandb login` or set logger.wandb.mode=offline") from error
    if logged_in:
        return "online"
    if mode == "online":
        raise UserError("W&B mode is online, but nobody is logged in: run `wandb login` or set logger.wandb.mode=auto")
    print("W&B: nobody is logged in, so this run is recorded offline; `wandb sync` uploads it later", flush=True)
    return "offline"


def _run_id(run_dir: Path) -> str:
    """Returns the W&B id of the run in `run_dir`; every start of the run gets the same id."""
    file = run_dir / RUN_ID_FILE
    known = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if not known:
        known = secrets.token_hex(4)
        file.write_text(known, encoding="utf-8")
    return known


def _short(name: str) -> str:
    """Returns `name`; if it is longer than `LONGEST_NAME` characters, its beginning and a hash of the whole name."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - len(digest) - 1]}-{digest}"


@contextmanager
def _staged(folder: str | Path) -> Iterator[None]:
    """Makes W&B keep images in the run's folder until they are uploaded, not in the user's home.

    So the folder of an offline run is complete. If the user has set WANDB_DATA_DIR, W&B uses that folder.
    """
    chosen = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str((Path(folder) / "wandb").resolve()))
    try:
        yield
    finally:
        if not chosen:
            del os.environ["WANDB_DATA_DIR"]


def _ranked_table(queries: Sequence[RankedQuery]) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and rows of the W&B table: caption, hits, true images, and one image per rank."""
    import wandb

    depth = max(len(query.images) for query in queries)
    columns = ["caption", f"right in top {depth}", "true images", *(f"rank {i + 1}" for i in range(depth))]
    rows = []
    for query in queries:
        images = [
            wandb.Image(marked(image), caption=f"{'✓' if image.right else '✗'} {image.score:.3f}")
            for image in query.images
        ]
        blanks = [None] * (depth - len(images))
        rows.append([query.caption, query.found, query.true_images, *images, *blanks])
    return columns, rows
