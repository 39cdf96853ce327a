"""Reads an XML file in Pascal VOC format, in the encoding that it states. Tags may be in any case
and any namespace."""

import codecs
import math
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from redetr.files import open_file

_SINGLE = ("name", "bndbox")  # elements that an object has only once
SIDES = ("xmin", "ymin", "xmax", "ymax")
_LARGEST = 1e9  # px
# Encodings by the first bytes of a file. UTF-32 comes first, because its mark begins with that of
# UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    codecs.BOM_UTF8: "utf-8-sig",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
# Programs state the older standard but write characters of the newer one, which browsers read
# likewise.
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift-jis": "cp932", "euc-kr": "cp949"}


@dataclass
class Scene:
    """The content of an XML file; `code` and `problem` state why it cannot be read."""

    file: Path
    image: str = ""  # the name of its image, without folders
    is_annotation: bool = True  # False: an XML file of another kind
    size: tuple[int, int] = (0, 0)  # height, width; 0 if the file does not state them
    names: list[str] = field(default_factory=list)  # the class of each object
    boxes: list[list[float]] = field(default_factory=list)  # xmin ymin xmax ymax
    outlines: list[list[float]] = field(default_factory=list)  # the box around each outline, or NaN
    has_box: list[bool] = field(default_factory=list)
    is_turned: list[bool] = field(default_factory=list)  # whether it has a rotated box
    difficult: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)  # a tag that an object repeats, or ""
    code: str = ""
    problem: str = ""


def read_scene(file: Path, names_only: bool = False) -> Scene:
    """The content of the file, or only the names of the classes in it."""
    encoding = "UTF-8"
    try:
        with open_file(file) as opened:
            content = opened.read()
        encoding = encoding_of(content)
        text = content.decode(encoding)
        # A document type, which no annotation needs, can declare entities that fill the memory.
        root = None if "<!DOCTYPE" in text else ElementTree.fromstring(text)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        return Scene(file, code="annotation-missing", problem=problem)
    except LookupError:
        problem = f"states an unknown encoding, {encoding}"
        return Scene(file, code="xml-encoding", problem=problem)
    except UnicodeError as error:
        problem = f"not XML in {encoding}: {error}"
        return Scene(file, code="xml-encoding", problem=problem)
    except (ValueError, ElementTree.ParseError) as error:
        return Scene(file, code="xml-invalid", problem=f"not XML in {encoding}: {error}")
    if root is None:
        problem = "declares a document type, which is refused"
        return Scene(file, code="xml-invalid", problem=problem)
    _simplify_tags(root)
    if names_only:
        names = [element.findtext("name") or "" for element in root.iter("object")]
        return Scene(file, names=[name.strip() for name in names])
    return _scene_of(file, root)


def _simplify_tags(root: ElementTree.Element) -> None:
    """Changes tags such as `{http://example.org}BndBox` to `bndbox`."""
    for element in root.iter():
        _, _, name = element.tag.rpartition("}")
        element.tag = name.lower()


def _scene_of(file: Path, root: ElementTree.Element) -> Scene:
    """The content of a file with this root element."""
    if len(root.findall("annotation")) > 1:
        problem = "holds several annotations: each image needs its own XML file"
        return Scene(file, code="xml-invalid", problem=problem)
    path = root.findtext("filename") or ""
    image = posixpath.basename(path.strip().replace("\\", "/"))
    objects = list(root.iter("object"))
    scene = Scene(file, image, is_annotation=root.tag == "annotation" or bool(objects))
    size = root.find("size")
    height = _number(size, "height")
    width = _number(size, "width")
    if height > 0 and width > 0:
        scene.size = (int(height), int(width))
    for element in objects:
        name = element.findtext("name") or ""
        outline = _outline(element)
        bndbox = element.find("bndbox")
        box = outline
        if bndbox is not None:
            box = [_number(bndbox, side) for side in SIDES]
        scene.outlines.append(outline)
        scene.has_box.append(bndbox is not None)
        scene.is_turned.append(element.find("robndbox") is not None)
        scene.names.append(name.strip())
        scene.boxes.append(box)
        scene.difficult.append(element.findtext("difficult") or "")
        tags = [tag for tag in _SINGLE if len(element.findall(tag)) > 1]
        scene.repeated.append(tags[0] if tags else "")
    return scene


def _outline(element: ElementTree.Element) -> list[float]:
    """xmin, ymin, xmax, ymax around the polygon or the rotated box of an object; NaN if it has
    neither."""
    x: list[float] = []
    y: list[float] = []
    for child in element.iterfind("polygon//*"):  # x1 y1 x2 y2 ..., or pt with x and y
        if len(child):
            continue
        if child.tag.startswith("x"):
            x.append(_number(child, "."))
        elif child.tag.startswith("y"):
            y.append(_number(child, "."))
    are_points = len(x) > 2 and len(x) == len(y)
    if are_points and not math.isnan(sum(x + y)):
        return [min(x), min(y), max(x), max(y)]
    return _around_turned(element.find("robndbox"))


def _around_turned(robndbox: ElementTree.Element | None) -> list[float]:
    """xmin, ymin, xmax, ymax around a rotated box; NaN if there is none."""
    center_x = _number(robndbox, "cx")
    center_y = _number(robndbox, "cy")
    width = _number(robndbox, "w")
    height = _number(robndbox, "h")
    angle = _number(robndbox, "angle")  # radians
    cosine = abs(math.cos(angle))
    sine = abs(math.sin(angle))
    half_width = (width * cosine + height * sine) / 2
    half_height = (width * sine + height * cosine) / 2
    return [
        center_x - half_width,
        center_y - half_height,
        center_x + half_width,
        center_y + half_height,
    ]


def encoding_of(content: bytes) -> str:
    """The encoding of an XML file, from its byte order mark or first bytes, or else as stated."""
    if not content.startswith(b"<?"):  # perhaps a mark instead of a declaration
        for mark, encoding in _MARKS.items():
            if content.startswith(mark):
                return encoding
        return "UTF-8"
    declaration = re.match(rb"""<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""", content)
    if declaration is None:
        return "UTF-8"
    stated = declaration[1].decode("ascii", "replace")
    name = stated.lower().replace("_", "-")
    if name.startswith(("utf-16", "utf-32", "ucs")):
        return "UTF-8"  # .NET states UTF-16 for text that it saves as UTF-8
    return _SUPERSETS.get(name, stated)


def _number(parent: ElementTree.Element | None, tag: str) -> float:
    """The number in the child with this tag; NaN if there is none."""
    if parent is None:
        return math.nan
    return number_in(parent.findtext(tag))


def number_in(text: str | None) -> float:
    """The number in a text; NaN if there is none, or if it is too large for any image."""
    try:
        number = float(text or "")
    except ValueError:
        return math.nan
    return number if abs(number) < _LARGEST else math.nan
