"""The report of `redetr check` on a terminal."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from redetr.doctor.check import COLORS, Report
from redetr.wording import counted

_MOST_CLASSES = 30  # in a table
_OTHERS = 4  # items of a fault, after its first; --json lists all


def print_report(report: Report, console: Console) -> None:
    """Prints the figures of each split, the classes, the faults, and the verdict."""
    tables = [_split_table(report), _class_table(report), _fault_table(report)]
    for table in tables:
        if table.rows:
            console.print(table)
    console.print(report.verdict, markup=False, soft_wrap=True)


def _split_table(report: Report) -> Table:
    table = Table("split", box=SIMPLE)
    figures = report.figures()
    for title in next(iter(figures.values()), {}):
        table.add_column(title)
    for split, row in figures.items():
        cells = []
        for value in row.values():
            cells.append(f"{value:,}" if isinstance(value, int) else value)
        table.add_row(split, *cells)
    return table


def _class_table(report: Report) -> Table:
    """Objects by class and split, and those with a mask if some have none."""
    columns = report.class_columns()
    heads = next(iter(columns.values()), dict.fromkeys(report.splits, 0))
    table = Table("class", *heads, box=SIMPLE)
    common = list(columns)
    for name in common[:_MOST_CLASSES]:
        counts = [f"{count:,}" for count in columns[name].values()]
        table.add_row(Text(name), *counts)
    rest = len(common) - _MOST_CLASSES
    if rest > 0:
        table.add_row(f"and {counted(rest, 'rarer class', 'rarer classes')}")
    return table


def _fault_table(report: Report) -> Table:
    text_column = Column("what is wrong, and what to do", overflow="fold")
    table = Table("", text_column, "count", box=SIMPLE, show_lines=True)
    for fault in report.faults:
        color = COLORS[fault.severity]
        kind = Text.assemble((fault.severity, color), f"\n{fault.code}")
        sentence = Text(str(fault))
        others = fault.others(_OTHERS) if fault.severity != "note" else ""
        if others:
            sentence.append(f"\n{others}", style="dim")
        table.add_row(kind, sentence, f"{fault.count:,}")
    return table
