"use strict";
// What every script may use: all are joined into one function.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: make("button", {type: "button", click: sort}, "Sort"). Children are elements or text. */
function make(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
function draw(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Attributes that are functions listen; those that are null or false are left out. */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value != null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Where the pointer is, in the units of a drawing. */
function pointed(svg, { clientX, clientY }) {
  return new DOMPoint(clientX, clientY).matrixTransform(svg.getScreenCTM().inverse());
}

/** A number as tables show it; a dash where there is none. */
function number(value, digits = 1) {
  return Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "–";
}

const starts = [];

/** Let a script start every block of its name: start(root, data), once the page is there. */
function blocks(name, start) {
  starts.push(() => {
    for (const root of document.querySelectorAll(`[data-block="${name}"]`)) {
      const inlined = root.querySelector(":scope > script");
      start(root, inlined && JSON.parse(inlined.textContent));
    }
  });
}

/** Say a short sentence to a reader who listens. */
function say(text) {
  document.getElementById("said").textContent = text;
}

const sayLeft = (count, what) => say(`${count} ${what}${count === 1 ? "" : "s"}`);

const tip = make("div", { id: "tip", role: "tooltip", hidden: true });

/** Show what ``data-tip`` of an element says, above it, or below where there is no room. */
function showTip(target) {
  if (!target) return hideTip();
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const at = target.getBoundingClientRect();
  const box = tip.getBoundingClientRect();
  const widest = document.documentElement.clientWidth - box.width - 8;
  const top = at.top - box.height - 6;
  tip.style.left = `${Math.max(8, Math.min(at.left + (at.width - box.width) / 2, widest))}px`;
  tip.style.top = `${top < 4 ? at.bottom + 6 : top}px`;
}

function hideTip() {
  tip.hidden = true;
}

/** What an event asks to explain; else what the keyboard stands on. */
function tipped({ target }) {
  return (target.closest && target.closest("[data-tip]")) || document.querySelector("[data-tip]:focus-visible");
}

starts.push(() => {
  document.body.append(tip);
  for (const element of document.querySelectorAll("main [title]")) {
    element.dataset.tip = element.title;
    element.removeAttribute("title");
  }
  document.addEventListener("pointerover", (event) => showTip(tipped(event)));
  document.addEventListener("focusin", (event) => {
    const target = tipped(event);
    showTip(target);
    if (target) target.setAttribute("aria-describedby", "tip");
  });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  document.addEventListener("scroll", (event) => tip.hidden || showTip(tipped(event)), { capture: true, passive: true });
});

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** What an arrow key does: go([right, down], event), unless that is false. */
function arrows(root, go) {
  root.addEventListener("keydown", (event) => {
    const way = !event.defaultPrevented && ARROWS[event.key];
    if (way && go(way, event) !== false) event.preventDefault();
  });
}

/** Let Tab reach one of the elements, and the arrow keys the nearest ones from there. */
function rove(root, selector) {
  const all = () => [...root.querySelectorAll(selector)].filter((element) => element.getClientRects().length);
  const enter = (chosen) => {
    for (const element of root.querySelectorAll(selector)) {
      element.setAttribute("tabindex", element === chosen ? "0" : "-1");
    }
  };
  enter(root.querySelector(selector));
  root.addEventListener("focusin", (event) => {
    const chosen = event.target.closest(selector);
    if (chosen) enter(chosen);
  });
  arrows(root, (way, { target }) => {
    const from = target.closest(selector);
    const to = from && nearest(from, all(), way);
    if (to) to.focus();
    return Boolean(to);
  });
}

/** The closest element in a direction: of those straight ahead if there are any, else a step aside counts four. */
function nearest(from, elements, [x, y]) {
  const at = from.getBoundingClientRect();
  let best = null;
  let least = Infinity;
  for (const element of elements) {
    const box = element.getBoundingClientRect();
    const dx = box.left + box.right - at.left - at.right;
    const dy = box.top + box.bottom - at.top - at.bottom;
    const gap = y ? Math.max(box.left - at.right, at.left - box.right) : Math.max(box.top - at.bottom, at.top - box.bottom);
    const ahead = dx * x + dy * y;
    const far = gap < 0 ? ahead : 1e6 + ahead + 4 * Math.abs(dx * y + dy * x);
    if (ahead > 1 && far < least) [best, least] = [element, far];
  }
  return best;
}

document.documentElement.classList.add("live");
document.addEventListener("DOMContentLoaded", () => starts.forEach((start) => start()));
