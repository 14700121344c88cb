"""Small pieces of HTML. Whatever comes in as text goes out escaped."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light; --ink: #1f2937; --muted: #6b7280; --line: #e5e7eb;
  --student: #e4572e; --good: #2a7f8e; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
header p.kind { color: var(--muted); margin: 0; font-size: .85rem; }
h1 { font-size: 1.65rem; line-height: 1.3; margin: .3rem 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { margin: .4rem 0; }
p.earned { font-size: 1.08rem; }
p.warning { border-left: 4px solid var(--student); background: #fdf1ed; padding: .5rem .8rem;
  border-radius: 0 6px 6px 0; }
p.note { color: var(--muted); font-size: .88rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.25rem; margin-top: 1.1rem; }
.tiles { display: grid; gap: .7rem; margin-top: 1.1rem;
  grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile span { color: var(--muted); font-size: .83rem; }
.tile.student { border-color: var(--student); box-shadow: inset 0 3px 0 var(--student); }
.tile.student b { color: var(--student); }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.wide { overflow-x: auto; }
img.large { min-width: 480px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; color: var(--muted); font-weight: 600; font-size: .82rem; }
th, td { padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; }
td:first-child { min-width: 6rem; }
tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
td.bad { color: #b3361a; }
td.changed { color: var(--student); font-weight: 600; }
code, pre { font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
pre { background: #f3f4f6; border-radius: 6px; padding: .7rem .9rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: .7rem; }
summary { cursor: pointer; color: var(--good); font-size: .9rem; }
footer { color: var(--muted); font-size: .83rem; margin-top: 1.2rem; overflow-wrap: anywhere; }
@media (max-width: 560px) { main { padding: 1.1rem .7rem 2rem; } h1 { font-size: 1.3rem; }
  section { padding: .9rem; } }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole page that asks for nothing from anywhere."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<link rel="icon" href="data:,">\n<title>{text(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return any value as escaped text, safe in content and in quoted attributes."""
    return html.escape(str(value), quote=True)


def sentence(words: str) -> str:
    """Return escaped text in which a number and its percent sign stay on one line."""
    return text(words).replace(" %", "\u00a0%")


def section(title: str, *content: str) -> str:
    """Return a titled block; nothing when it would be empty."""
    inner = "\n".join(part for part in content if part)
    return f"<section>\n<h2>{text(title)}</h2>\n{inner}\n</section>" if inner else ""


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph, of the style class ``kind`` if given."""
    attribute = f' class="{text(kind)}"' if kind else ""
    return f"<p{attribute}>{sentence(words)}</p>"


def code(lines: str) -> str:
    """Return a block of code."""
    return f"<pre>{text(lines)}</pre>"


def details(summary: str, content: str) -> str:
    """Return content that is folded until somebody asks for it."""
    return f"<details><summary>{text(summary)}</summary>\n{content}\n</details>"


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Return key numbers; each item is (number, what it is, style class)."""
    boxes = "".join(
        f'<div class="tile {text(kind)}"><b>{text(number)}</b><span>{text(what)}</span></div>'
        for number, what, kind in items
    )
    return f'<div class="tiles">{boxes}</div>' if items else ""


def figure(path: Path | None, alt: str, note: str = "") -> str:
    """Return a PNG, inside the page itself, with a note below; nothing for no path."""
    if path is None:
        return ""
    png = path.read_bytes()
    # PNG's header: 8 bytes of signature, a chunk's length and type, width, height.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    data = base64.b64encode(png).decode("ascii")
    # In a narrow window a large figure scrolls rather than shrinks out of sight.
    kind = ' class="large"' if width > 800 else ""
    image = (
        f'<div class="wide"><img{kind} width="{width}" height="{height}" alt="{text(alt)}" '
        f'src="data:image/png;base64,{data}"></div>'
    )
    return image + (paragraph(note, "note") if note else "")


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int] = (),
    marked: dict[tuple[int, int], str] | None = None,
) -> str:
    """Return a table.

    Parameters
    ----------
    header : Sequence[str]
        Column names; empty for none.
    rows : Iterable[Sequence[str]]
        Cells as text.
    numbers : Sequence[int]
        Columns to set as numbers.
    marked : dict[tuple[int, int], str] | None
        Style class of a cell, by (row, column).
    """

    def cell(tag: str, column: int, value: str, extra: str = "") -> str:
        kinds = " ".join(filter(None, ["number" if column in numbers else "", extra]))
        attribute = f' class="{text(kinds)}"' if kinds else ""
        return f"<{tag}{attribute}>{text(value)}</{tag}>"

    marks = marked or {}
    head = "".join(cell("th", column, name) for column, name in enumerate(header))
    body = "".join(
        "<tr>"
        + "".join(
            cell("td", column, value, marks.get((index, column), ""))
            for column, value in enumerate(row)
        )
        + "</tr>\n"
        for index, row in enumerate(rows)
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'
