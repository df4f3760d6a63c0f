"use strict";
// Tables that sort, filter, fold columns and can be copied.

const valueOf = (cell) => (cell.dataset.value === undefined ? null : Number(cell.dataset.value));
const textOf = (cell) => cell.textContent.trim();

/** How two rows stand by a column: numbers by value, words as people sort them, what is not there last. */
function inOrder(column, up) {
  const sign = up ? 1 : -1;
  return (one, other) => {
    const [a, b] = [one.cells[column], other.cells[column]];
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x !== null && y !== null) return sign * (x - y);
    const [s, t] = [textOf(a), textOf(b)];
    const rank = (value, text) => (value !== null ? 0 : text === "" || text === "–" ? 2 : 1);
    return rank(x, s) - rank(y, t) || sign * s.localeCompare(t, "en", { numeric: true });
  };
}

/** Sort the rows of every group; null brings back the order in which they came. */
function sortRows(table, first, column, up) {
  for (const [group, rows] of first) {
    const sorted = column === null ? rows : [...rows].sort(inOrder(column, up));
    group.append(...sorted);
  }
}

/** Whether a column begins with its least: words do, and numbers of which less is better. */
const beginsUp = (rows, head, column) =>
  textOf(head).endsWith("↓") || !rows.some((row) => valueOf(row.cells[column]) !== null);

function makeSortable(table, first) {
  const rows = [...first.values()].flat();
  const heads = [...table.tHead.rows[0].cells];
  let sorted = null;
  let up = false;
  const sort = (column) => {
    const begins = beginsUp(rows, heads[column], column);
    if (sorted !== column) [sorted, up] = [column, begins];
    else if (up === begins) up = !begins;
    else sorted = null;
    sortRows(table, first, sorted, up);
    for (const head of heads) head.removeAttribute("aria-sort");
    if (sorted !== null) heads[sorted].setAttribute("aria-sort", up ? "ascending" : "descending");
    say(sorted === null ? "In the first order" : `Sorted by ${textOf(heads[column])}`);
  };
  heads.forEach((head, column) => {
    head.append(make("button", { type: "button", class: "sort", click: () => sort(column) }, ...head.childNodes));
  });
}

/** Leave the rows, and the heads of groups, that hold every word. */
function filterRows(first, words) {
  let left = 0;
  for (const [group, rows] of first) {
    let kept = 0;
    const head = group.querySelector("tr.head");
    for (const row of rows) {
      const text = `${head ? textOf(head) : ""} ${textOf(row)}`.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      kept += !row.hidden;
    }
    if (head) head.hidden = !kept;
    left += kept;
  }
  return left;
}

/** What is shown, as lines of cells. */
function shownCells(table) {
  const seen = (element) => element.getClientRects().length > 0;
  return [...table.rows].filter(seen).map((row) => [...row.cells].filter(seen).map(textOf));
}

const asTabs = (lines) => lines.map((line) => line.map((text) => text.replace(/\s+/g, " ")).join("\t")).join("\n");

function asMarkdown([head, ...lines]) {
  const row = (cells) => {
    const written = cells.map((text) => text.replace(/[\\|*`<]/g, "\\$&").replace(/\s+/g, " "));
    return `| ${written.join(" | ")} |${" |".repeat(Math.max(0, head.length - cells.length))}`;
  };
  return [row(head), `|${" --- |"}${" ---: |".repeat(head.length - 1)}`, ...lines.map(row)].join("\n");
}

/** Put text on the clipboard; where the browser has none for pages like this, by the old way. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { class: "unseen" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

function makeCopied(root, table) {
  for (const button of root.querySelectorAll("button[data-copy]")) {
    const write = button.dataset.copy === "tabs" ? asTabs : asMarkdown;
    button.addEventListener("click", async () => {
      await copy(write(shownCells(table)));
      say("Copied");
      button.classList.add("done");
      setTimeout(() => button.classList.remove("done"), 1200);
    });
  }
}

blocks("table", (root) => {
  const table = root.querySelector("table");
  const first = new Map([...table.tBodies].map((group) => [group, [...group.querySelectorAll("tr:not(.head)")]]));
  makeSortable(table, first);
  makeCopied(root, table);
  rove(table, "button.sort, [data-tip]");
  const filter = root.querySelector("input[type=search]");
  if (filter) {
    const none = root.querySelector(".none");
    filter.addEventListener("input", () => {
      const left = filterRows(first, filter.value.toLowerCase().split(/\s+/));
      none.hidden = left > 0;
      say(left === 1 ? "1 row" : `${left} rows`);
    });
  }
  const fold = root.querySelector("button[data-fold]");
  if (fold) {
    const more = fold.textContent;
    fold.addEventListener("click", () => {
      const open = table.classList.toggle("open");
      fold.setAttribute("aria-expanded", open);
      fold.textContent = open ? "Fewer columns" : more;
    });
  }
});
