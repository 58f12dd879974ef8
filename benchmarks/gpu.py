"""Checks the claims about this project on a GPU, or smaller versions of them on the CPU if there is no GPU.

    uv run benchmarks/gpu.py [--minutes 10] [--memory-gb 12] [--json FILE] [CLAIM ...]

It needs no network, weights or datasets: models are full-size with random weights, data are drawn. Memory is capped, so
that a larger card can stand for a smaller one. Each claim has a share of the time and prints its table when complete. A
failed claim does not stop the others, and failures are listed at the end. The exit status is 1 if one failed.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_claims.runner import Claim, Finding, Runner, Settings

HERE: Final = "benchmarks.gpu_claims"
CLAIMS: Final = tuple(  # the most important first, because the last ones are left out if time is short
    Claim(name, sentence, seconds, f"{HERE}.{target}")
    for name, sentence, seconds, target in (
        ("recipes", "every recipe trains within the memory that is planned for it", 170, "recipes:recipes"),
        ("precision", "fp16 with its scaler and bf16 give the gradients of fp32", 45, "precision:precision"),
        ("kernels", "attention is fused, the GPU is busy, no step waits for it", 40, "kernels:kernels"),
        ("training", "a killed training continues to the same weights; R@1 is the CPU's", 90, "training:training"),
        ("augmentation", "the GPU builds the same views as the workers", 45, "augmentation:augmentation"),
        ("captions", "captions of usual length make a step shorter", 20, "captions:captions"),
        ("shards", "pairs from shards come as fast as from loose files, and go on", 30, "shards:shards"),
        ("ranking", "100,000 x 100,000 are ranked at the speed of the matrix product", 25, "ranking:ranking"),
        ("clustering", "CPCL's pseudo labels equal those of the CPU", 30, "ranking:clustering"),
        ("pretrain", "noise-aware masking: the CPU's probabilities, no waiting, continued", 70, "pretrain:pretrain"),
        ("grad_cache", "memory stays flat over the batch under GradCache", 45, "options:grad_cache"),
        ("processes", "a step of two processes is the step of one", 30, "processes:processes"),
        ("adamw8bit", "8-bit optimizer states take the memory that is planned", 25, "options:adamw8bit"),
        ("compile", "compiled towers are faster and compile once", 100, "options:compiled"),
    )
)
LEAST: Final = 5.0  # seconds that have to be left to start a claim


def main(arguments: Sequence[str] | None = None, claims: Sequence[Claim] = CLAIMS) -> int:
    """Runs the claims that the command line names, or all claims. Returns the exit status."""
    options = parse(arguments, claims)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both as in trainer.py: waiting threads sleep,
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # and memory is left without gaps
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: cleans up and prints the findings so far
    chosen = [claim for claim in claims if claim.name in options.claims or not options.claims]
    end = time.monotonic() + 60 * options.minutes
    findings: dict[str, Finding] = {}
    with TemporaryDirectory(prefix="gpu-") as temporary:
        runner = Runner(Settings(options.memory_gb, Path(temporary)), Path(temporary) / "log.txt", show)
        try:
            facts = runner.start()
            introduce(facts)
            for number, claim in enumerate(chosen):
                left = end - time.monotonic()
                share = max(1.0, left / sum(claim.seconds for claim in chosen[number:]))
                seconds = min(left, share * claim.seconds) if facts["gpu"] else left
                show(f"\n## {claim.name}: {claim.sentence} ({max(0, seconds):.0f} s)")
                if seconds < LEAST:
                    findings[claim.name] = Finding("left out", notes=["no time was left"])
                    show("\nleft out: no time was left")
                else:
                    findings[claim.name] = runner.run(claim, seconds)
                save(options, facts, findings)
        except RuntimeError as error:
            show(f"\nFAILED  {error}")
            return 1
        except KeyboardInterrupt:
            show(f"\ninterrupted in {chosen[len(findings)].name}" if len(findings) < len(chosen) else "\ninterrupted")
            conclude(findings, options.failures)
            return 130
        finally:
            runner.close()
    return conclude(findings, options.failures)


def parse(arguments: Sequence[str] | None, claims: Sequence[Claim]) -> Any:
    """Returns the options. Ends the process if they are invalid."""
    lines = "\n".join(f"  {claim.name:14}{claim.sentence} ({claim.seconds:.0f} s)" for claim in claims)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=f"claims:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="of the list below; all unless some are named")
    parser.add_argument("--minutes", type=float, default=10.0, help="that all may take together (default: 10)")
    parser.add_argument("--memory-gb", type=float, default=12.0, help="of the card to stand in for (default: 12)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for all figures, with machine and versions")
    options = parser.parse_args(arguments)
    names = [claim.name for claim in claims]
    if unknown := [name for name in options.claims if name not in names]:
        parser.error(f"there is no claim {unknown[0]!r}; there are {', '.join(names)}")
    if not (options.minutes > 0 and options.memory_gb > 1):
        parser.error("--minutes has to be above 0, --memory-gb above 1")
    options.failures = (options.json or Path("outputs/gpu.json")).with_suffix(".failures.txt")
    try:
        options.failures.unlink(missing_ok=True)  # from the previous run
        if options.json is not None:
            replace(options.json, "{}")
    except OSError as error:
        parser.error(f"--json: {options.json} cannot be written ({error.strerror})")
    return options


def save(options: Any, facts: dict[str, Any], findings: dict[str, Finding]) -> None:
    """Writes the findings so far: all figures, if a file was given, and the tracebacks of failures."""
    texts = [f"{name}: {what}\n{text}" for name, found in findings.items() for what, text in found.failures]
    figures = {"machine": facts, "claims": {name: asdict(found) for name, found in findings.items()}}
    if options.json is not None:
        replace(options.json, json.dumps(figures, indent=1))
    if texts:
        replace(options.failures, "\n\n".join(texts))


def replace(path: Path, text: str) -> None:
    """Writes a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def introduce(facts: dict[str, Any]) -> None:
    """Prints the machine on which the claims are tested."""
    if not facts["gpu"]:
        show("No CUDA device: a reduced set of the claims runs on the CPU, with tiny models.\n")
    show(f"on {', '.join(f'{name} {value}' for name, value in facts.items() if name != 'gpu')}")


def conclude(findings: dict[str, Finding], details: Path) -> int:
    """Prints the result of each claim and returns the exit status."""
    show("\n## Together\n\n| claim | | seconds |\n|---|---|---|")
    for name, found in findings.items():
        show(f"| {name} | {found.status} | {found.seconds:.0f} |")
    failures = [f"- {name}: {what}" for name, found in findings.items() for what, _ in found.failures]
    if failures:
        show("\n".join(["", *failures]))
        show(f"\n{len(failures)} failures; their tracebacks are in {details}")
    return 1 if failures else 0


def show(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
