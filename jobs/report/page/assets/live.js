"use strict";
// Follows the store: asks twice a second whether anything has changed and puts in what has, section by section.
(() => {
  const pulse = document.getElementById("pulse");
  const choice = document.getElementById("sweep");
  const address = () => "live" + location.search;
  let tag = null;

  const beside = document.getElementById("beside");
  const go = () => {
    const words = new URLSearchParams({ sweep: choice.value });
    if (beside.value && beside.value !== choice.value) words.set("with", beside.value);
    location.search = words.toString();
  };
  choice?.addEventListener("change", go);
  beside?.addEventListener("change", go);

  const open = () => new Map([...document.querySelectorAll("details[id]")].map((details) => [details.id, details.open]));

  const replace = (section, fresh) => {
    const body = section.querySelector(".body");
    const was = open();
    const focus = section.contains(document.activeElement) ? document.activeElement : null;
    const [id, start, end] = focus ? [focus.id, focus.selectionStart, focus.selectionEnd] : [""];
    body.querySelectorAll(".plot").forEach((plot) => Plotly.purge(plot));
    body.innerHTML = fresh.html; // escaped where it was made, and scripts that are put in so never run
    section.dataset.hash = fresh.hash;
    body.querySelectorAll("details[id]").forEach((details) => { if (was.has(details.id)) details.open = was.get(details.id); });
    robustq.tables(body);
    robustq.charts(body);
    const again = id && document.getElementById(id);
    if (again) {
      again.focus();
      if (start !== undefined && start !== null && again.setSelectionRange) again.setSelectionRange(start, end);
    }
  };

  const make = (fresh) => {
    const section = document.createElement("section");
    section.id = fresh.name;
    section.tabIndex = -1;
    section.setAttribute("aria-labelledby", `h-${fresh.name}`);
    const heading = document.createElement("h2");
    heading.id = `h-${fresh.name}`;
    heading.textContent = fresh.title;
    const body = document.createElement("div");
    body.className = "body";
    section.append(heading, body);
    return section;
  };

  const show = (found) => {
    document.getElementById("about").textContent = found.about;
    const main = document.querySelector("main");
    const names = new Set(found.sections.map((fresh) => fresh.name));
    [...main.children].forEach((section) => { if (!names.has(section.id)) section.remove(); });
    found.sections.forEach((fresh, place) => {
      let section = document.getElementById(fresh.name);
      if (!section) section = make(fresh);
      if (main.children[place] !== section) main.insertBefore(section, main.children[place] || null);
      if (section.dataset.hash !== fresh.hash) replace(section, fresh);
    });
    const list = document.querySelector("nav ul");
    list.replaceChildren(...found.sections.map((fresh) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = `#${fresh.name}`;
      link.textContent = fresh.title;
      item.append(link);
      return item;
    }));
  };

  const ask = async () => {
    const began = performance.now();
    let wait = 500, lost = "no answer from robustq ui";
    try {
      const answer = await fetch(address(), { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        show(await answer.json());
      } else if (answer.status === 304) wait = Math.max(wait, 5 * (performance.now() - began)); // a large store is asked less
      else {
        if (answer.status === 403) lost = "robustq ui was started anew: open the address that it printed";
        throw new Error(answer.statusText);
      }
      pulse.textContent = "live";
      pulse.classList.remove("lost");
    } catch {
      pulse.textContent = lost;
      pulse.classList.add("lost");
    }
    setTimeout(ask, wait);
  };
  setTimeout(ask, 500);
})();
