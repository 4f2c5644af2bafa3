"use strict";
// Tables that sort by their headings and filter by text and selects. What was chosen is kept by table name, so that a
// live page can put new rows in and call `tables` again.
const robustq = { tables: null, kept: new Map() };
(() => {
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
    if (count) count.textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
  };

  const enhance = (box) => {
    const before = robustq.kept.get(box.dataset.table);
    const state = before || { column: null, down: false, find: "", picks: {} };
    robustq.kept.set(box.dataset.table, state);
    box.querySelectorAll("thead button").forEach((button, place) => {
      button.addEventListener("click", () => {
        const first = box.querySelector("tbody tr")?.cells[place];
        // Numbers are asked for from the top, names from A.
        state.down = state.column === place ? !state.down : Boolean(first && order(first) !== null);
        state.column = place;
        sort(box, state);
      });
    });
    const find = box.querySelector("input[type=search]");
    if (find) {
      find.value = state.find;
      find.addEventListener("input", () => { state.find = find.value; filter(box, state); });
    }
    for (const select of box.querySelectorAll("select")) {
      if (before && select.dataset.column in state.picks) {
        const value = state.picks[select.dataset.column];
        select.value = [...select.options].some((option) => option.value === value || option.text === value) ? value : "";
      }
      state.picks[select.dataset.column] = select.value;
      select.addEventListener("change", () => { state.picks[select.dataset.column] = select.value; filter(box, state); });
    }
    if (state.column !== null) sort(box, state);
    filter(box, state);
  };

  robustq.tables = (root) => root.querySelectorAll(".table.smart").forEach(enhance);
  robustq.tables(document);
})();
