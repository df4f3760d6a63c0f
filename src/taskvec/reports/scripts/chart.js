"use strict";
// Charts: tooltips by pointer and keyboard, series that come and go, maps that sort.

blocks("chart", (root, data) => {
  const drawings = [...root.querySelectorAll(".panel svg")];
  drawings.forEach(nameMarks);
  for (const item of root.querySelectorAll(".keys li")) addToggle(root, item);
  drawings.forEach((svg, place) => {
    if (data && data.maps) startMap(svg, data.maps[place]);
    if (data && data.heat) startHeat(svg, data, data.heat[place]);
    rove(svg, "[data-tip]");
  });
});

/** What titles say becomes tooltips, and the drawing a group of what can be reached. */
function nameMarks(svg) {
  const title = svg.querySelector("title");
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", `${title.textContent}. ${svg.querySelector("desc").textContent}`);
  title.remove();
  for (const title of svg.querySelectorAll("title")) {
    tell(title.parentNode, title.textContent);
    title.remove();
  }
}

function tell(element, text) {
  element.dataset.tip = text;
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", text);
}

/** A legend's entry hides its series and shows it again. */
function addToggle(root, item) {
  const toggle = () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const series of root.querySelectorAll(`.panel [data-key="${item.dataset.key}"]`)) {
      series.classList.toggle("unshown", !on);
    }
  };
  const button = make("button", { type: "button", "aria-pressed": "true", click: toggle }, ...item.childNodes);
  item.append(button);
}

const placed = (box) => ["left", "top", "wide", "high"].map((name) => Number(box.dataset[name]));
const shown = (value, unit) => `${value == null ? "–" : String(value).replace("-", "−")}${unit ? ` ${unit}` : ""}`;

/** A map of rows and columns: sorts by a name that is clicked, and hides what is unchecked. */
function startMap(svg, map) {
  const box = svg.querySelector(".map");
  const rows = [...box.children];
  const cells = rows.map((row) => [...row.querySelectorAll(".cell")]);
  if (!rows.length || !cells[0].length) {
    const says = (column, row) => `${map.rows[row]}, ${map.columns[column]}: ${shown(map.values[row][column])}`;
    if (rows.length) addCursor(svg, box, map.columns.length, rows.length, says);
    return;
  }
  const [left, top, wide, high] = placed(box);
  const columns = [...svg.querySelectorAll(".column")];
  const names = rows.map((row) => row.querySelector(".row"));
  const hidden = new Set();
  const order = { rows: [...rows.keys()], columns: [...map.columns.keys()] };
  cells.forEach((of, row) =>
    of.forEach((cell, column) =>
      tell(cell, `${map.rows[row]}, ${map.columns[column]}: ${shown(map.values[row][column])}`),
    ),
  );
  const layOut = (kind, move) => {
    let place = 0;
    for (const each of order[kind]) move(each, hidden.has(map[kind][each]) ? null : place++);
  };
  const update = () => {
    layOut("rows", (row, at) => {
      rows[row].classList.toggle("unshown", at === null);
      if (at !== null) rows[row].setAttribute("transform", `translate(0 ${top + at * high})`);
    });
    layOut("columns", (column, at) => {
      for (const of of [columns[column], ...cells.map((row) => row[column])]) {
        if (of) of.classList.toggle("unshown", at === null);
      }
      if (at === null) return;
      for (const row of cells) row[column].setAttribute("transform", `translate(${left + at * wide} 0)`);
      if (columns[column]) {
        const middle = left + (at + 0.5) * wide;
        columns[column].setAttribute("transform", `translate(${middle} ${top - 5})rotate(-40)`);
      }
    });
  };
  const sortsBy = (heads, kind, valueAt) => {
    let by = null;
    heads.forEach((head, place) => {
      const sort = () => {
        by = by === place ? null : place;
        order[kind] = [...map[kind].keys()];
        const value = (of) => valueAt(of, place) ?? -Infinity;
        if (by !== null) order[kind].sort((a, b) => value(b) - value(a));
        update();
      };
      const name = map[kind === "rows" ? "columns" : "rows"][place];
      tell(head, `${name}: sort the ${kind}`);
      head.setAttribute("role", "button");
      head.classList.add("sorts");
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        sort();
      });
    });
  };
  sortsBy(columns, "rows", (row, column) => map.values[row][column]);
  sortsBy(names, "columns", (column, row) => map.values[row][column]);
  if (map.rows.length > 2) svg.after(choices(map, hidden, update));
}

/** Check boxes of all names. */
function choices(map, hidden, update) {
  const boxes = [...new Set([...map.rows, ...map.columns])].map((name) => {
    const change = () => {
      if (box.checked) hidden.delete(name);
      else hidden.add(name);
      update();
    };
    const box = make("input", { type: "checkbox", checked: true, change });
    return make("label", {}, box, ` ${name}`);
  });
  return make("details", { class: "tools" }, make("summary", {}, "Rows and columns"), ...boxes);
}

/** A heat map: the cell under the pointer, or under the arrow keys, says its number. */
function startHeat(svg, data, values) {
  const { grid, names, unit } = data;
  const says = (column, row) => {
    const at = grid.length - 1 - row;
    const where = `${names[0]} ${shown(grid[column])}, ${names[1]} ${shown(grid[at])}`;
    return `${where}: ${shown(values[at][column], unit)}`;
  };
  addCursor(svg, svg.querySelector(".heat"), grid.length, grid.length, says);
}

/** A frame around one cell of many that are one drawing. */
function addCursor(svg, box, columns, rows, says) {
  const [left, top, wide, high] = placed(box);
  const frame = draw("rect", { class: "cursor", width: wide, height: high, tabindex: "0" });
  let [column, row] = [0, 0];
  const move = (x, y) => {
    column = Math.max(0, Math.min(columns - 1, x));
    row = Math.max(0, Math.min(rows - 1, y));
    frame.setAttribute("x", left + column * wide);
    frame.setAttribute("y", top + row * high);
    tell(frame, says(column, row));
  };
  move(0, rows - 1);
  svg.append(frame);
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const [x, y] = [Math.floor((at.x - left) / wide), Math.floor((at.y - top) / high)];
    if (x < 0 || y < 0 || x >= columns || y >= rows) return;
    move(x, y);
    showTip(frame);
  });
  svg.addEventListener("pointerleave", hideTip);
  frame.addEventListener("keydown", (event) => {
    const way = ARROWS[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    move(column + way[0], row + way[1]);
    showTip(frame);
  });
}
