// Light, dark, or what the system says. Runs before the page is shown.
"use strict";

(() => {
  const KEY = "rabbitline.theme";
  const root = document.documentElement;

  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };

  // A browser that keeps nothing for us says so by throwing.
  const kept = (act) => {
    try {
      return act(localStorage);
    } catch {
      return null;
    }
  };

  apply(kept((storage) => storage.getItem(KEY)));
  document.addEventListener("DOMContentLoaded", () => {
    const choice = document.getElementById("theme");
    choice.value = root.dataset.theme ?? "auto";
    choice.addEventListener("change", () => {
      kept((storage) => storage.setItem(KEY, choice.value));
      apply(choice.value);
    });
  });
})();
