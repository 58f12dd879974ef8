"""The table of a comparison, for the terminal, as CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prettytable import PrettyTable, TableStyle

from utils.ranking.metrics import DIRECTIONS, METRICS
from utils.ranking.significance import SIGNIFICANT, PairedTest
from utils.report.comparison.cross_domain import SHARED_NOTE, Matrix, cross_domain, is_shared
from utils.report.comparison.groups import Group, alike, columns
from utils.report.comparison.records import SHOWN, SOURCES

CHOSEN_ON_TEST = "checkpoint chosen on the test split (val_protocol=paper)"
REMARKS: Final = ("limited", "noise", "identities")
LATEX: Final = {
    **{letter: f"\\{letter}" for letter in "#$%&_{}"},
    **{sign: f"${sign}$" for sign in "<>|"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "[": "{[}",
    "*": "$^*$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "°": r"$^\circ$",
}


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, in the order of the rows. As a string: one table.

    older: the number of runs left out because a newer run has the same info and seed.
    baseline, metric: the row to which differences are shown, and the metric that they are of; empty: none are shown.
    note: what the differences are, or why there are none.
    """

    groups: list[Group]
    older: int
    baseline: str = ""
    metric: str = ""
    note: str = ""

    def __str__(self) -> str:
        table = PrettyTable(self.header(), align="r")
        table.align.update({SHOWN[name]: "l" for name in columns(self.groups)})
        for rows in self.blocks():
            for row in rows:
                table.add_row(row, divider=row is rows[-1])
        matrices = [line for matrix in self.cross_domain() for line in ("", str(_matrix_table(matrix)))]
        return "\n".join([self.title(), str(table), *self.notes(), *matrices])

    def csv(self) -> str:
        """Returns the table as CSV in full precision, with a line for each group and direction."""
        blank = dict.fromkeys([*self.metrics, *(f"{metric}_std" for metric in self.metrics)])
        return as_csv(
            [
                group.info
                | {"task": direction, "n": len(group.seeds), "seeds": " ".join(map(str, group.seeds))}
                | blank
                | {metric: spread.mean for metric, spread in group.spreads[direction].items()}
                | {f"{metric}_std": spread.deviation for metric, spread in group.spreads[direction].items()}
                | (self._difference_columns(group.differences[direction]) if self.metric else {})
                | group.sources
                for direction in DIRECTIONS
                for group in self.groups
            ]
        )

    def markdown(self) -> str:
        """Returns the table as Markdown, the best of each column in bold, with the notes as a list."""
        table = PrettyTable(list(map(_markdown, self.header())), align="r")
        table.align.update({SHOWN[name]: "l" for name in columns(self.groups)})
        table.set_style(TableStyle.MARKDOWN)
        table.add_rows([row for rows in self.blocks(_markdown, "**{}**") for row in rows])
        notes = [f"- {_markdown(note)}" for note in self.notes()]
        matrices = [line for matrix in self.cross_domain() for line in ("", str(_matrix_table(matrix, _markdown)))]
        return "\n".join([_markdown(self.title()), "", str(table), *([""] if notes else []), *notes, *matrices])

    def latex(self) -> str:
        r"""Returns the table as LaTeX for ``\usepackage{booktabs}``, the best of each column in bold."""
        caption, blocks = "; ".join([self.title(), *self.notes()]), self.blocks(_latex, r"\textbf{{{}}}")
        lines = [r"% \usepackage{booktabs}", *_latex_table(caption, self.header(), len(columns(self.groups)), blocks)]
        for matrix in self.cross_domain():
            title = f"{matrix.header[0]} (rows), tested on (columns)"
            rows = [list(map(_latex, row)) for row in matrix.rows]
            lines += ["", *_latex_table(title, ["", *matrix.header[1:]], 1, [rows])]
        return "\n".join(lines)

    @property
    def metrics(self) -> list[str]:
        """The metrics that any group has: first `METRICS`, then others in the order of the groups."""
        found = {metric: None for group in self.groups for own in group.spreads.values() for metric in own}
        return [*(metric for metric in METRICS if metric in found), *(m for m in found if m not in METRICS)]

    def header(self) -> list[str]:
        """Returns the names of the columns."""
        difference = [f"Δ {self.metric} [95 %], p"] if self.metric else []
        return [*(SHOWN[name] for name in columns(self.groups)), "n", "Task", *self.metrics, *difference]

    def blocks(self, escape: Callable[[str], str] = str, bold: str = "{}") -> list[list[list[str]]]:
        """Returns for each direction its rows, with escaped cells, and the best of each column in bold."""
        remarks, blocks = self._remarks(), []
        for direction in DIRECTIONS:
            rows = []
            for group in self.groups:
                names = [group.strategy, *(group.info[name] for name in columns(self.groups)[1:])]
                names[0] += " ‡" if group.info["skipped_test"] else ""
                names[0] += "".join(f" [{remarks.index(group.info[key]) + 1}]" for key in REMARKS if group.info[key])
                row = [escape(text) for text in (*names, str(len(group.seeds)), direction)]
                for metric in self.metrics:
                    cell = escape(str(group.spreads[direction].get(metric, "-")))
                    row.append(bold.format(cell) if self._is_best(group, direction, metric) else cell)
                if self.metric:
                    row.append(escape(_shown(group.differences[direction])))
                rows.append(row)
            blocks.append(rows)
        return blocks

    def cross_domain(self) -> list[Matrix]:
        """Returns the matrix of each method that was tested on other datasets than its own."""
        return cross_domain(self.groups)

    def _is_best(self, group: Group, direction: str, metric: str) -> bool:
        """Returns whether no other group with the same queries has a higher mean, of those shown."""
        same = [other.spreads[direction] for other in self.groups if other.queries == group.queries]
        means = [round(spreads[metric].mean, 2) for spreads in same if metric in spreads]
        own = group.spreads[direction].get(metric)
        return own is not None and len(means) > 1 and round(own.mean, 2) == max(means)

    def _difference_columns(self, found: PairedTest | str) -> dict[str, Any]:
        test = found._asdict() if isinstance(found, PairedTest) else dict.fromkeys(PairedTest._fields)
        names = ("difference", "low", "high", "p_holm")
        columns = dict(zip((f"{self.metric}_{name}" for name in names), test.values(), strict=True))
        return {"baseline": self.baseline} | columns | {"no_difference": found if isinstance(found, str) else ""}

    def title(self) -> str:
        """Returns what all rows have in common."""
        shown = columns(self.groups)
        common = [self.groups[0].info[name] for name in SHOWN if name not in shown]
        return ", ".join([*filter(None, common), f"{' and '.join(self._values('split'))} split"])

    def _values(self, name: str) -> list[str]:
        return sorted({group.info[name] for group in self.groups})

    def _remarks(self) -> list[str]:
        """Returns the texts that set runs apart from others, in the order of their marks [1], [2], ..."""
        return [text for key in REMARKS for text in self._values(key) if text]

    def notes(self) -> list[str]:
        """Returns what the reader of the table has to know."""
        notes = [self.note] if self.note else []
        if any(len(group.seeds) > 1 for group in self.groups):
            notes.append("mean ± sample standard deviation over n seeds")
        if "paper" in self._values("val_protocol"):
            notes.append(f"* {CHOSEN_ON_TEST}")
        if skipped := " or ".join(filter(None, self._values("skipped_test"))):
            notes.append(f"‡ test images left out because they cannot be read: {skipped}")
        notes += [f"[{number}] {text}" for number, text in enumerate(self._remarks(), 1)]
        notes += [_not_averaged(same) for same in alike(self.groups) if len(same) > 1]
        if any(map(is_shared, self.groups)):
            notes.append(SHARED_NOTE)
        if self.older:
            notes.append(f"runs left out because a newer run has the same settings and seed: {self.older}")
        return notes


FORMATS: Final[Mapping[str, Callable[[Comparison], str]]] = {
    "table": str,
    "csv": Comparison.csv,
    "markdown": Comparison.markdown,
    "latex": Comparison.latex,
}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows with equal keys as CSV text, with the columns in the order of the keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _matrix_table(matrix: Matrix, escape: Callable[[str], str] | None = None) -> PrettyTable:
    """Returns the table of a matrix, in Markdown if its texts are to be escaped."""
    table = PrettyTable([(escape or str)(name) for name in matrix.header], align="r")
    if escape is not None:
        table.set_style(TableStyle.MARKDOWN)
    table.add_rows([[(escape or str)(cell) for cell in row] for row in matrix.rows])
    return table


def _latex_table(caption: str, header: Sequence[str], words: int, blocks: Sequence[list[list[str]]]) -> list[str]:
    """Returns the lines of a table: its first `words` columns to the left, rules between the blocks of escaped rows."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption)}.}}"]
    lines += [rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(header) - words)}}}", r"\toprule"]
    lines.append(" & ".join(map(_latex, header)) + r" \\")
    for rows in blocks:
        lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in rows)]
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def _shown(difference: PairedTest | str) -> str:
    significant = isinstance(difference, PairedTest) and difference.p_value < SIGNIFICANT
    return f"{difference} †" if significant else str(difference)


def _markdown(text: str) -> str:
    """Returns `text` as it is to be read, on one line of Markdown."""
    return re.sub(r"([\\`*_~|<>])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    """Returns `text` as it is to be read, on one line of LaTeX; signed numbers have a minus instead of a hyphen."""
    special = re.compile("|".join([r"(?<![\w.])[+-]\d+\.\d+", *map(re.escape, LATEX)]))
    text = special.sub(lambda found: LATEX.get(found[0], f"${found[0]}$"), " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", text)  # or they would be one dash


def _not_averaged(groups: Sequence[Group]) -> str:
    """Returns the note on groups with the same info: their marks, and the sources in which they differ."""
    groups = sorted(groups, key=lambda group: (len(group.mark), group.mark))
    marks = ", ".join(f"[{group.mark}] (seed {' '.join(map(str, group.seeds))})" for group in groups)
    differ = [
        f"{name} ({', '.join(group.sources[source] or 'not recorded' for group in groups)})"
        for source, name in SOURCES.items()
        if len({group.sources[source] for group in groups}) > 1
    ]
    why = f"{marks} are not averaged because they differ in {' and '.join(differ)}"
    return f"{why}; python -m utils.report --mixed averages them"
