"""One self-contained HTML page: no network, dark and light, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as escape

STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --paper: #fff; --grid: #d8dee4; --soft: #f6f8fa;
  --dim: #57606a; --good: #1a7f37; --bad: #b35900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --grid: #30363d;
  --soft: #161b22; --dim: #9aa4af; --good: #3fb950; --bad: #e3925a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p, li { max-width: 46rem; } .dim, footer { color: var(--dim); font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
thead th { background: var(--soft); vertical-align: bottom; } thead th:first-child {
  background: var(--soft); } td.paper, th.paper { color: var(--dim); }
td.good { color: var(--good); } td.bad { color: var(--bad); }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; } img { max-width: 100%; }
figure.wide { overflow-x: auto; } figure.wide svg { min-width: 40rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .5rem 0; }
.legend label { display: inline-flex; align-items: center; gap: .4rem; cursor: pointer; }
.legend svg { width: 2rem; height: .6rem; } .thumbs { image-rendering: pixelated; }
"""


def page(title: str, sections: Sequence[str], style: str = "") -> str:
    """The document around ``sections`` of HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A heading and its HTML; empty parts are left out."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def items(texts: Sequence[str]) -> str:
    """A list, or nothing where there is nothing to list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    classes: Sequence[Sequence[str]] | None = None,
) -> str:
    """A table that scrolls on a narrow screen; ``classes`` are those of its cells."""
    head = "".join(
        f"<th{_class('paper' if text == 'paper' else '')}>{escape(text)}</th>" for text in heads
    )
    body = []
    for number, row in enumerate(rows):
        kinds = classes[number] if classes else [""] * len(row)
        cells = zip(row, kinds, strict=True)
        body.append(
            "<tr>"
            + "".join(f"<td{_class(kind)}>{escape(text)}</td>" for text, kind in cells)
            + "</tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(svg: str, caption: str = "", wide: bool = False) -> str:
    """An inline picture; a ``wide`` one scrolls on a narrow screen instead of shrinking."""
    text = f'<figcaption class="dim">{escape(caption)}</figcaption>' if caption else ""
    return f"<figure{_class('wide' if wide else '')}>{svg}{text}</figure>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
