"""The looks of the page: light and dark by the reader's own setting, no font or picture from elsewhere."""

from __future__ import annotations

from typing import Final

__all__ = ["CSS"]

CSS: Final = """
:root { color-scheme: light dark;
  --paper: #ffffff; --wash: #f5f7f9; --ink: #17212b; --muted: #5d6b78; --grid: #dde3e8;
  --c1: #0b6bcb; --c2: #c2410c; --c3: #15803d; --c4: #8592a0; --c5: #7c3aed; --c6: #b0882a;
  --good: #15803d; --bad: #c81e1e; --warn: #a16207; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12181f; --wash: #1a222b; --ink: #e6ebf0; --muted: #9aa8b5; --grid: #2d3843;
  --c1: #5aa9f5; --c2: #f08a4b; --c3: #54c07a; --c4: #74818e; --c5: #b08cf7; --c6: #dcb75a;
  --good: #54c07a; --bad: #f47272; --warn: #e0b04a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem 1.4rem 4rem; }
h1 { font-size: 1.9rem; margin: 0; letter-spacing: -0.02em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 0.7rem; }
h3 { font-size: 1rem; margin: 0 0 0.25rem; }
.lead { color: var(--muted); margin: 0.3rem 0 1.4rem; max-width: 52rem; }
.card { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 0.7rem 1.6rem;
  background: var(--wash); border: 1px solid var(--grid); border-radius: 12px; padding: 1.1rem 1.3rem; margin: 0; }
.card div { min-width: 0; } .card dt { color: var(--muted); font-size: 0.76rem; }
.card dd { margin: 0; font-size: 0.93rem; overflow-wrap: anywhere; }
.note { border-left: 4px solid var(--warn); background: var(--wash); padding: 0.7rem 1rem; border-radius: 0 8px 8px 0; }
.note.broken { border-color: var(--bad); } .note ul { margin: 0.3rem 0 0; padding-left: 1.2rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.2rem;
  align-items: start; }
figure { margin: 0; border: 1px solid var(--grid); border-radius: 12px; padding: 1rem 1.1rem; }
figure svg { display: block; width: 100%; height: auto; margin-top: 0.5rem; }
figure svg text { font-family: inherit !important; }
figcaption { color: var(--muted); font-size: 0.9rem; } figcaption h3 { color: var(--ink); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
th { text-align: left; color: var(--muted); font-weight: 600; border-bottom: 2px solid var(--grid); }
td { border-bottom: 1px solid var(--grid); vertical-align: top; } th, td { padding: 0.4rem 0.9rem 0.4rem 0; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
.absent { color: var(--muted); } .why { color: var(--muted); } .met, .missed, .absent { white-space: nowrap; }
.mark { color: var(--warn); border: 1px solid currentColor; border-radius: 99px; padding: 0 0.45rem; font-size: 0.74rem;
  white-space: nowrap; }
details { margin-top: 0.6rem; } summary { cursor: pointer; font-weight: 600; padding: 0.3rem 0; }
a { color: var(--c1); }
footer { color: var(--muted); font-size: 0.85rem; margin-top: 3rem; }
"""
