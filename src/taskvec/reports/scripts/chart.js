"use strict";
// Charts: tooltips, series that come and go, cells of maps.

blocks("chart", (root, data) => {
  const drawings = [...root.querySelectorAll(".panel svg")];
  drawings.forEach(nameMarks);
  for (const item of root.querySelectorAll(".keys li")) addToggle(root, item);
  drawings.forEach((svg, place) => {
    if (data && data.maps) addCursor(svg, ...inMap(data.maps[place]));
    if (data && data.heat) addCursor(svg, ...inHeat(data, data.heat[place]));
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
    const series = root.querySelectorAll(`.panel [data-key="${item.dataset.key}"]`);
    for (const each of series) each.classList.toggle("unshown", !on);
  };
  const button = make("button", { type: "button", "aria-pressed": "true", click: toggle }, ...item.childNodes);
  item.append(button);
}

const shown = (value, unit) => `${value == null ? "–" : String(value).replace("-", "−")}${unit ? ` ${unit}` : ""}`;

/** What a cell of a map of rows and columns says. */
function inMap({ rows, columns, values }) {
  const says = (column, row) => `${rows[row]}, ${columns[column]}: ${shown(values[row][column])}`;
  return [columns.length, rows.length, says];
}

/** The same of a heat map, whose lowest row is the first. */
function inHeat({ grid, names: [right, upwards], unit }, values) {
  const says = (column, row) => {
    const at = grid.length - 1 - row;
    return `${right} ${shown(grid[column])}, ${upwards} ${shown(grid[at])}: ${shown(values[at][column], unit)}`;
  };
  return [grid.length, grid.length, says];
}

/** A frame around the cell under the pointer, or where the arrow keys lead, that says its number. */
function addCursor(svg, columns, rows, says) {
  if (!columns || !rows) return;
  const { dataset } = svg.querySelector("[data-wide]");
  const [left, top, wide, high] = ["left", "top", "wide", "high"].map((name) => Number(dataset[name]));
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
    const at = pointed(svg, event);
    const [x, y] = [Math.floor((at.x - left) / wide), Math.floor((at.y - top) / high)];
    if (x < 0 || y < 0 || x >= columns || y >= rows) return;
    move(x, y);
    showTip(frame);
  });
  svg.addEventListener("pointerleave", hideTip);
  arrows(frame, ([x, y]) => {
    move(column + x, row + y);
    showTip(frame);
  });
}
