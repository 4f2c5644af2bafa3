"use strict";
// Colours as the system has them, or as chosen here; the choice is kept where the browser allows it.
document.documentElement.classList.add("js");
(() => {
  const choice = document.getElementById("theme");
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  let kept = "";
  try { kept = localStorage.getItem("robustq-theme") || ""; } catch { /* pages from files may have no storage */ }
  if (!["", "light", "dark"].includes(kept)) kept = "";
  choice.value = kept;
  apply(kept);
  choice.addEventListener("change", () => {
    apply(choice.value);
    try { localStorage.setItem("robustq-theme", choice.value); } catch { /* then it holds for this visit */ }
  });
})();
