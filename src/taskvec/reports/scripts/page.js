"use strict";
// The page itself: light or dark, and where the reader is.

starts.push(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const show = () => button.setAttribute("aria-pressed", dark());
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  show();
});

starts.push(() => {
  const links = [...document.querySelectorAll("nav a")];
  const mark = (entries) => {
    const seen = entries.find((entry) => entry.isIntersecting);
    for (const link of seen ? links : []) {
      if (link.hash === `#${seen.target.id}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  const watch = new IntersectionObserver(mark, { rootMargin: "-10% 0px -80% 0px" });
  for (const link of links) watch.observe(document.getElementById(link.hash.slice(1)));
});
