"use strict";
// The page of a run at work loads itself again, unless its reader works with it.

starts.push(() => {
  const state = document.getElementById("unfinished");
  if (!state || !state.dataset.refresh) return;
  const again = setTimeout(() => location.reload(), 1000 * Number(state.dataset.refresh));
  const hold = (event) => {
    if (!event.target.closest("button, input, select, summary, [tabindex]")) return;
    clearTimeout(again);
    state.querySelector(".held").hidden = false;
  };
  for (const kind of ["input", "click", "keydown"]) {
    document.getElementById("content").addEventListener(kind, hold);
  }
});
