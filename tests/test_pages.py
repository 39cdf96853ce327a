"""Templates: text is escaped, data cannot end a script, and what is missing is an error."""

import json
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

import redetr
from redetr.cli import main
from redetr.detector.contact_sheet import contact_sheet
from redetr.errors import InputError
from redetr.pages import templates
from redetr.pages.templates import render, require_redetr_page, write_page


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder in which templates are looked up, beside those of the package."""
    environment = templates._ENVIRONMENT.overlay()
    environment.loader = type(environment.loader)([tmp_path, *environment.loader.searchpath])
    monkeypatch.setattr(templates, "_ENVIRONMENT", environment)
    return tmp_path


def test_text_is_escaped_and_markup_is_not(room):
    (room / "a.html").write_text("<p title='{{ text }}'>{{ text }}</p>{{ html }}")
    page = render("a.html", text="<b>&'\"", html=Markup("<i>x</i>"))
    assert page == "<p title='&lt;b&gt;&amp;&#39;&#34;'>&lt;b&gt;&amp;&#39;&#34;</p><i>x</i>"


def test_data_cannot_end_the_script(room):
    (room / "a.html").write_text("<script>f({{ data | tojson }})</script>")
    data = {"names": ["</script><b>", "<!--", "'", "{{ 7 * 7 }}"]}
    page = render("a.html", data=data)
    assert page.count("<") == 2
    call = page.removeprefix("<script>f(").removesuffix(")</script>")
    assert json.loads(call) == data


def test_a_missing_value_is_an_error(room):
    (room / "a.html").write_text("{{ titel }}")
    with pytest.raises(UndefinedError, match="titel"):
        render("a.html", title="x")


def test_tables_show_texts_and_are_absent_without_rows(room):
    (room / "a.html").write_text(
        '{% from "pages/table.html" import table %}{{ table(["a", "<b>"], rows) }}'
    )
    page = render("a.html", rows=[["<i>", 1]])
    assert "<th>a</th><th>&lt;b&gt;</th>" in page
    assert "<td>&lt;i&gt;</td><td>1</td>" in page
    assert render("a.html", rows=[]).strip() == ""


def test_scripts_and_styles_are_put_in_as_they_are(room):
    (room / "a.html").write_text('{{ inline("explain/canvas.js") }}')
    script = Path(redetr.__file__).with_name("explain") / "canvas.js"
    text = script.read_text(encoding="utf-8")
    assert "<" in text
    assert render("a.html") == text


def test_a_page_is_written_in_utf8(tmp_path):
    write_page(tmp_path / "a.html", "“1 − GIoU”")
    assert (tmp_path / "a.html").read_bytes().decode("utf-8") == "“1 − GIoU”"


@pytest.mark.parametrize(
    "command",
    [["check", "crowns", "--report"], ["evaluate", "no.pt", "--report"],
     ["explain", "no.pt", "no.jpg", "--output"]],
)  # fmt: skip
def test_no_page_of_another_tool_is_replaced(tmp_path, capsys, command):
    page = tmp_path / "index.html"
    page.write_text("<title>precious</title>")
    with pytest.raises(SystemExit) as ended:
        main([*command, str(tmp_path)])
    assert ended.value.code == 1
    assert f"{page}: is a page that redetr did not write; give another" in capsys.readouterr().err
    assert page.read_text() == "<title>precious</title>"


def test_files_beside_a_page_are_replaced_with_it_only(tmp_path):
    (tmp_path / "sheet.png").touch()
    with pytest.raises(InputError, match="already exists, without a redetr page next to it"):
        require_redetr_page(tmp_path, "sheet.png")
    write_page(tmp_path / "index.html", contact_sheet([]))
    require_redetr_page(tmp_path, "sheet.png")


def test_a_second_page_is_replaced_if_redetr_wrote_it(tmp_path):
    for name in ("index.html", "loss.html"):
        write_page(tmp_path / name, contact_sheet([]))
    require_redetr_page(tmp_path, "loss.html")
    (tmp_path / "loss.html").write_text("<title>precious</title>")
    with pytest.raises(InputError, match=r"loss\.html: is a page that redetr did not write; give"):
        require_redetr_page(tmp_path, "loss.html")
