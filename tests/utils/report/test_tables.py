"""The formats of a comparison, and the options of its command line."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.utils.report.test_differences import ITC, SDM, compare, save_run
from tests.utils.report.test_reports import ROOT, command, facts, level, made_with
from utils.report.comparison import Comparison
from utils.report.reports import save_metrics


def small(folder: Path) -> Comparison:
    """Two rows, of which the second is the baseline; the names have characters that formats treat as their own."""
    pids = list(range(8))
    low = [[2 - (query == 0)] for query in pids]
    for seed in (1, 2):
        save_run(folder / f"itc{seed}", low, pids=pids, strategy="itc", seed=seed)
        save_run(
            folder / f"b{seed}",
            [[1]] * (7 + seed % 2) + [[2]] * (seed == 2),
            i2t=low,
            pids=pids,
            strategy="b_1 50%",
            seed=seed,
        )
    comparison = compare(folder)
    for group in comparison.groups:
        for spreads in group.spreads.values():
            for metric in ("R10", "mAP", "mINP"):
                del spreads[metric]
    return comparison


NOTE = """\
Δ R1: paired difference to itc in points, of each query's means over seeds, with its 95 % interval over identities; \
p is corrected for the number of tests, 2 (Holm); † p < 0.05"""
TABLE = f"""\
drawn, tiny_siglip, full, test split
+----------+---+------+--------------+---------------+---------------------------------------+
| Strategy | n | Task |           R1 |            R5 |                        Δ R1 [95 %], p |
+----------+---+------+--------------+---------------+---------------------------------------+
| b_1 50%  | 2 |  t2i | 93.75 ± 8.84 | 100.00 ± 0.00 | +81.25 [+56.25, +100.00], p = 0.031 † |
| itc      | 2 |  t2i | 12.50 ± 0.00 | 100.00 ± 0.00 |                              baseline |
+----------+---+------+--------------+---------------+---------------------------------------+
| b_1 50%  | 2 |  i2t | 12.50 ± 0.00 | 100.00 ± 0.00 |       +0.00 [+0.00, +0.00], p = 1.000 |
| itc      | 2 |  i2t | 12.50 ± 0.00 | 100.00 ± 0.00 |                              baseline |
+----------+---+------+--------------+---------------+---------------------------------------+
{NOTE}
mean ± sample standard deviation over n seeds"""
CSV = """\
strategy,dataset,backbone,lora,variant,trained_on,split,val_protocol,skipped_test,limited,noise,identities,task,n,seeds,R1,R5,R1_std,R5_std,\
baseline,R1_difference,R1_low,R1_high,R1_p_holm,no_difference,code,data,options
b_1 50%,drawn,tiny_siglip,full,,,test,held_out,,,,,t2i,2,1 2,93.75,100.0,8.838834764831844,0.0,\
itc,81.25,56.25,100.0,0.03125,,,,
itc,drawn,tiny_siglip,full,,,test,held_out,,,,,t2i,2,1 2,12.5,100.0,0.0,0.0,itc,,,,,baseline,,,
b_1 50%,drawn,tiny_siglip,full,,,test,held_out,,,,,i2t,2,1 2,12.5,100.0,0.0,0.0,itc,0.0,0.0,0.0,1.0,,,,
itc,drawn,tiny_siglip,full,,,test,held_out,,,,,i2t,2,1 2,12.5,100.0,0.0,0.0,itc,,,,,baseline,,,
"""
MARKDOWN = rf"""drawn, tiny\_siglip, full, test split

| Strategy | n | Task |               R1 |                R5 |                        Δ R1 [95 %], p |
| :--------|-: |----: |----------------: |-----------------: |-------------------------------------: |
| b\_1 50% | 2 |  t2i | **93.75 ± 8.84** | **100.00 ± 0.00** | +81.25 [+56.25, +100.00], p = 0.031 † |
| itc      | 2 |  t2i |     12.50 ± 0.00 | **100.00 ± 0.00** |                              baseline |
| b\_1 50% | 2 |  i2t | **12.50 ± 0.00** | **100.00 ± 0.00** |       +0.00 [+0.00, +0.00], p = 1.000 |
| itc      | 2 |  i2t | **12.50 ± 0.00** | **100.00 ± 0.00** |                              baseline |

- {NOTE.replace("<", chr(92) + "<")}
- mean ± sample standard deviation over n seeds"""
LATEX = (
    r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{drawn, tiny\_siglip, full, test split; $\Delta$ R1: paired difference to itc in points, of each query's """
    r"""means over seeds, with its 95 \% interval over identities; p is corrected for the number of tests, 2 (Holm); """
    r"""$^\dagger$ p $<$ 0.05; mean $\pm$ sample standard deviation over n seeds.}
\begin{tabular}{lrrrrr}
\toprule
Strategy & n & Task & R1 & R5 & $\Delta$ R1 {[}95 \%], p \\
\midrule
b\_1 50\% & 2 & t2i & \textbf{93.75 $\pm$ 8.84} & \textbf{100.00 $\pm$ 0.00} & """
    r"""$+81.25$ {[}$+56.25$, $+100.00$], p = 0.031 $^\dagger$ \\
itc & 2 & t2i & 12.50 $\pm$ 0.00 & \textbf{100.00 $\pm$ 0.00} & baseline \\
\midrule
b\_1 50\% & 2 & i2t & \textbf{12.50 $\pm$ 0.00} & \textbf{100.00 $\pm$ 0.00} & """
    r"""$+0.00$ {[}$+0.00$, $+0.00$], p = 1.000 \\
itc & 2 & i2t & \textbf{12.50 $\pm$ 0.00} & \textbf{100.00 $\pm$ 0.00} & baseline \\
\bottomrule
\end{tabular}
\end{table}"""
)


def test_the_formats_to_the_letter(tmp_path: Path) -> None:
    comparison = small(tmp_path)
    assert str(comparison) == TABLE
    assert comparison.csv() == CSV
    assert comparison.markdown() == MARKDOWN
    assert comparison.latex() == LATEX


def test_ten_runs_as_latex(tmp_path: Path) -> None:
    """Every mark and every special character is in it."""
    changes: list[dict[str, Any]] = [
        {"strategy": '[x] #1 & {50%} $ ^ ~ \\ " < > | --- _'},
        {"val_protocol": "paper"},
        {"skipped_test": 3},
        {"limited": "debug=fast; 1 & 2"},
        {"limited": "debug=fast; 1 & 2", "noise": "trained with 20 % of the captions permuted"},
        *({"variant": f"~loss.terms.id_{row} gamma=-0.{row}"} for row in range(5)),
    ]
    save_run(tmp_path / "itc", ITC, strategy="itc")
    for row, change in enumerate(changes):
        save_run(tmp_path / str(row), SDM, **change)
    save_run(tmp_path / "other code", SDM, provenance=made_with())
    save_run(tmp_path / "more code", SDM, provenance=made_with(code={"commit": "2" * 40}))
    latex = compare(tmp_path).latex()
    plain = re.sub(r"\\[\\{}$&%#_]", "", latex.replace("\\\\\n", "\n"))
    depths = itertools.accumulate((letter == "{") - (letter == "}") for letter in plain)
    assert (min(depths), plain.count("{") - plain.count("}"), plain.count("$") % 2) == (0, 0, 0)
    rows = [line for line in plain.splitlines() if " & " in line]
    assert len(rows) == 1 + 2 * (len(changes) + 3)
    assert {line.count(" & ") + 1 for line in rows} == {len(re.findall(r"tabular\}\{([lr]+)\}", latex)[0])}
    assert not re.search(r"[^\x00-\x7f]|(?<!\\)[#%^~](?![*\\ ])", plain.partition("\n")[2].replace("$^", ""))
    compile_latex(latex, tmp_path)


def compile_latex(latex: str, folder: Path) -> None:
    """Compiles the tables, if a TeX is installed."""
    if tex := shutil.which("pdflatex") or shutil.which("tectonic"):
        document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex}\end{{document}}"
        (folder / "table.tex").write_text(document, encoding="utf-8")
        options = ["-interaction=nonstopmode", "-halt-on-error"] if tex.endswith("pdflatex") else []
        done = subprocess.run([tex, *options, "table.tex"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--baseline", "basline"], "--baseline 'basline' is no row of the table; expected 'baseline'. Did you mean"),
        (["--baseline", "baseline", "--metric", "R2"], "--metric=R2 is unknown; expected R1 or R5"),
        (["--out", "."], "--out . cannot be written (PosixPath('.') has an empty name): name another file"),
        (["--out", "metrics.json/table"], "metrics.json/table cannot be written (File exists): name another file"),
    ],
)
def test_command_line_with_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    save_metrics(tmp_path, level(10), facts(strategy="baseline"))
    result = command(tmp_path, *(str(tmp_path / option) if "/" in option else option for option in options))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr


def test_comparing_imports_no_torch() -> None:
    line = [sys.executable, "-c", "import sys, utils.report.reports; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(line, cwd=ROOT, check=False).returncode == 0
