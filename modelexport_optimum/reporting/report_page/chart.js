"use strict";
// The chart: modules as boxes, each as high as its part of the one that calls it.

const LOWEST = 4; // pixels of the lowest box; lower ones of a module share a box
const LABELLED = 12; // pixels of the lowest box with a label
const HEIGHT = [480, 800]; // pixels of a chart: as high as its modules need for their labels
const COLUMN = 130; // pixels of the narrowest column
const MOST_COLUMNS = 7;
const ALONE = 0.98; // a module with this part of the one around it is all that can be seen there

const element = (name, text = "", type = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  if (type) made.className = type;
  return made;
};
const count = new Intl.NumberFormat("en");
const percent = part => `${(100 * part).toFixed(1)} %`;

const WRITTEN = {
  count: value => count.format(value),
  bytes: value => {
    let unit = 0;
    while (value >= 1000 && unit < 5) { value /= 1000; unit += 1; }
    return unit ? `${value.toFixed(1)} ${["", "kB", "MB", "GB", "TB", "PB"][unit]}` : `${value} B`;
  },
  ms: value => `${value.toFixed(3)} ms`,
  relative: value => value === 0 ? "0" : value.toExponential(1),
};
const written = (value, unit) => value === null || value === undefined ? "" : WRITTEN[unit](value);

// A class has one colour, wherever it stands: hues by the golden angle are far from each other.
function colour(made, type) {
  made.style.setProperty("--hue", ((type * 137.508 + 250) % 360).toFixed(1));
  made.style.setProperty("--shift", [0, -0.06, 0.04][Math.floor(type / 7) % 3]);
}

// What each module and those inside it make up, and the sum of all.
function sizesOf(rows, side, measure) {
  const sizes = rows.map(row => row.at[side] === undefined ? 0 : measure.own[row.at[side]] ?? 0);
  for (let index = rows.length - 1; index > 0; index--) sizes[rows[index].parent] += sizes[index];
  return sizes;
}

// Where a chart begins: below modules of which only one can be seen inside.
function beginning(rows, sizes) {
  let at = 0;
  for (;;) {
    const only = rows[at].children.find(child => sizes[child] >= ALONE * sizes[at]);
    if (only === undefined || !sizes[at] || !rows[only].children.length) return at;
    at = only;
  }
}

// The boxes of the module at a row and of those inside it.
function boxesOf(rows, sizes, top, width, height) {
  const most = Math.max(2, Math.min(MOST_COLUMNS, Math.floor(width / COLUMN)));
  const boxes = [];
  const place = (index, column, y, high) => {
    boxes.push({ index, column, y, high });
    if (column + 1 === most || !sizes[index]) return;
    const low = []; // neighbours too low to be told apart
    const close = () => {
      if (!low.length) return;
      const from = low[0].y;
      const to = low[low.length - 1].y + low[low.length - 1].high;
      if (to - from >= 1) boxes.push({ index, column: column + 1, y: from, high: to - from, many: low.map(one => one.child) });
      low.length = 0;
    };
    for (const child of rows[index].children) {
      const inside = (sizes[child] / sizes[index]) * high;
      if (inside >= LOWEST) {
        close();
        place(child, column + 1, y, inside);
      } else if (sizes[child]) {
        low.push({ child, y, high: inside });
      }
      y += inside;
    }
    close();
  };
  place(top, 0, 0, height);
  const columns = 1 + Math.max(...boxes.map(box => box.column));
  for (const box of boxes) {
    box.x = (100 * box.column) / columns;
    box.wide = 100 / columns;
  }
  return boxes;
}

// Draw one export's chart. `go` is told which module to show, `tell` which one is looked at.
function drawChart(figure, { rows, sizes, top, side, measure, label, strength, go, tell, classes }) {
  const chart = element("div", "", "chart");
  figure.append(chart);
  if (!sizes[top]) {
    chart.append(element("p", `${rows[top].path || rows[top].name} has none of this here.`));
    return;
  }
  const beside = rows[top].children.filter(child => sizes[child]).length;
  chart.style.height = `${Math.min(HEIGHT[1], Math.max(HEIGHT[0], (LABELLED + 1) * beside))}px`;
  chart.setAttribute("role", "tree");
  chart.setAttribute("aria-label", `${measure.label} by module. Arrow keys move, Enter goes in, Escape goes out.`);
  const boxes = boxesOf(rows, sizes, top, chart.clientWidth, chart.clientHeight);
  const cells = boxes.map((box, number) => {
    const row = rows[box.index];
    const cell = element("button", "", "cell");
    cell.type = "button";
    cell.tabIndex = number ? -1 : 0;
    cell.setAttribute("role", "treeitem");
    cell.setAttribute("aria-level", box.column + 1);
    cell.style.cssText = `left:${box.x.toFixed(3)}%;top:${box.y.toFixed(2)}px;width:calc(${box.wide.toFixed(3)}% - 1.5px);height:${Math.max(1, box.high - 1).toFixed(2)}px`;
    cell.classList.toggle("thin", box.high < LABELLED);
    cell.classList.toggle("low", box.high < 20);
    if (box.many) {
      cell.classList.add("rest");
      const text = `${count.format(box.many.length)} smaller ${box.many.length === 1 ? "module" : "modules"} in ${row.path || row.name}`;
      cell.append(element("span", text));
      cell.setAttribute("aria-label", text);
      cell.onfocus = cell.onmouseenter = () => tell(text);
    } else {
      const type = row.types[side] ?? row.types.find(one => one !== undefined);
      colour(cell, type);
      cell.dataset.type = type;
      cell.dataset.path = row.path;
      cell.style.setProperty("--strength", strength(row));
      cell.append(element("span", row.name), element("small", label(row)));
      cell.setAttribute("aria-label", `${row.path || row.name}, ${classes[type]}, ${label(row)}`);
      cell.setAttribute("aria-selected", String(box.index === top));
      cell.onfocus = cell.onmouseenter = () => tell(row);
    }
    cell.onclick = () => go(!box.many && box.index === top ? rows[top].parent ?? top : box.index);
    return cell;
  });
  chart.append(...cells);
  chart.onkeydown = event => {
    const number = cells.indexOf(document.activeElement);
    if (number < 0) return;
    const here = boxes[number];
    const middle = here.y + here.high / 2;
    const nearest = (wanted, y) => boxes
      .map((box, at) => [wanted(box) ? Math.abs(box.y + box.high / 2 - y) : Infinity, at])
      .reduce((best, one) => one[0] < best[0] ? one : best, [Infinity, -1])[1];
    const moves = {
      ArrowDown: () => nearest(box => box.column === here.column && box.y > here.y, middle),
      ArrowUp: () => nearest(box => box.column === here.column && box.y < here.y, middle),
      ArrowRight: () => boxes.findIndex(box => box.column === here.column + 1 && box.y >= here.y - 0.5 && box.y < here.y + here.high),
      ArrowLeft: () => nearest(box => box.column === here.column - 1 && box.y <= middle && box.y + box.high >= middle, middle),
      Home: () => 0,
      Escape: () => { go(rows[top].parent ?? top); return -1; },
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = moves[event.key]();
    if (next < 0) return;
    cells[number].tabIndex = -1;
    cells[next].tabIndex = 0;
    cells[next].focus();
  };
}
