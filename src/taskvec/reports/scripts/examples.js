"use strict";
// Examples that a reader filters by task, mistake, regime, and by what was taken for what.

/** How often each value of a fact occurs among rows, the most frequent first. */
function tallied(rows, name) {
  const counts = new Map();
  for (const { [name]: value } of rows) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort((one, other) => other[1] - one[1]);
}

/** A choice among values; what was chosen stays if it is still there. */
function offer(select, label, counts) {
  const chosen = select.value;
  const options = counts.map(([value, count]) => make("option", { value }, `${value} (${count})`));
  select.replaceChildren(make("option", { value: "" }, label), ...options);
  select.value = counts.some(([value]) => value === chosen) ? chosen : "";
}

const CHOICES = { regime: "every regime", task: "every task", what: "every mistake", confusion: "every confusion" };

blocks("examples", (root) => {
  const rows = [...root.querySelectorAll("tbody tr")].map((row) => ({ row, ...row.dataset }));
  const names = Object.keys(CHOICES).filter((name) => tallied(rows, name).length > 1);
  const selects = new Map(names.map((name) => [name, make("select", { "aria-label": `Show ${CHOICES[name]}`, change: show })]));
  const fits = (row, but) =>
    names.every((name) => name === but || !selects.get(name).value || selects.get(name).value === row[name]);
  function show() {
    for (const name of names) offer(selects.get(name), CHOICES[name], tallied(rows.filter((row) => fits(row, name)), name));
    let left = 0;
    for (const each of rows) {
      each.row.hidden = !fits(each);
      left += !each.row.hidden;
    }
    root.querySelector(".none").hidden = left > 0;
    sayLeft(left, "example");
  }
  root.querySelector(".tools").append(...selects.values());
  for (const name of names) offer(selects.get(name), CHOICES[name], tallied(rows, name));
});
