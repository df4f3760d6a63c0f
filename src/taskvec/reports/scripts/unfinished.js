"use strict";
// A page of a run at work loads itself again, less often the older it is.

starts.push(() => {
  const state = document.getElementById("unfinished");
  if (!state?.dataset.refresh) return;
  const age = Date.now() - Date.parse(document.lastModified);
  const again = setTimeout(() => location.reload(), Math.max(1000 * state.dataset.refresh, age / 20));
  const hold = (event) => {
    if (!event.target.closest("button, input, select, summary, [tabindex]")) return;
    clearTimeout(again);
    state.querySelector(".held").hidden = false;
  };
  for (const kind of ["input", "click", "keydown"]) {
    document.getElementById("content").addEventListener(kind, hold);
  }
});
