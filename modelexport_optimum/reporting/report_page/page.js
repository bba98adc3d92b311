"use strict";
const SHOWN = 200; // rows of a table that are made at once: a page with 100,000 would crawl
const UNFOLDED = 40; // modules that are shown at first, by whole levels

const find = name => document.querySelector(name);
const { sides, classes, files } = JSON.parse(find("#head").textContent);
const merged = new Map(); // the tree of each file that was shown
let file = null; // the one that is shown
let measure = null; // what its chart shows
let at = null; // row of the module that was chosen
let listed = 0; // export whose nodes are listed
let modulesShown = SHOWN;
let nodesShown = SHOWN;

// One tree of the modules of both exports; what one of them lacks stands behind what it has.
function fileAt(number) {
  if (merged.has(number)) return merged.get(number);
  const parts = sides.map((_, side) => {
    const data = document.getElementById(`part-${number}-${side}`);
    return data && JSON.parse(data.textContent);
  });
  const known = new Map();
  parts.forEach((part, side) => {
    if (!part) return;
    const { path, name, type, depth } = part.modules;
    const around = [];
    path.forEach((one, index) => {
      if (!known.has(one)) {
        const made = { path: one, name: name[index], depth: depth[index], types: [], at: [], inside: [] };
        known.set(one, made);
        if (depth[index]) around[depth[index] - 1].inside.push(made);
      }
      const row = known.get(one);
      row.types[side] = type[index];
      row.at[side] = index;
      around[depth[index]] = row;
    });
  });
  const rows = [];
  const add = (row, parent) => {
    row.index = rows.push(row) - 1;
    row.parent = parent;
    row.children = row.inside.map(inner => add(inner, row.index));
    row.end = rows.length;
    return row.index;
  };
  add(known.get(""), null);
  const depths = rows.map(row => row.depth).sort((a, b) => a - b);
  const deep = depths[UNFOLDED] ?? Infinity;
  rows.forEach(row => { row.open = row.depth < Math.max(1, deep - 1); });
  const measures = [];
  for (const part of parts) {
    for (const one of part?.measures ?? []) {
      if (!measures.some(other => other.key === one.key)) measures.push(one);
    }
  }
  const made = { number, parts, rows, measures, sizes: new Map() };
  merged.set(number, made);
  return made;
}

const measureOf = (side, key) => file.parts[side]?.measures.find(one => one.key === key);
const valueOf = (row, side, key) => {
  const found = measureOf(side, key);
  return found && row.at[side] !== undefined ? found.total[row.at[side]] : null;
};
const wholeOf = (side, key) => measureOf(side, key)?.whole ?? 0;
const has = side => Boolean(file.parts[side]);
const both = () => sides.length > 1;

// The exports that have the measure.
const measured = () => sides.map((_, side) => side).filter(side => measureOf(side, measure.key));

// What a measure that does not add up is drawn by: the number of operators.
const drawnBy = one => one.additive ? one : file.measures.find(other => other.key === "operators");

function sizes(side) {
  const key = `${side} ${measure.key}`;
  if (!file.sizes.has(key)) {
    const found = measureOf(side, drawnBy(measure).key);
    file.sizes.set(key, found ? sizesOf(file.rows, side, found) : file.rows.map(() => 0));
  }
  return file.sizes.get(key);
}

// --- A choice of one of several, by click or by arrow keys ---------------------------------------

function choice(bar, role, state, names, chosen, choose) {
  const buttons = names.map((name, number) => {
    const button = element("button", name);
    button.type = "button";
    button.setAttribute("role", role);
    button.setAttribute(state, String(number === chosen));
    button.tabIndex = number === chosen ? 0 : -1;
    button.onclick = () => choose(number);
    return button;
  });
  bar.replaceChildren(...buttons);
  bar.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose((buttons.indexOf(document.activeElement) + step + names.length) % names.length);
    bar.querySelector("[tabindex='0']").focus();
  };
}

// --- The file, its facts and its chart -----------------------------------------------------------

function showFile(number) {
  const key = measure?.key;
  file = fileAt(number);
  measure = file.measures.find(one => one.key === key) ?? file.measures[0];
  at = null;
  listed = sides.findIndex((_, side) => has(side));
  modulesShown = nodesShown = SHOWN;
  choice(find("#files"), "tab", "aria-selected", files, number, showFile);
  find("#files").hidden = files.length < 2;
  find("#facts").replaceChildren(...sides.map((side, index) => facts(side, file.parts[index])));
  showMeasure();
  showNodes();
}

function facts(name, part) {
  const box = element("section", "", "facts");
  if (both()) box.append(element("h3", name));
  if (!part) {
    box.append(element("p", "This file is not in this export."));
    return box;
  }
  const list = element("dl");
  for (const [label, value] of part.facts) {
    const pair = element("div");
    pair.append(element("dt", label), element("dd", value));
    list.append(pair);
  }
  box.append(list, ...part.notes.map(note => element("p", note)));
  return box;
}

function showMeasure() {
  choice(
    find("#measures"), "radio", "aria-checked", file.measures.map(one => one.label),
    file.measures.indexOf(measure), number => { measure = file.measures[number]; showMeasure(); });
  find("#explained").textContent = measure.explained;
  showChart();
  showModules();
}

function showChart() {
  const top = at ?? beginning(file.rows, sizes(measured()[0]));
  const drawn = measured();
  const figures = drawn.map(side => {
    const figure = element("figure");
    if (both()) figure.append(element("figcaption", sides[side]));
    return figure;
  });
  find("#charts").replaceChildren(...figures);
  figures.forEach((figure, number) => drawSide(figure, drawn[number], top));
  showTrail(top);
  showLegend();
  tell(file.rows[top]);
}

function drawSide(figure, side, top) {
  drawChart(figure, {
    rows: file.rows, sizes: sizes(side), top, side, measure, classes,
    label: row => label(row, side),
    strength: row => strength(row, side),
    go: index => choose(index, "chart", figure),
    tell,
  });
}

// The modules around the one that the chart shows.
function showTrail(top) {
  const trail = [];
  for (let index = top; index !== null; index = file.rows[index].parent) trail.unshift(index);
  find("#trail").replaceChildren(...trail.map(index => {
    const row = file.rows[index];
    const item = element("span");
    const last = element(index === top ? "b" : "button", row.name);
    if (index === top) last.setAttribute("aria-current", "true");
    else last.onclick = () => choose(index, "trail");
    item.append(last);
    return item;
  }));
}

function label(row, side) {
  const value = valueOf(row, side, measure.key);
  if (value === null || value === undefined) return "";
  const whole = wholeOf(side, measure.key);
  return measure.additive ? percent(whole ? value / whole : 0) : written(value, measure.unit);
}

// Of a measure that does not add up, the colour's strength is the value: of a relative one on a
// scale of powers of ten, of any other as a part of the largest.
function power(value) {
  if (measure.unit === "relative") return value > 0 ? Math.max(0, Math.min(1, (Math.log10(value) + 8) / 8)) : 0;
  const largest = Math.max(...sides.flatMap((_, side) => measureOf(side, measure.key)?.total ?? []));
  return largest > 0 ? value / largest : 0;
}
function strength(row, side) {
  if (measure.additive) return "100%";
  return `${(8 + 92 * power(valueOf(row, side, measure.key) ?? 0)).toFixed(0)}%`;
}

// The line below the chart: all that is known of the module that is looked at.
function tell(row) {
  const line = find("#readout");
  if (typeof row === "string") {
    line.textContent = row;
    return;
  }
  const name = row.path || row.name;
  const type = classes[row.types.find(one => one !== undefined)];
  const said = [element("b", name), name === type ? "" : ` ${type}`]; // the root's name is its class
  sides.forEach((name, side) => {
    if (row.at[side] === undefined) return;
    const values = file.measures
      .map(one => [one.label, written(valueOf(row, side, one.key), one.unit)])
      .filter(([, value]) => value)
      .map(([title, value]) => `${title.toLowerCase()} ${value}`);
    said.push(` — ${both() ? `${name}: ` : ""}${values.join(", ")}`);
  });
  line.replaceChildren(...said);
}

function showLegend() {
  const seen = new Map();
  for (const cell of document.querySelectorAll(".cell[data-type]")) {
    seen.set(Number(cell.dataset.type), (seen.get(Number(cell.dataset.type)) ?? 0) + 1);
  }
  const buttons = [...seen.keys()].sort((a, b) => a - b).map(type => {
    const button = element("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const swatch = element("span", "", "swatch");
    colour(swatch, type);
    button.append(swatch, classes[type]);
    button.onclick = () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      buttons.forEach(other => other.setAttribute("aria-pressed", String(on && other === button)));
      find("#charts").classList.toggle("pointed", on);
      for (const cell of document.querySelectorAll(".cell")) {
        cell.classList.toggle("of-class", on && cell.dataset.type === String(type));
      }
    };
    return button;
  });
  find("#charts").classList.remove("pointed");
  find("#legend").replaceChildren(...buttons);
}
