"use strict";
// Tables of heads: sorted by their headings, filtered by name, and found from a figure.
const Tables = (() => {
  function value(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return cell.textContent === "–" || cell.textContent === "" ? null : cell.textContent;
  }

  function sort(table, column, descending) {
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [value(row, column), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return descending ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((cell, i) =>
      cell.setAttribute("aria-sort", i === column ? (descending ? "descending" : "ascending") : "none"));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const column = Number(button.dataset.column);
      const now = button.parentElement.getAttribute("aria-sort");
      // Numbers are looked up from the top, names and ranks from the start.
      const first = button.parentElement.classList.contains("n") && button.textContent !== "rank";
      sort(table, column, now === "none" ? first : now === "ascending");
    });
  }

  function filter(tools) {
    const table = document.getElementById(tools.dataset.for);
    const asked = tools.querySelector("[type=search]").value.trim().toUpperCase().replace(/[.,:\s]+/, "H").replace(/^(\d)/, "L$1");
    const only = tools.querySelector("[type=checkbox]").checked;
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const name = row.dataset.head;
      const found = !asked || name === asked || (/^L\d+H?$/.test(asked) && name.startsWith(asked.replace(/H?$/, "H")))
        || (/^H\d+$/.test(asked) && name.endsWith(asked));
      row.hidden = !found || (only && !row.classList.contains("selected"));
      shown += !row.hidden;
    }
    tools.querySelector("output").textContent = `${shown} of ${table.tBodies[0].rows.length} heads`;
  }

  function find(id, name) {
    const tools = document.querySelector(`.tools[data-for="${id}"]`);
    tools.querySelector("[type=search]").value = name;
    tools.querySelector("[type=checkbox]").checked = false;
    filter(tools);
    tools.scrollIntoView({ block: "start" });
  }

  for (const tools of document.querySelectorAll(".tools")) {
    tools.hidden = false;
    tools.addEventListener("input", () => filter(tools));
    filter(tools);
  }

  // A head in a map leads to its row.
  for (const map of document.querySelectorAll("[data-heads-of]")) {
    map.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-head]");
      if (cell) find(map.dataset.headsOf, cell.dataset.head);
    });
  }
  return { find };
})();
