// --- The list of nodes ---------------------------------------------------------------------------

function showNodes() {
  choice(find("#sides"), "radio", "aria-checked", sides, listed, number => {
    if (has(number)) { listed = number; nodesShown = SHOWN; showNodes(); }
  });
  find("#sides").hidden = !both();
  const part = file.parts[listed];
  const { nodes, lists, modules } = part;
  const wanted = find(".node").value.trim().toLowerCase();
  const chosen = at === null ? null : file.rows[at];
  const isInside = path => !chosen.path || path === chosen.path || path.startsWith(`${chosen.path}.`);
  const rows = [];
  let found = 0;
  for (let index = 0; index < nodes.name.length; index++) {
    const module = nodes.module[index];
    if (chosen && (module < 0 || !isInside(modules.path[module]))) continue;
    if (!wanted && rows.length >= nodesShown) { found += 1; continue; }
    const cells = [
      nodes.name[index] || "(no name)",
      lists.op_type[nodes.op_type[index]],
      module < 0 ? "(no module)" : modules.path[module] || "(root)",
      module < 0 ? "" : classes[modules.type[module]],
      lists.evidence[nodes.evidence[index]] || "not placed",
      lists.graph[nodes.graph[index]],
    ];
    if (wanted && !cells.join(" ").toLowerCase().includes(wanted)) continue;
    found += 1;
    if (found > nodesShown) continue;
    const row = element("tr");
    row.append(...cells.map(cell => element("td", cell)));
    rows.push(row);
  }
  find(".nodes").replaceChildren(...rows);
  const where = chosen ? ` in ${chosen.path || "the root"}` : "";
  find(".listed").textContent = `${count.format(rows.length)} of ${count.format(found)} nodes${where}`;
  find(".more").hidden = found <= nodesShown;
}

find(".known").oninput = () => { modulesShown = SHOWN; showModules(); };
find(".node").oninput = () => { nodesShown = SHOWN; showNodes(); };
find(".more-modules").onclick = () => { modulesShown += SHOWN; showModules(); };
find(".more").onclick = () => { nodesShown += SHOWN; showNodes(); };

const themes = ["system", "light", "dark"];
let theme = "system";
find("#theme").onclick = () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  find("#theme").textContent = `Theme: ${theme}`;
};

let width = 0;
new ResizeObserver(([entry]) => {
  if (width && Math.abs(entry.contentRect.width - width) > 1) showChart();
  width = entry.contentRect.width;
}).observe(find("#charts"));

showFile(0);
