"""Small pieces of HTML. Whatever comes in as text goes out escaped."""

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --muted: #6b7280; --line: #e5e7eb;
  --page: #f6f7f9; --card: #fff; --code: #f3f4f6; --alarm: #fdf1ed; --bad: #b3361a;
  --student: #e4572e; --good: #2a7f8e; --teacher: #2a7f8e; --fedavg: #7c8798;
  --control: #d9a441; --client: #b9c4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --muted: #9ca3af; --line: #374151;
  --page: #111827; --card: #1f2937; --code: #111827; --alarm: #3b2620; --bad: #f28b74;
  --student: #f0714b; --good: #5bb5c4; --teacher: #5bb5c4; --client: #5b6677; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
header p.kind { color: var(--muted); margin: 0; font-size: .85rem; }
h1 { font-size: 1.65rem; line-height: 1.3; margin: .3rem 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { margin: .4rem 0; }
ul { margin: .4rem 0; padding-left: 1.2rem; } li { margin: .3rem 0; }
p.intro { margin: .9rem 0 .6rem; }
p.earned { font-size: 1.08rem; }
p.warning { border-left: 4px solid var(--student); background: var(--alarm); padding: .5rem .8rem;
  border-radius: 0 6px 6px 0; }
p.note { color: var(--muted); font-size: .88rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.25rem; margin-top: 1.1rem; }
.tiles { display: grid; gap: .7rem; margin-top: 1.1rem;
  grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile span { color: var(--muted); font-size: .83rem; }
.tile.student { border-color: var(--student); box-shadow: inset 0 3px 0 var(--student); }
.tile.student b { color: var(--student); }
figure { margin: .4rem 0; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; background: #fff;
  border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; color: var(--muted); font-size: .83rem; padding-bottom: .3rem; }
th { text-align: left; font-weight: 600; }
thead th { color: var(--muted); font-size: .82rem; }
tbody th { font-weight: 400; }
th, td { padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; }
tbody th { min-width: 6rem; }
tr:last-child > * { border-bottom: 0; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
td.bad { color: var(--bad); }
td.changed { color: var(--student); font-weight: 600; }
code, pre { font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
pre { background: var(--code); border-radius: 6px; padding: .7rem .9rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
dl.bars { display: grid; grid-template-columns: minmax(5rem, 34%) 1fr; gap: .3rem .7rem;
  margin: .5rem 0; font-size: .9rem; align-items: center; }
dl.bars dt { overflow-wrap: anywhere; } dl.bars dd { margin: 0; display: grid;
  grid-template-columns: 1fr 3.6rem; gap: .5rem; align-items: center; text-align: right;
  font-variant-numeric: tabular-nums; }
dl.bars dd > i { position: relative; display: block; height: 1.1rem; }
dl.bars dd b { position: absolute; top: -.15rem; bottom: -.15rem;
  border-left: 2px dotted var(--ink);
  opacity: .6; }
dl.bars dd u { position: absolute; top: .45rem; height: .2rem; background: var(--ink);
  opacity: .55; border-radius: 2px; }
dl.bars dd span { display: block; height: 1.1rem; border-radius: 3px; min-width: 2px; }
dl.bars .student { font-weight: 650; }
details { margin-top: .7rem; }
summary { cursor: pointer; color: var(--good); font-size: .9rem; }
footer { color: var(--muted); font-size: .83rem; margin-top: 1.2rem; overflow-wrap: anywhere; }
@media (max-width: 560px) { main { padding: 1.1rem .7rem 2rem; } h1 { font-size: 1.3rem; }
  section { padding: .9rem; }
  table.cards thead { position: absolute; clip-path: inset(50%);
    height: 1px; width: 1px; overflow: hidden; }
  table.cards tr, table.cards td, table.cards th { display: block; }
  table.cards tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
  table.cards tr > * { border: 0; padding: .1rem 0; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  table.cards tbody th { font-weight: 650; }
  table.cards td::before { content: attr(data-label) ": "; color: var(--muted); }
  th, td { padding-right: .5rem; } th.number { white-space: normal; }
  tbody th { min-width: 0; overflow-wrap: anywhere; } td { overflow-wrap: anywhere; } }
@media (prefers-color-scheme: dark) { img.drawn { filter: invert(.88) hue-rotate(180deg); } }
@media print { img.drawn { filter: none; } body { background: #fff; }
  section, .tile { break-inside: avoid; } }
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


def bullets(sentences: Sequence[str]) -> str:
    """Return a list of sentences; nothing for none."""
    items = "".join(f"<li>{sentence(words)}</li>\n" for words in sentences)
    return f"<ul>{items}</ul>" if items else ""


def code(lines: str) -> str:
    """Return a block of code."""
    return f"<pre>{text(lines)}</pre>"


def details(summary: str, content: str) -> str:
    """Return content that is folded until somebody asks for it."""
    return f"<details><summary>{text(summary)}</summary>\n{content}\n</details>"


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Return key numbers; each item is (number, what it is, style class)."""
    boxes = "".join(
        f'<div class="tile {text(kind)}"><b>{text(number)}</b><span>{sentence(what)}</span></div>'
        for number, what, kind in items
    )
    return f'<div class="tiles">{boxes}</div>' if items else ""


def figure(path: Path | None, alt: str, note: str = "", drawn: bool = True) -> str:
    """Return a PNG, inside the page itself, with a caption below; nothing for no path.

    What is ``drawn`` (and no photograph) is shown light on dark in a dark window.
    """
    if path is None:
        return ""
    png = path.read_bytes()
    # PNG's header: 8 bytes of signature, a chunk's length and type, width, height.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    data = base64.b64encode(png).decode("ascii")
    kind = ' class="drawn"' if drawn else ""
    image = (
        f'<img{kind} width="{width}" height="{height}" alt="{text(alt)}" '
        f'src="data:image/png;base64,{data}">'
    )
    caption = f"<figcaption>{paragraph(note, 'note')}</figcaption>" if note else ""
    return f"<figure>{image}{caption}</figure>"


def bars(
    items: Sequence[tuple[str, float, str]],
    chance: float | None = None,
    interval: Callable[[float], tuple[float, float] | None] = lambda share: None,
) -> str:
    """Return shares in [0, 1] as bars with their numbers; each item is (name, share, style class).

    They grow and shrink with the window, and are read out as a list of names and numbers.
    ``chance`` is a dotted line through all of them, ``interval`` a thin bar on each.
    """
    line = "" if chance is None else f'<b style="left:{100 * chance:.1f}%"></b>'

    def spread(share: float) -> str:
        if (ends := interval(share)) is None:
            return ""
        low, high = (100 * end for end in ends)
        return f'<u style="left:{low:.1f}%;right:{100 - high:.1f}%"></u>'

    rows = "".join(
        f'<dt class="{text(kind)}">{text(name)}</dt><dd class="{text(kind)}"><i>'
        f'<span style="width:{100 * share:.1f}%;background:var(--{text(kind)})"></span>'
        f"{spread(share)}{line}</i>{100 * share:.1f}&nbsp;%</dd>"
        for name, share, kind in items
    )
    return f'<dl class="bars">{rows}</dl>' if items else ""


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Sequence[int] = (),
    marked: dict[tuple[int, int], str] | None = None,
    caption: str = "",
) -> str:
    """Return a table, whose first column names its rows; a wide one is cards in a narrow window.

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
    caption : str
        What it shows.
    """

    def cell(scope: str, column: int, value: str, extra: str = "") -> str:
        kinds = " ".join(filter(None, ["number" if column in numbers else "", extra]))
        attribute = f' class="{text(kinds)}"' if kinds else ""
        if scope:
            return f'<th scope="{scope}"{attribute}>{text(value)}</th>'
        name = f' data-label="{text(header[column])}"' if cards else ""
        return f"<td{name}{attribute}>{text(value)}</td>"

    cards = len(header) > 5

    marks = marked or {}
    head = "".join(cell("col", column, name) for column, name in enumerate(header))
    body = "".join(
        "<tr>"
        + "".join(
            cell("" if column else "row", column, value, marks.get((index, column), ""))
            for column, value in enumerate(row)
        )
        + "</tr>\n"
        for index, row in enumerate(rows)
    )
    thead = f"<thead><tr>{head}</tr></thead>\n" if header else ""
    said = f"<caption>{sentence(caption)}</caption>" if caption else ""
    kind = ' class="cards"' if cards else ""
    return f'<div class="wide"><table{kind}>{said}{thead}<tbody>{body}</tbody></table></div>'
