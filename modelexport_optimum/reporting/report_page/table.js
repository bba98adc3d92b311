// --- The table of modules ------------------------------------------------------------------------

// A module that is chosen is what the chart shows, and its nodes are listed.
function choose(index, from, figure = null) {
  const row = file.rows[index];
  const place = [...document.querySelectorAll("figure")].indexOf(figure);
  at = from === "table" && at === index ? null : index;
  for (let outer = row.parent; outer !== null; outer = file.rows[outer].parent) file.rows[outer].open = true;
  nodesShown = SHOWN;
  showChart();
  showModules();
  showNodes();
  if (from === "chart") document.querySelectorAll("figure")[place]?.querySelector(".cell")?.focus();
  if (from === "trail") find("#charts .cell")?.focus();
  if (from !== "table") {
    const shown = find("tr.chosen");
    if (shown) shown.closest(".scroll").scrollTop = Math.max(0, shown.offsetTop - 80);
  }
}

function headings() {
  const names = [["module", ""], ["class", ""]];
  if (both()) {
    for (const side of measured()) names.push([sides[side], "number"]);
    if (measured().length > 1) names.push(["change", "number"]);
    names.push([measure.label.toLowerCase(), "shown"]);
  } else {
    const name = measure.label.toLowerCase();
    const drawn = measure.unit === "relative" ? `${name}, from 10⁻⁸ to 1` : `${name}, of the largest`;
    names.push([measure.additive ? `share of ${name}` : drawn, "shown"]);
    // The share comes first: of many measures the last ones are seen only by scrolling.
    for (const one of file.measures) names.push([one.label.toLowerCase(), one === measure ? "number shown" : "number"]);
  }
  const row = element("tr");
  row.append(...names.map(([name, type]) => {
    const cell = element("th", name, type);
    cell.scope = "col";
    return cell;
  }));
  return row;
}

function numberCell(row, side, one, type = "") {
  const value = valueOf(row, side, one.key);
  const tolerance = file.parts[side]?.tolerance;
  const wrong = one.unit === "relative" && tolerance !== null && value > tolerance;
  return element("td", written(value, one.unit), `number ${type}${wrong ? " wrong" : ""}`);
}

function track(part, text, other) {
  const made = element("div", "", other ? "track other" : "track");
  const outer = element("div", "", "rail");
  const inner = element("div");
  inner.style.width = `${(100 * Math.min(1, part)).toFixed(2)}%`;
  outer.append(inner);
  made.append(element("small", text), outer);
  return made;
}

function shareCell(row) {
  const cell = element("td", "", "share number");
  const most = Math.max(...sides.map((_, side) => wholeOf(side, measure.key)));
  sides.forEach((_, side) => {
    const value = valueOf(row, side, measure.key);
    if (value === null || value === undefined) return;
    const part = measure.additive ? (most ? value / most : 0) : power(value);
    cell.append(track(part, both() || !measure.additive ? "" : percent(part), side > 0));
  });
  return cell;
}

function changed(row) {
  const [before, after] = [0, 1].map(side => valueOf(row, side, measure.key));
  if (before === null) return "added";
  if (after === null) return "gone";
  if (before === after) return "=";
  const sign = after > before ? "+" : "−";
  const ratio = before ? ` (${sign}${percent(Math.abs(after - before) / before)})` : "";
  return `${sign}${written(Math.abs(after - before), measure.unit)}${ratio}`;
}

function rowOf(row, wanted) {
  const made = element("tr", "", "module");
  made.title = row.path;
  made.tabIndex = -1;
  made.dataset.index = row.index;
  made.setAttribute("aria-level", row.depth + 1);
  made.setAttribute("aria-selected", String(row.index === at));
  if (row.children.length) made.setAttribute("aria-expanded", String(row.open));
  if (row.index === at) made.classList.add("chosen");
  const cell = element("td");
  if (!wanted) cell.style.paddingLeft = `${12 + row.depth * 16}px`;
  const fold = element("button", wanted || !row.children.length ? "" : row.open ? "▾" : "▸", "fold");
  fold.tabIndex = -1;
  fold.setAttribute("aria-hidden", "true");
  fold.onclick = event => { event.stopPropagation(); row.open = !row.open; showModules(); };
  const type = row.types.find(one => one !== undefined);
  cell.append(fold, element("b", wanted ? row.path || row.name : row.name));
  const kind = element("td");
  const swatch = element("span", "", "swatch");
  colour(swatch, type);
  kind.append(swatch, [...new Set(row.types.filter(one => one !== undefined))].map(one => classes[one]).join(" → "));
  made.append(cell, kind);
  if (both()) {
    for (const side of measured()) made.append(numberCell(row, side, measure));
    if (measured().length > 1) made.append(element("td", changed(row), "number"));
    made.append(shareCell(row));
  } else {
    made.append(shareCell(row));
    for (const one of file.measures) made.append(numberCell(row, 0, one, one === measure ? "shown" : ""));
  }
  made.onclick = () => choose(row.index, "table");
  return made;
}

function showModules() {
  const wanted = find(".known").value.trim().toLowerCase();
  const visible = [];
  let total = 0;
  for (let index = 0; index < file.rows.length; index++) {
    const row = file.rows[index];
    if (wanted) {
      const text = `${row.path} ${row.types.map(type => classes[type] ?? "").join(" ")}`.toLowerCase();
      if (text.includes(wanted)) visible.push(row);
    } else {
      visible.push(row);
      if (!row.open) index = row.end - 1;
    }
  }
  total = wanted ? visible.length : file.rows.length;
  find("#modules thead").replaceChildren(headings());
  const focused = find(".modules").contains(document.activeElement)
    ? Number(document.activeElement.closest("tr").dataset.index) : null;
  const made = visible.slice(0, modulesShown).map(row => rowOf(row, wanted));
  find(".modules").replaceChildren(...made);
  const again = made.find(row => Number(row.dataset.index) === focused);
  (again ?? made[0])?.setAttribute("tabindex", "0");
  again?.focus();
  find(".found").textContent = `${count.format(total)} ${total === 1 ? "module" : "modules"}`;
  find(".more-modules").hidden = visible.length <= modulesShown;
}

find(".modules").onkeydown = event => {
  const here = document.activeElement.closest("tr");
  if (!here) return;
  const row = file.rows[Number(here.dataset.index)];
  const goTo = next => {
    if (!next) return;
    here.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  const of = index => find(`.modules tr[data-index='${index}']`);
  const fold = open => { row.open = open; showModules(); };
  const keys = {
    ArrowDown: () => goTo(here.nextElementSibling),
    ArrowUp: () => goTo(here.previousElementSibling),
    ArrowRight: () => row.children.length && !row.open ? fold(true) : goTo(of(row.children[0])),
    ArrowLeft: () => row.children.length && row.open ? fold(false) : goTo(of(row.parent)),
    Home: () => goTo(here.parentElement.firstElementChild),
    End: () => goTo(here.parentElement.lastElementChild),
    Enter: () => choose(row.index, "table"),
    " ": () => choose(row.index, "table"),
  };
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  }
};
