"use strict";

// Sort a table by the column of a pressed head; cells without a value stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const numbers = head.dataset.kind === "number", index = Number(head.dataset.column);
    const turned = { ascending: "descending", descending: "ascending" }[head.getAttribute("aria-sort")];
    const direction = turned ?? head.dataset.first;
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const value = (row) => {
      const cell = row.cells[index];
      if (!numbers) return cell.textContent;
      return "value" in cell.dataset ? Number(cell.dataset.value) : NaN;
    };
    const order = direction === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      if (!numbers) return order * a.localeCompare(b, undefined, { numeric: true });
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return order * ((a > b) - (a < b));
    };
    const rows = Array.from(body.rows, (row) => [value(row), row]);
    rows.sort(([a], [b]) => compare(a, b));
    body.append(...rows.map(([, row]) => row));
  });
}

// Start a sound where another sound of the same track was, and pause that one, to compare them at the same place.
for (const track of document.querySelectorAll(".track")) {
  const sounds = Array.from(track.querySelectorAll("audio"));
  let last = null;
  for (const sound of sounds) {
    sound.addEventListener("play", () => {
      for (const other of document.querySelectorAll("audio")) if (other !== sound) other.pause();
      if (last && last !== sound && !last.ended) sound.currentTime = last.currentTime;
      last = sound;
    });
  }
}

// A print shows everything.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
