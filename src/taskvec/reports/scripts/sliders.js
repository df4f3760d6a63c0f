"use strict";
// Outputs of a tangent space are affine in the coefficients: an accuracy is a sum, an argmax and a count.

const END = 2;
const SIDE = 21;
const CELL = 14;
const STEP = (2 * END) / (SIDE - 1);

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** Numbers of a task, examples by columns: of the model before any step, then of each vector's slope. */
function unpack(data, count) {
  const three = bytes(data.numbers);
  const steps = new Float64Array(bytes(data.steps).buffer);
  const size = three.length / 3 / (count + 1);
  const columns = size / data.examples;
  const terms = Array.from({ length: count + 1 }, () => new Float64Array(size));
  terms.forEach((term, t) => {
    for (let i = 0, j = 3 * t * size; i < size; i++, j += 3) {
      const whole = ((three[j] << 8) | (three[j + 1] << 16) | (three[j + 2] << 24)) >> 8;
      term[i] = whole * steps[Math.floor(i / columns)];
    }
  });
  const labels = new Uint16Array(bytes(data.labels).buffer);
  return { ...data, columns, terms, labels, sum: new Float64Array(size), rest: new Float64Array(size) };
}

/** The sum of a task's terms, without those of two vectors. */
function add(task, at, sum, but = -1, nor = -1) {
  sum.set(task.terms[0]);
  for (let t = 0; t < at.length; t++) {
    if (at[t] === 0 || t === but || t === nor) continue;
    const [term, a] = [task.terms[t + 1], at[t]];
    for (let i = 0; i < sum.length; i++) sum[i] += a * term[i];
  }
}

/** The share of examples whose label has the largest score; of equal scores the first counts. */
function judge({ classes, columns, labels, offsets, sum }) {
  let right = 0;
  for (let n = 0, row = 0; n < labels.length; n++, row += columns) {
    let length = 0;
    for (let k = classes - 1; offsets && k < columns; k++) length += sum[row + k] ** 2;
    length = Math.max(Math.sqrt(length), 1e-30);
    let best = 0;
    let found = 0;
    for (let k = 0; k < classes - 1; k++) {
      const score = offsets ? sum[row + k] + length * offsets[k] : sum[row + k];
      if (score > best) {
        best = score;
        found = k + 1;
      }
    }
    if (found === labels[n]) right++;
  }
  return right / labels.length;
}

function accuracy(task, at) {
  add(task, at, task.sum);
  return judge(task);
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const tidy = (value) => Math.round(value * 1e6) / 1e6;
const words = (value) => `α ${number(value, 2)}`;
const across = (a) => ((Math.max(-END, Math.min(END, a)) + END) / STEP + 0.5) * CELL;

/** The mean accuracy of two tasks over a plane of their coefficients; its ring is two sliders. */
function plane(root, tasks, at, go) {
  const svg = root.querySelector("svg");
  const choices = root.querySelectorAll("select");
  const names = [...svg.querySelectorAll("text")].slice(-2);
  const cells = Array.from({ length: SIDE * SIDE }, (_, n) =>
    draw("rect", { x: (n % SIDE) * CELL, y: (SIDE - 1 - Math.floor(n / SIDE)) * CELL, width: CELL, height: CELL }));
  svg.querySelector("g").append(...cells);
  const pair = () => [...choices].map((choice) => tasks[choice.value]);
  let drawn = "";
  let next = 0;
  let frame = 0;

  function share(task, [one, other], [a, b]) {
    const { sum, rest, terms } = task;
    const [right, upwards] = [terms[one.own + 1], terms[other.own + 1]];
    for (let i = 0; i < sum.length; i++) sum[i] = rest[i] + a * right[i] + b * upwards[i];
    return judge(task);
  }

  function paint() {
    const both = pair();
    for (const until = performance.now() + 6; next < cells.length && performance.now() < until; next++) {
      const at = [(next % SIDE) * STEP - END, both[0] === both[1] ? 0 : Math.floor(next / SIDE) * STEP - END];
      cells[next].setAttribute("fill-opacity", tidy(mean(both.map((task) => share(task, both, at)))));
    }
    frame = next < cells.length ? requestAnimationFrame(paint) : 0;
  }

  function show() {
    const [right, upwards] = pair();
    const place = [right, upwards].map((task) => at[task.own]);
    for (const ring of svg.querySelectorAll("circle")) {
      ring.setAttribute("cx", across(place[0]));
      ring.setAttribute("cy", SIDE * CELL - across(place[1]));
    }
    [right, upwards].forEach((task, n) => { names[n].textContent = `α of ${task.name}`; });
    svg.setAttribute("aria-label", `${right.name} ${words(place[0])}, ${upwards.name} ${words(place[1])}`);
    const state = [right.own, upwards.own, ...at.map((a, t) => (t === right.own || t === upwards.own ? 0 : a))].join();
    if (state === drawn) return;
    drawn = state;
    for (const task of [right, upwards]) add(task, at, task.rest, right.own, upwards.own);
    next = 0;
    frame = frame || requestAnimationFrame(paint);
  }

  function move(a, b) {
    const [right, upwards] = pair();
    go(at.map((old, t) => (t === right.own ? a : t === upwards.own ? b : old)));
  }

  function point(event) {
    const { x, y } = pointed(svg, event);
    const value = (length) => Math.round(20 * ((length / CELL - 0.5) * STEP - END)) / 20;
    move(value(x), value(SIDE * CELL - y));
  }
  root.addEventListener("change", show);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointermove", (event) => event.buttons && point(event));
  arrows(svg, ([x, y]) => {
    const [right, upwards] = pair();
    move(tidy(at[right.own] + x / 20), tidy(at[upwards.own] - y / 20));
  });
  return show;
}

blocks("sliders", (root, data) => {
  const tasks = data.tasks.map((task) => unpack(task, data.vectors.length));
  const own = tasks.map((task) => accuracy(task, data.vectors.map((_, t) => +(t === task.own))));
  const [every, ...moves] = root.querySelectorAll(".move");
  const at = [...data.start];
  let frame = requestAnimationFrame(show);
  let later = 0;
  let typed = null;

  function go(to) {
    to.forEach((value, t) => { at[t] = value; });
    frame = frame || requestAnimationFrame(show);
    clearTimeout(later);
    later = setTimeout(() => history.replaceState(null, "", `#a=${root.id}:${at.map(tidy)}`), 500);
  }
  const box = root.querySelector(".plane");
  const map = box ? plane(box, tasks, at, go) : () => {};

  function put(move, value) {
    const [range, field] = move.querySelectorAll("input");
    range.value = value;
    range.setAttribute("aria-valuetext", words(value));
    if (field !== typed) field.value = tidy(value);
  }

  function show() {
    frame = 0;
    const shares = tasks.map((task) => accuracy(task, at));
    shares.forEach((share, n) => {
      const move = moves[tasks[n].own];
      move.querySelector("rect").setAttribute("width", 100 * share);
      move.querySelector("output").value = number(100 * share);
    });
    moves.forEach((move, t) => put(move, at[t]));
    put(every, mean(at));
    const ratios = shares.map((share, n) => share / own[n]).filter(Number.isFinite);
    every.querySelector("output").value = `mean ${number(100 * mean(shares))} %, normalized ${number(100 * mean(ratios))} %`;
    map();
    typed = null;
  }

  root.addEventListener("input", ({ target }) => {
    typed = target;
    const place = moves.indexOf(target.closest(".move"));
    if (target.matches("input") && target.value !== "") go(at.map((old, t) => (place < 0 || place === t ? +target.value : old)));
  });
  root.addEventListener("click", ({ target }) => {
    if (!target.matches(".sliders button")) return;
    go(target.value ? data.marks[target.value][1] : moves.map((move) => +move.contains(target)));
  });

  function follow() {
    const [of, values] = decodeURIComponent(location.hash).replace("#a=", "").split(":");
    const given = (values || "").split(",").map(Number);
    if (of === root.id && given.length === at.length && given.every(Number.isFinite)) go(given);
  }
  follow();
  addEventListener("hashchange", follow);
});
