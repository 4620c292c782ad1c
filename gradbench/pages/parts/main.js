// The page as a whole: theme, definitions, the address, and the start.

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = $("#theme");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
const tellTheme = () => { theme.setAttribute("aria-pressed", String(isDark())); theme.textContent = isDark() ? "Light" : "Dark"; };
let redraw = () => {};
theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; tellTheme(); redraw(); });
dark.addEventListener("change", () => { tellTheme(); redraw(); });
tellTheme();

// parts of the page are scrolled to: the address holds the view
for (const link of document.querySelectorAll("nav a, .skip")) {
  link.addEventListener("click", (e) => {
    e.preventDefault();
    const part = $(link.getAttribute("href"));
    part.scrollIntoView();
    part.focus({ preventScroll: true });
  });
}

const box = $("#definition");
let asked = null;
const dismiss = () => { if (!box.hidden) { box.hidden = true; asked?.focus(); } };
$("button", box).addEventListener("click", dismiss);
document.addEventListener("keydown", (e) => e.key === "Escape" && dismiss());
document.addEventListener("click", (e) => {
  const term = e.target.closest?.(".term");
  if (!term) return void (box.contains(e.target) || (box.hidden = true));
  const word = term.dataset.term;
  const entries = [...document.querySelectorAll(".defined dl > div")];
  const entry = entries.find((d) => $("dt", d).textContent === word);
  asked = term;
  $("strong", box).textContent = word;
  $("p", box).textContent = entry ? $("dd", entry).textContent : "";
  box.hidden = false;
  const at = term.getBoundingClientRect(), size = box.getBoundingClientRect();
  box.style.left = `${Math.max(16, Math.min(at.left, document.documentElement.clientWidth - size.width - 16))}px`;
  box.style.top = `${at.bottom + 8 + size.height > innerHeight ? Math.max(8, at.top - size.height - 8) : at.bottom + 8}px`;
  $("button", box).focus({ preventScroll: true });
});
addEventListener("scroll", () => { box.hidden = true; hideTip(); }, { passive: true });

async function begin() {
  const tables = await unpacked();
  const { meta, cells } = tables;
  const names = ["system_label", "estimator_label", "status", "cause", ...meta.coordinates.map((c) => c.name)];
  const fields = Object.fromEntries(names.map((n) => [n, Explorer.words(cells, n)]));
  const state = new State(fields, meta.first ? { system_label: [meta.first] } : {});
  let explorer, panel;
  const show = () => { explorer.show(); panel.show(state.cell); };
  // every view is a step that Back undoes
  const changed = () => { const to = state.write(); if (to !== location.hash) history.pushState(null, "", to); show(); };
  $("#app").hidden = false;
  $("#loading").hidden = true;
  explorer = new Explorer(tables, state, changed);
  panel = new CellPanel(tables, explorer);
  redraw = () => { COLOURS.clear(); if (explorer.picks.length) explorer.curves(); };
  const read = () => { state.read(location.hash); show(); };
  addEventListener("hashchange", read);
  document.addEventListener("click", (e) => {
    const link = e.target.closest?.(".to-cell");
    if (!link) return;
    e.preventDefault();
    explorer.open(link.getAttribute("href").replace("#cell=", ""));
  });
  for (const field of document.querySelectorAll(".opens")) {
    field.addEventListener("click", () => {
      const { system, rule, at } = field.dataset;
      state.reset();
      state.filters = new Map();
      for (const [name, value] of Object.entries({ system_label: system, estimator_label: rule, ...JSON.parse(at) })) {
        if (fields[name]?.includes(value)) state.set(name, new Set([value]));
      }
      hideTip();
      changed();
      $("#explorer").scrollIntoView();
      $("#explorer").focus({ preventScroll: true });
    });
  }
  // paper is light
  let before;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; document.documentElement.dataset.theme = "light"; redraw(); });
  addEventListener("afterprint", () => { if (before) document.documentElement.dataset.theme = before; else delete document.documentElement.dataset.theme; redraw(); });
  read();
  if (location.hash.includes("=")) $("#explorer").scrollIntoView({ behavior: "instant" }); // a link to a view shows the view
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => {
  $("#loading").textContent = `The tables of this page cannot be read: ${error.message}. Its browser may be too old: the page needs DecompressionStream.`;
  throw error;
});
