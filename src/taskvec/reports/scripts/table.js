"use strict";
// Tables that sort, filter, fold and copy.

const valueOf = (cell) => (cell.dataset.value === undefined ? null : Number(cell.dataset.value));
const textOf = (cell) => cell.textContent.trim();

/** How two rows stand by a column: numbers by value, words as people sort them, what is not there last. */
function inOrder(column, up) {
  const facts = ({ cells }) => {
    const [value, text] = [valueOf(cells[column]), textOf(cells[column])];
    return [value !== null ? 0 : text === "" || text === "–" ? 2 : 1, value, text];
  };
  return (one, other) => {
    const [[kind, a, s], [its, b, t]] = [facts(one), facts(other)];
    return kind - its || (up ? 1 : -1) * (kind ? s.localeCompare(t, "en", { numeric: true }) : a - b);
  };
}

/** Sort the rows of every group; null brings back the order in which they came. */
function sortRows(first, column, up) {
  for (const [group, rows] of first) group.append(...(column === null ? rows : [...rows].sort(inOrder(column, up))));
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
    sortRows(first, sorted, up);
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

/** What is shown, for a spreadsheet. */
function shownText(table) {
  const seen = (element) => element.getClientRects().length > 0;
  const line = (row) => [...row.cells].filter(seen).map((cell) => textOf(cell).replace(/\s+/g, " "));
  return [...table.rows].filter(seen).map((row) => line(row).join("\t")).join("\n");
}

/** Copy what is shown, in the way that browsers let a file on disk do, too. */
function makeCopied(button, table) {
  const write = (event) => {
    event.clipboardData.setData("text/plain", shownText(table));
    event.preventDefault();
  };
  button.addEventListener("click", () => {
    document.addEventListener("copy", write, { once: true });
    if (!document.execCommand("copy")) return;
    say("Copied");
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1200);
  });
}

blocks("table", (root) => {
  const table = root.querySelector("table");
  const first = new Map([...table.tBodies].map((group) => [group, [...group.querySelectorAll("tr:not(.head)")]]));
  makeSortable(table, first);
  makeCopied(root.querySelector("[data-copy]"), table);
  rove(table, "button.sort, [data-tip]");
  const filter = root.querySelector("input[type=search]");
  if (filter) {
    const none = root.querySelector(".none");
    filter.addEventListener("input", () => {
      const left = filterRows(first, filter.value.toLowerCase().split(/\s+/));
      none.hidden = left > 0;
      sayLeft(left, "row");
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
