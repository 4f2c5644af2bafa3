"use strict";
// Tables that sort by their headings and filter by text and selects, and pictures that are filtered. What was chosen is
// kept by name, so that a live page can put new rows in and call `tables` again; and it stands in the address, behind the
// section as in #leaderboard?runs.find=pgd, so that each view has an address of its own.
const robustq = { tables: null, kept: new Map() };
(() => {
  const given = new URLSearchParams(location.hash.split("?")[1] || "");
  const counted = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

  // A state's choices as the address has them; what is as it was at first is left out.
  const choices = (name, state) => {
    const found = [];
    if (state.find) found.push([`${name}.find`, state.find]);
    if (state.column !== null) found.push([`${name}.sort`, (state.down ? "-" : "") + state.column]);
    for (const [place, value] of Object.entries(state.picks))
      if (value !== (state.usual[place] ?? "")) found.push([`${name}.${place}`, value]);
    return found;
  };

  const remember = (box) => {
    const all = [...robustq.kept].flatMap(([name, state]) => choices(name, state));
    const section = (box && box.closest("section")?.id) || location.hash.slice(1).split("?")[0];
    const words = new URLSearchParams(all).toString();
    history.replaceState(null, "", `#${section}${words ? "?" + words : ""}`);
  };

  // The state of a table or of the pictures: as it is kept, or else as the address says.
  const stateOf = (name) => {
    const before = robustq.kept.get(name);
    const sort = given.get(`${name}.sort`);
    const column = sort === null || !/^-?\d+$/.test(sort) ? null : Math.abs(Number(sort));
    const state = before || { column, down: (sort || "").startsWith("-"), find: given.get(`${name}.find`) || "", picks: {}, usual: {} };
    robustq.kept.set(name, state);
    return [state, Boolean(before)];
  };

  // What a select shows: what was chosen before, or what the address says, or what it shows at first.
  const restore = (select, place, name, state, known) => {
    if (!known) state.usual[place] = select.value;
    const value = known ? state.picks[place] : given.get(`${name}.${place}`);
    if (value !== null && value !== undefined)
      select.value = [...select.options].some((option) => option.value === value || option.text === value) ? value : "";
    state.picks[place] = select.value;
  };

  const order = (cell) => (cell.dataset.order === undefined ? null : Number(cell.dataset.order));
  const compare = (a, b) => {
    const [x, y] = [order(a), order(b)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x === null ? 1 : -1;
    return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
  };

  const sort = (box, state) => {
    const headings = [...box.querySelectorAll("thead th")];
    headings.forEach((heading, place) => {
      if (place === state.column) heading.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    const body = box.querySelector("tbody");
    const rows = [...body.rows].map((row, place) => ({ row, place, cell: row.cells[state.column] }));
    rows.sort((a, b) => (state.down ? -1 : 1) * compare(a.cell, b.cell) || a.place - b.place);
    body.append(...rows.map(({ row }) => row));
  };

  const filter = (box, state) => {
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of box.querySelector("tbody").rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word)) &&
        Object.entries(state.picks).every(([place, value]) => !value || row.cells[place].textContent === value);
      row.hidden = !fits;
      shown += fits;
    }
    const all = box.querySelector("tbody").rows.length;
    const count = box.querySelector(".count");
    if (count) count.textContent = shown === all ? counted(all, "row") : `${shown} of ${counted(all, "row")}`;
  };

  const enhance = (box) => {
    const name = box.dataset.table;
    const [state, known] = stateOf(name);
    if (state.column !== null && state.column >= box.querySelectorAll("thead th").length) state.column = null;
    box.querySelectorAll("thead button").forEach((button, place) => {
      button.addEventListener("click", () => {
        const first = box.querySelector("tbody tr")?.cells[place];
        // Numbers are asked for from the top, names from A.
        state.down = state.column === place ? !state.down : Boolean(first && order(first) !== null);
        state.column = place;
        sort(box, state);
        remember(box);
      });
    });
    const find = box.querySelector("input[type=search]");
    if (find) {
      find.value = state.find;
      find.addEventListener("input", () => { state.find = find.value; filter(box, state); remember(box); });
    }
    for (const select of box.querySelectorAll("select")) {
      const place = select.dataset.column;
      restore(select, place, name, state, known && place in state.picks);
      select.addEventListener("change", () => { state.picks[place] = select.value; filter(box, state); remember(box); });
    }
    if (state.column !== null) sort(box, state);
    filter(box, state);
  };

  // Pictures: those that the attack broke or that stood, of one true class, of one model and attack.
  const pictures = (box) => {
    const section = box.parentElement;
    const images = [...section.querySelectorAll(".grid li")];
    const [state, known] = stateOf("images");
    const show = () => {
      let shown = 0;
      for (const image of images) {
        const { kind, label, grid } = image.dataset;
        const fits = Object.entries({ kind, label, grid }).every(([what, value]) => !state.picks[what] || state.picks[what] === value);
        image.hidden = !fits;
        shown += fits;
      }
      for (const grid of section.querySelectorAll("details[data-grid]")) {
        grid.hidden = ![...grid.querySelectorAll(".grid li")].some((image) => !image.hidden);
        if (state.picks.grid === grid.dataset.grid) grid.open = true;
      }
      box.querySelector(".count").textContent = shown === images.length ? counted(shown, "image") : `${shown} of ${counted(images.length, "image")}`;
    };
    for (const select of box.querySelectorAll("select")) {
      const what = select.dataset.pick;
      if (what !== "kind") {
        const values = [...new Set(images.map((image) => image.dataset[what]))];
        if (what === "label") values.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
        select.append(...values.map((value) => new Option(value, value)));
      }
      restore(select, what, "images", state, known && what in state.picks);
      select.addEventListener("change", () => { state.picks[what] = select.value; show(); remember(box); });
    }
    show();
  };

  robustq.tables = (root) => {
    root.querySelectorAll(".table.smart").forEach(enhance);
    root.querySelectorAll("[data-pictures]").forEach(pictures);
  };
  robustq.tables(document);
  // A link to a section keeps what was chosen, and an address with choices leads to its section.
  addEventListener("hashchange", () => { if (!location.hash.includes("?")) remember(null); });
  if ([...given].length) document.getElementById(location.hash.slice(1).split("?")[0])?.scrollIntoView();
})();
