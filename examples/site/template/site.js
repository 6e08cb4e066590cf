// Light or dark, as the reader's system has it or as the button says; and places that scroll can be
// reached by the keyboard. The pages can be read without this.
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function stored(value) {
    try {
      if (value) localStorage.setItem("theme", value);
      return localStorage.getItem("theme");
    } catch {
      return value; // a browser may forbid to store anything
    }
  }

  function theme() {
    return root.dataset.theme || (system.matches ? "dark" : "light");
  }

  // A page in a frame sees the system's colours only, so it is told.
  function tell(frame) {
    const inside = frame.contentDocument?.documentElement; // not there while the frame begins to load
    if (inside && root.dataset.theme) inside.dataset.theme = root.dataset.theme;
  }

  function show(button) {
    const other = theme() === "dark" ? "light" : "dark";
    button.textContent = other === "dark" ? "☾ Dark" : "☀ Light";
    button.title = `Show the pages ${other}`;
    document.querySelectorAll("iframe").forEach(tell);
  }

  function reach() {
    for (const place of document.querySelectorAll('pre, .scroll, .rich, .attr, math[display="block"]')) {
      if (place.scrollWidth > place.clientWidth || place.scrollHeight > place.clientHeight) place.tabIndex = 0;
      else place.removeAttribute("tabindex");
    }
  }

  const chosen = stored();
  if (chosen) root.dataset.theme = chosen;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      stored(root.dataset.theme);
      show(button);
    });
    system.addEventListener("change", () => show(button));
    show(button);
    document.querySelectorAll("iframe").forEach((frame) => frame.addEventListener("load", () => tell(frame)));
    document.querySelectorAll("details").forEach((fold) => fold.addEventListener("toggle", reach));
    new ResizeObserver(reach).observe(document.body);
  });
})();
