// Sorting, filtering, and opening the provenance that a value leads to. The page is complete without any of them.
"use strict";

function open(hash) {
  const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
  if (!target) return;
  for (let node = target; node; node = node.parentElement) {
    if (node.tagName === "DETAILS") node.open = true;
  }
  const summary = target.parentElement.querySelector(":scope > summary");
  if (summary) summary.focus({ preventScroll: true });
  (summary || target).scrollIntoView({ block: "start" });
}

// What a cell counts as: the number it begins with, or its text; null for a dash, which stands last either way.
function key(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.sort ?? cell.textContent).trim().replaceAll("\u2212", "-");
  if (text === "" || text.startsWith("\u2013")) return null;
  const number = text.match(/^[<\s]*([+-]?\d[\d,]*\.?\d*(?:e-?\d+)?)/);
  return number && !cell.matches("th") ? Number(number[1].replaceAll(",", "")) : text;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return (a - b) * sign;
  return String(a).localeCompare(String(b), undefined, { numeric: true }) * sign;
}

function sort(table, column, descending) {
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.matches(".group, .trivial"));
    rows.sort((a, b) => compare(key(a, column), key(b, column), descending ? -1 : 1));
    const trivial = body.querySelector("tr.trivial");
    for (const row of rows) body.insertBefore(row, trivial);
  }
}

for (const table of document.querySelectorAll("main table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : column > 0;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    });
  });
}

// A form above the results: which tables by what they are about, which rows by their name.
const articles = [...document.querySelectorAll("#results > article")];

function labelled(name, control) {
  const label = document.createElement("label");
  label.append(name, control);
  return label;
}

function choice(name) {
  const values = [...new Set(articles.map((article) => article.dataset[name]))].filter(Boolean);
  if (values.length < 2) return null;
  const select = document.createElement("select");
  select.name = name;
  select.append(new Option("all", ""), ...values.map((value) => new Option(value)));
  return select;
}

function filter(form, told) {
  const chosen = Object.fromEntries(new FormData(form));
  const words = (chosen.backbone || "").toLowerCase().split(/\s+/).filter(Boolean);
  const about = Object.keys(chosen).filter((name) => name !== "backbone" && chosen[name]);
  let shown = 0;
  for (const article of articles) {
    let kept = 0;
    for (const table of article.querySelectorAll("table")) {
      if (!table.tHead.rows[0].cells[0].textContent.startsWith("Backbone")) continue;
      for (const row of table.querySelectorAll("tbody > tr:not(.group, .trivial)")) {
        const name = row.cells[0].textContent.toLowerCase();
        row.hidden = !words.every((word) => name.includes(word));
        if (table.matches(".board")) kept += !row.hidden;
      }
    }
    article.hidden = !kept || about.some((name) => article.dataset[name] !== chosen[name]);
    shown += !article.hidden;
  }
  const all = !words.length && !about.length;
  told.textContent = all ? "" : `${shown} of ${articles.length} leaderboards shown; charts keep every row.`;
}

function addFilter() {
  const form = document.createElement("form");
  form.className = "filter";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the results");
  const box = document.createElement("input");
  box.type = "search";
  box.name = "backbone";
  box.placeholder = "part of a name";
  form.append(labelled("Backbone", box));
  for (const [name, text] of [["task", "Task"], ["target", "Target"], ["protocol", "Protocol"]]) {
    const select = choice(name);
    if (select) form.append(labelled(text, select));
  }
  const told = document.createElement("output");
  form.append(told);
  form.addEventListener("input", () => filter(form, told));
  form.addEventListener("submit", (event) => event.preventDefault());
  articles[0].before(form);
  // a link may lead to what is filtered away
  return () => { form.reset(); filter(form, told); };
}
const unfilter = articles.length ? addFilter() : () => {};

// Paper has no folds to open: print the further tables with the rest.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details.more:not([open]), details.guide:not([open])")];
  unfolded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => unfolded.forEach((details) => { details.open = false; }));

function follow(hash) {
  const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
  if (target && target.closest("[hidden]")) unfilter();
  open(hash);
}
addEventListener("hashchange", () => follow(location.hash));
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) follow(link.hash);
});
follow(location.hash);
