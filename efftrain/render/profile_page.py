"""Stylesheet and script of a profile's page; both stand in the page itself, which loads nothing."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f6f7f9; --ink: #1f2328;
  --faint: #59636e; --line: #d5dae0; --bar: #cfe3f5; --accent: #0a5ea8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --panel: #1d2126; --ink: #e4e8ec;
  --faint: #a3adb8; --line: #363d45; --bar: #1d4263; --accent: #79b8f3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.25rem; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.line, .faint { color: var(--faint); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .75rem; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .85rem; overflow-wrap: anywhere; }
.card h3 { margin: 0; font-size: .85rem; font-weight: 600; display: flex; gap: .5rem;
  justify-content: space-between; align-items: flex-start; }
.how { font-weight: 400; color: var(--faint); border: 1px solid var(--line); border-radius: 99px;
  padding: 0 .5rem; font-size: .75rem; white-space: nowrap; }
.value { font-size: 1.45rem; font-variant-numeric: tabular-nums; margin: .15rem 0; }
.card ul { margin: .2rem 0 .4rem; padding-left: 1.1rem; font-size: .82rem; }
.card p { margin: .3rem 0 0; font-size: .8rem; color: var(--faint); }
figure { margin: 0 0 1.5rem; }
figure > div, .scroll { overflow-x: auto; }
figure svg { width: 100%; min-width: 44rem; height: auto; display: block; }
figcaption { color: var(--faint); font-size: .85rem; max-width: 60rem; }
.tools { display: none; gap: .5rem; flex-wrap: wrap; margin-bottom: .6rem; }
.js .tools { display: flex; }
input, .tools button { font: inherit; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: 6px; padding: .25rem .6rem; }
input { flex: 1 1 12rem; max-width: 22rem; min-width: 0; }
table { border-collapse: collapse; font-size: .82rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .55rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--paper); z-index: 2; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper);
  max-width: 24rem; overflow: hidden; text-overflow: ellipsis; }
th:first-child { z-index: 3; }
td:first-child { padding-left: calc(.3rem + var(--level) * .9rem); z-index: 1; }
td.share { background: linear-gradient(to left, var(--bar) var(--share), transparent 0); }
tr.total td { font-weight: 600; }
th button, td button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
th button:hover { color: var(--accent); }
th[aria-sort] button::after { content: " \\2193"; }
td button { width: 1.1rem; text-align: left; color: var(--faint); }
td button::before { content: "\\25B8"; }
td button[aria-expanded="true"]::before { content: "\\25BE"; }
td .leaf { display: inline-block; width: 1.1rem; }
.long { display: none; }
.flat td:first-child { padding-left: .3rem; }
.flat td:first-child button, .flat .leaf, .flat .short { display: none; }
.flat .long { display: inline; }
dl { font-size: .85rem; display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--faint); }
summary { cursor: pointer; color: var(--faint); font-size: .85rem; margin: .6rem 0; }
@media (max-width: 40rem) { body { padding: .75rem; }
  th:first-child, td:first-child { max-width: 11rem; } }
"""

SCRIPT = """
(() => {
  const table = document.getElementById("modules"), body = table.tBodies[0];
  const rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const filter = document.getElementById("filter"), depth = +table.dataset.depth;
  const open = new Set(rows.filter(row => level(row) < depth - 1));
  let column = null;
  document.documentElement.classList.add("js");

  function level(row) { return +row.dataset.level; }
  function value(row) { return +(row.cells[column].dataset.value || -1); }

  function show() {
    const wanted = filter.value.trim().toLowerCase(), flat = column !== null || wanted !== "";
    table.classList.toggle("flat", flat);
    let closed = Infinity;
    for (const row of rows) {
      if (level(row) <= closed) closed = Infinity;
      const found = (row.dataset.path + " " + row.cells[1].textContent).toLowerCase();
      row.hidden = flat
        ? column !== null && !("leaf" in row.dataset) || !found.includes(wanted)
        : level(row) > closed;
      if (closed === Infinity && !open.has(row)) closed = level(row);
      const button = row.cells[0].querySelector("button");
      if (button) button.setAttribute("aria-expanded", open.has(row));
    }
    const order = column === null ? rows : [...rows].sort((a, b) => value(b) - value(a));
    body.append(...order);
    heads.forEach((head, number) => {
      if (number === column) head.setAttribute("aria-sort", "descending");
      else head.removeAttribute("aria-sort");
    });
  }

  body.addEventListener("click", event => {
    if (!event.target.closest("button")) return;
    const row = event.target.closest("tr");
    open.has(row) ? open.delete(row) : open.add(row);
    show();
  });
  heads.forEach((head, number) => head.querySelector("button")?.addEventListener("click", () => {
    column = number === 0 || number === column ? null : number;
    show();
  }));
  filter.addEventListener("input", show);
  for (const [id, all] of [["expand", true], ["collapse", false]])
    document.getElementById(id).addEventListener("click", () => {
      column = null;
      filter.value = "";
      open.clear();
      if (all) rows.forEach(row => open.add(row));
      show();
    });
  show();
})();
"""
