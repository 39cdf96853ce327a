import sys

from rich.console import Console

from redetr.commands import console

ROW = {
    "AP": 0.5,
    "per_class": {"a long class name " * 6: 0.5},
    "per_class_AP50": {"a long class name " * 6: 0.75},
    "objects": {"a long class name " * 6: 12},
}


def lines_of_the_class_table(width: int | None, capsys) -> list[str]:
    Console(width=width).print(console._class_table([ROW], [""]))
    return [line for line in capsys.readouterr().out.splitlines() if "class name" in line]


def test_a_row_in_a_file_is_a_line(monkeypatch, capsys):
    """A file has no width, so that what searches it by line finds a whole row."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    (line,) = lines_of_the_class_table(console._width_of_output(), capsys)
    assert line.split()[-3:] == ["12", "50.0", "75.0"]
    monkeypatch.setenv("COLUMNS", "80")
    assert len(lines_of_the_class_table(console._width_of_output(), capsys)) > 1


def test_a_terminal_has_its_own_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert console._width_of_output() is None


def test_names_cannot_command_the_terminal(capsys):
    """Class and file names may hold control characters, which tables and errors show as text."""
    row = {name: {"\x1b[31mred": 0.5} for name in ("per_class", "per_class_AP50", "objects")}
    console.OUT.print(console._class_table([{"AP": 0.5, **row}], [""]))
    console.ERRORS.print("redetr: a\x1b]0;title.png: no such file\nnext line")
    captured = capsys.readouterr()
    assert r"\x1b[31mred" in captured.out
    assert captured.err == "redetr: a\\x1b]0;title.png: no such file\nnext line\n"


def test_a_warning_of_plain_images_agrees_with_their_number(capsys):
    console.warn_of_plain(["a.png (black)"])
    console.warn_of_plain(["a.png (black)", "b.png (white)"])
    rest = "may be damaged, or a few extreme values may hide the rest"
    assert capsys.readouterr().err.splitlines() == [
        f"1 image is almost a single colour, a.png (black): it {rest}",
        f"2 images are almost a single colour, such as a.png (black): they {rest}",
    ]
