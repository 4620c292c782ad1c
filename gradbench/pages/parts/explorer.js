// The explorer: filters, the heat map, two curves and the table of cells, all of the same rows.

const PAGE_ROWS = 50, PANELS = 6;

class Explorer {
  constructor(tables, state, changed) {
    Object.assign(this, { ...tables, state, changed });
    const { cells, meta } = this;
    this.axes = meta.coordinates.filter((c) => this.words(c.name).length > 1);
    this.axisOf = Object.fromEntries(meta.coordinates.map((c) => [c.name, c]));
    this.fields = ["system_label", "estimator_label", "status", "cause", ...this.axes.map((c) => c.name)];
    this.looks = looks([...cells.columns.estimator_label.words].sort(), meta.estimators);
    this.settled = new Uint8Array(cells.rows);
    const status = cells.columns.status;
    for (let i = 0; i < cells.rows; i++) this.settled[i] = status.at(i) === "settled";
    this.metricNames = Object.keys(meta.metrics).filter((n) => meta.metrics[n].better || ["residual", "rho", "antisymmetry", "drift", "curvature", "gamma", "work"].includes(n)).filter((n) => this.any(n));
    this.build();
  }

  any(name) {
    return this.cells.columns[name]?.numbers.some((v) => !Number.isNaN(v));
  }

  static words(cells, name) {
    const { words } = cells.columns[name];
    return typeof words[0] === "number" ? [...words].sort((a, b) => a - b) : [...words];
  }

  words(name) {
    return Explorer.words(this.cells, name);
  }

  letter(name) {
    return this.axisOf[name]?.letter ?? { system_label: "system", estimator_label: "estimator" }[name] ?? name;
  }

  // the rows that the filters leave
  select() {
    const { cells, state } = this;
    const keep = new Uint8Array(cells.rows).fill(1);
    for (const [name, chosen] of state.filters) {
      const column = cells.columns[name], codes = column.codes;
      const wanted = Uint8Array.from([0, ...column.words.map((w) => (chosen.has(w) ? 1 : 0))]);
      for (let i = 0; i < cells.rows; i++) keep[i] &= wanted[codes[i]];
    }
    this.keep = keep;
    const rows = [];
    for (let i = 0; i < cells.rows; i++) if (keep[i]) rows.push(i);
    return rows;
  }

  build() {
    const { state, meta } = this;
    const place = $(".filters");
    this.menus = {};
    for (const name of this.fields) {
      const words = this.words(name);
      if (words.length < 2 && !["system_label", "estimator_label"].includes(name)) continue;
      const codes = this.cells.columns[name].codes, counts = new Map();
      const list = this.cells.columns[name].words;
      for (const code of codes) if (code) counts.set(list[code - 1], (counts.get(list[code - 1]) ?? 0) + 1);
      const summary = make("summary");
      const boxes = words.map((word) => {
        const box = make("input", { type: "checkbox", onchange: () => this.filter(name) });
        return { word, box, label: make("label", {}, box, plain(word), make("span", {}, counts.get(word).toLocaleString("en-US"))) };
      });
      const clear = make("button", { type: "button", class: "quiet all", onclick: () => { state.set(name, new Set()); this.changed(); } }, "All");
      const menu = make("details", { class: "filter" }, summary, make("div", { class: "menu" }, clear, ...boxes.map((b) => b.label)));
      menu.addEventListener("toggle", () => menu.open && Object.values(this.menus).forEach((m) => m.menu !== menu && (m.menu.open = false)));
      menu.addEventListener("keydown", (e) => { if (e.key === "Escape" && menu.open) { e.stopPropagation(); menu.open = false; summary.focus(); } });
      this.menus[name] = { menu, summary, boxes };
      place.append(menu);
    }
    document.addEventListener("click", (e) => Object.values(this.menus).forEach(({ menu }) => !menu.contains(e.target) && (menu.open = false)));
    $("#reset").addEventListener("click", () => { state.reset(); this.changed(); });
    $("#every").addEventListener("click", () => { state.reset(); state.filters.clear(); this.changed(); });
    $("#rows").addEventListener("change", (e) => { if (e.target.checked) state.options.set("rows", "all"); else state.options.delete("rows"); state.page = 0; this.changed(); });
    $("#together").addEventListener("change", (e) => { if (e.target.checked) state.options.set("seeds", "together"); else state.options.delete("seeds"); state.page = 0; this.changed(); });
    $("#link").addEventListener("click", (e) => copied(location.href, e.currentTarget));
    const numeric = this.axes.filter((c) => typeof this.words(c.name)[0] === "number");
    const names = numeric.map((c) => c.name), brought = meta.brought.filter((n) => names.includes(n));
    const others = names.filter((n) => !brought.includes(n));
    this.numeric = names;
    const [x, y] = [...brought, ...others];
    const pick = (id, label, allowed, fallback, words) => {
      const select = make("select", { onchange: (e) => { state.options.set(id, e.target.value); this.changed(); } }, ...allowed.map((n) => make("option", { value: n }, words(n))));
      return { id, select, allowed, fallback, label: make("label", {}, label, select) };
    };
    const metricWords = (n) => n;
    this.picks = names.length ? [
      pick("metric", "number", this.metricNames, "cosine_min", metricWords),
      pick("over", "of the cells in a field", ["worst", "median"], "worst", (n) => n),
      pick("x", "across", names, x, (n) => this.letter(n)),
      pick("y", "down", ["", ...names], y ?? "", (n) => (n ? this.letter(n) : "nothing")),
      pick("c0", "against", names, x, (n) => this.letter(n)),
      pick("c1", "against", names, y ?? x, (n) => this.letter(n)),
    ] : [];
    $("#map .controls").append(...this.picks.slice(0, 4).map((p) => p.label));
    this.picks.slice(4).forEach((p, i) => $(`#curve-${i} .controls`).append(p.label));
    for (const id of ["#map", "#curve-0", "#curve-1"]) $(id).hidden = !names.length;
    document.querySelectorAll("[data-csv]").forEach((b) => b.addEventListener("click", () => this.download(b.dataset.csv)));
    new ResizeObserver(() => { if (innerWidth !== this.width && this.rows) { this.width = innerWidth; this.curves(); } }).observe(document.body);
  }

  filter(name) {
    const { boxes } = this.menus[name];
    this.state.set(name, new Set(boxes.filter((b) => b.box.checked).map((b) => b.word)));
    this.changed();
  }

  option(id) {
    const p = this.picks.find((q) => q.id === id);
    return p ? this.state.option(id, p.allowed, p.fallback) : null;
  }

  show() {
    const { state } = this;
    for (const [name, { menu, summary, boxes }] of Object.entries(this.menus)) {
      const chosen = state.filters.get(name);
      for (const b of boxes) b.box.checked = !chosen || chosen.has(b.word);
      if (!chosen) for (const b of boxes) b.box.checked = false;
      const words = chosen ? [...chosen].map(plain) : [];
      summary.textContent = `${this.letter(name)}: ${!chosen ? "all" : words.length <= 2 ? words.join(", ") : `${words.length} of ${boxes.length}`}`;
      menu.classList.toggle("on", !!chosen);
    }
    for (const p of this.picks) p.select.value = this.option(p.id);
    this.rows = this.select();
    const settled = this.rows.reduce((n, i) => n + this.settled[i], 0);
    $("#count").textContent = `${this.rows.length.toLocaleString("en-US")} of ${this.cells.rows.toLocaleString("en-US")} cells, ${settled.toLocaleString("en-US")} settled`;
    $("#rows").checked = this.everyRow();
    $("#together").checked = this.together();
    if (this.picks.length) { this.heat(); this.curves(); }
    this.table();
  }

  everyRow() {
    return this.state.option("rows", ["all"], "") === "all";
  }

  together() {
    return this.state.option("seeds", ["together"], "") === "together";
  }

  // whether a row is in the table of cells: one that is not settled, and one of a control, has to be asked for
  listed(i) {
    const { state, cells } = this;
    if (!this.keep[i]) return false;
    if (this.everyRow()) return true;
    return (state.filters.has("status") || this.settled[i]) && (state.filters.has("estimator_label") || cells.columns.role.at(i) !== "control");
  }

  worst(name) {
    return this.meta.metrics[name].better === "down" || name === "work" ? (a, b) => Math.max(a, b) : (a, b) => Math.min(a, b);
  }

  // the rows by (system, estimator), in the order of the tables
  groups() {
    const { cells, meta } = this, groups = new Map();
    for (const i of this.rows) {
      const key = cells.columns.system_label.codes[i] * 65536 + cells.columns.estimator_label.codes[i];
      if (!groups.has(key)) groups.set(key, { system: cells.columns.system_label.at(i), rule: cells.columns.estimator_label.at(i), rows: [] });
      groups.get(key).rows.push(i);
    }
    const rank = new Map(meta.matrix.data.map((row, k) => [`${row[0]}\n${row[1]}`, k]));
    const place = (g) => rank.get(`${g.system}\n${g.rule}`) ?? Infinity;
    return [...groups.values()].sort((a, b) => place(a) - place(b) || 0);
  }

  heat() {
    const [metric, over, x, y] = ["metric", "over", "x", "y"].map((id) => this.option(id));
    const numbers = this.cells.columns[metric].numbers, reduce = this.worst(metric);
    const down = y && y !== x ? y : "";
    const groups = this.groups().filter((g) => g.rows.some((i) => this.cells.columns[x].codes[i]));
    const shown = groups.slice(0, PANELS);
    const role = (label) => this.meta.estimators[label].name;
    this.mapRows = [];
    const all = [];
    const { status } = this.cells.columns, across = this.cells.columns[x], downs = down ? this.cells.columns[down] : null;
    for (const g of shown) {
      const fields = new Map();
      g.fields = new Map();
      for (const i of g.rows) {
        const p = across.codes[i], q = downs ? downs.codes[i] : 1;
        if (!p || !q) continue;
        const k = p * 65536 + q;
        let f = fields.get(k);
        if (!f) {
          f = { a: across.words[p - 1], b: downs ? downs.words[q - 1] : "", values: [], worst: null, n: 0, statuses: new Map() };
          fields.set(k, f);
          g.fields.set(`${f.a}|${f.b}`, f);
        }
        f.n++;
        const s = status.codes[i];
        f.statuses.set(s, (f.statuses.get(s) ?? 0) + 1);
        if (this.settled[i] && !Number.isNaN(numbers[i])) {
          f.values.push(numbers[i]);
          if (f.worst == null || reduce(numbers[i], numbers[f.worst]) === numbers[i]) f.worst = i;
        }
      }
      for (const f of g.fields.values()) {
        f.statuses = new Map([...f.statuses].map(([code, n]) => [status.words[code - 1], n]));
        f.values = Float64Array.from(f.values).sort();
        const n = f.values.length;
        f.median = n ? (f.values[(n - 1) >> 1] + f.values[n >> 1]) / 2 : NaN;
        f.value = !n ? NaN : over === "median" ? f.median : numbers[f.worst];
        if (n) all.push(f.value);
        this.mapRows.push([g.system, g.rule, f.a, down ? f.b : "", f.n, n, n ? f.value : "", f.worst == null ? "" : this.cells.columns.cell.at(f.worst)]);
      }
    }
    const scale = shades(metric, this.meta.metrics[metric], all, this.meta.faithful);
    const title = `${over === "worst" ? "Worst" : "Median"} ${metric} over ${this.letter(x)}${down ? ` and ${this.letter(down)}` : ""}`;
    $("#map-title").textContent = title;
    const over_ = this.pooled(shown.flatMap((g) => g.rows), "system_label", "estimator_label", x, down);
    $("#map .pooled").textContent = over_ ? `Every field is the ${over} of its settled cells, which differ in ${over_}; the small number counts them.` : "";
    const panels = shown.map((g) => (all.length && [...g.fields.values()].some((f) => f.values.length) ? this.panel(g, x, down, metric, scale) : make("div", { class: "panel" }, make("h4", {}, `${g.rule} on ${g.system}`), this.silence(g.rows, metric))));
    if (!panels.length) panels.push(make("p", { class: "note" }, `No cell here has a ${this.letter(x)}.`));
    if (groups.length > PANELS) panels.push(make("p", { class: "note" }, `${groups.length - PANELS} more pairs of a system and a rule match: filter for them.`));
    $("#map .panels").replaceChildren(...panels);
    $("#map .legend").replaceChildren(...(all.length ? scale.words : []).map((w, i) => make("span", {}, make("i", { class: `${scale.kind}${i}` }), w)), make("span", {}, make("i", { class: "hollow" }), "no settled cell"));
  }

  // the coordinates in which rows differ, apart from those that are told: "s, damp and seed"
  pooled(rows, ...told) {
    const names = ["system_label", ...this.axes.map((c) => c.name)].filter((name) => !told.includes(name) && this.differs(name, rows));
    return names.map((n) => this.letter(n)).join(", ").replace(/, ([^,]*)$/, " and $1");
  }

  // whether settled rows have more than one value of a coordinate
  differs(name, rows) {
    const { codes } = this.cells.columns[name], { settled } = this;
    let first = 0;
    for (const i of rows) {
      if (!settled[i] || !codes[i] || codes[i] === first) continue;
      if (first) return true;
      first = codes[i];
    }
    return false;
  }

  // what stands where there is nothing to draw: the statuses, and what may be done
  silence(rows, metric) {
    const { status } = this.cells.columns, counts = new Map();
    for (const i of rows) counts.set(status.at(i), (counts.get(status.at(i)) ?? 0) + 1);
    if (!rows.length) return make("p", { class: "note" }, "The filters leave no cell.");
    if (counts.has("settled")) return make("p", { class: "note" }, `No settled cell here has a ${metric}.`);
    const told = [...counts].sort((a, b) => b[1] - a[1]);
    const advice = told.filter(([s]) => this.meta.advice[s]).map(([s]) => `${upper(s)}: ${this.meta.advice[s]}.`);
    return make("p", { class: "note" }, `No cell here is settled: ${told.map(([s, n]) => `${n.toLocaleString("en-US")} ${s}`).join(", ")}. ${advice.join(" ")}`);
  }

  panel(g, x, y, metric, scale) {
    const sorted = (values) => [...new Set(values)].sort((p, q) => p - q);
    const fields = [...g.fields.values()];
    const across = sorted(fields.map((f) => f.a)), downs = y ? sorted(fields.map((f) => f.b)).reverse() : [""];
    const head = make("tr", {}, y ? make("th", { scope: "col" }, `${this.letter(y)} \\ ${this.letter(x)}`) : make("th", { scope: "col" }, this.letter(x)), ...across.map((a) => make("th", { scope: "col" }, plain(a))));
    const body = downs.map((b) => make("tr", {}, make("th", { scope: "row" }, y ? plain(b) : metric), ...across.map((a) => this.tile(g, g.fields.get(`${a}|${b}`), x, y, metric, scale))));
    return make("div", { class: "panel" }, make("h4", {}, `${g.rule} on ${g.system}`), make("table", { class: "heat" }, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  tile(g, f, x, y, metric, { shade, kind }) {
    if (!f) return make("td");
    const n = f.values.length;
    const lines = [`${g.rule} on ${g.system}`, [`${this.letter(x)} = ${plain(f.a)}`, y && `${this.letter(y)} = ${plain(f.b)}`].filter(Boolean).join(", ")];
    if (n) lines.push(`${metric}: worst ${inText(metric, this.cells.columns[metric].numbers[f.worst])}, median ${inText(metric, f.median)}`);
    lines.push(`${f.n} ${f.n === 1 ? "cell" : "cells"}: ${[...f.statuses].map(([s, k]) => `${k} ${s}`).join(", ")}`);
    const wanted = { system_label: g.system, estimator_label: g.rule, [x]: f.a, ...(y ? { [y]: f.b } : {}) };
    const chosen = Object.entries(wanted).every(([k, v]) => { const s = this.state.filters.get(k); return s?.size === 1 && s.has(v); });
    const text = n ? inTile(metric, f.value) : [...f.statuses.keys()][0], number = many(n || f.n);
    const tile = make("button", { type: "button", class: `tile ${n ? `${kind}${shade(f.value)}` : "hollow"}${chosen ? " chosen" : ""}`, "aria-label": `${text} ${number}; ${lines.join("; ")}` }, text, " ", make("small", {}, number));
    tile.addEventListener("click", () => {
      for (const [k, v] of Object.entries(wanted)) {
        if (chosen && (k === x || k === y)) this.state.set(k, new Set());
        else if (!chosen) this.state.set(k, new Set([v]));
      }
      this.changed();
    });
    tips(tile, () => lines.join("\n"));
    return make("td", {}, tile);
  }

  curves() {
    [0, 1].forEach((i) => this.curve(i));
  }

  curve(number) {
    const figure = $(`#curve-${number}`), name = this.option(`c${number}`), metric = this.option("metric");
    const { letter, words, unit, log } = this.axisOf[name];
    const told = this.meta.metrics[metric], numbers = this.cells.columns[metric].numbers, column = this.cells.columns[name];
    const rules = this.cells.columns.estimator_label, by = new Map();
    let left = 0;
    for (const i of this.rows) {
      if (!column.codes[i]) continue;
      if (!this.settled[i] || Number.isNaN(numbers[i])) { left++; continue; }
      const k = rules.codes[i] * 65536 + column.codes[i];
      if (by.has(k)) by.get(k).push(numbers[i]);
      else by.set(k, [numbers[i]]);
    }
    const byRule = new Map();
    for (const [k, values] of by) {
      const label = rules.words[Math.floor(k / 65536) - 1];
      if (!byRule.has(label)) byRule.set(label, []);
      byRule.get(label).push([column.words[(k % 65536) - 1], values]);
    }
    const lines = [...byRule].map(([label, points]) => ({
      label, look: this.looks[label],
      points: points.sort((a, b) => a[0] - b[0]).map(([x, given]) => {
        const v = Float64Array.from(given).sort();
        return { x, n: v.length, low: v[0], middle: (v[(v.length - 1) >> 1] + v[v.length >> 1]) / 2, high: v[v.length - 1] };
      }),
    })).sort((a, b) => a.label.localeCompare(b.label));
    const rows = lines.flatMap((l) => l.points.map((p) => [l.label, p.x, p.n, p.low, p.middle, p.high]));
    this[`curveRows${number}`] = [["estimator", name, "cells", `${metric}_min`, `${metric}_median`, `${metric}_max`], rows];
    $("h3", figure).textContent = `${metric} against ${letter}`;
    $(".keys", figure).replaceChildren(...lines.map((l) => make("span", {}, key(l.look), l.label)), make("span", { class: "dim" }, lines.length ? this.caption(lines, name, left) : ""));
    const place = $(".plot", figure);
    this.drawn = this.drawn ?? [];
    this.drawn[number]?.destroy();
    this.drawn[number] = null;
    place.replaceChildren();
    // the table of a curve is made when it is opened: most filters are set while it is closed
    const details = $("details", figure);
    const fill = () => details.open && $(".scroll", details).replaceChildren(simpleTable(this[`curveRows${number}`][0], rows.map((r) => [r[0], plain(r[1]), plain(r[2]), ...r.slice(3).map((v) => inText(metric, v))])));
    details.ontoggle = fill;
    fill();
    const xs = [...new Set(lines.flatMap((l) => l.points.map((p) => p.x)))].sort((a, b) => a - b);
    place.classList.toggle("empty", !xs.length);
    if (!xs.length) return place.append(this.silence(this.rows, metric));
    const onPoint = (j, u) => {
      if (j == null) return hideTip();
      const text = [`${letter} = ${plain(xs[j])}`, ...lines.flatMap((l) => { const p = l.points.find((q) => q.x === xs[j]); return p ? [`${l.label}: ${inText(metric, p.middle)} (${inText(metric, p.low)} to ${inText(metric, p.high)}, ${p.n} cells)`] : []; })].join("\n");
      const box = u.over.getBoundingClientRect();
      showTip(text, box.left + u.valToPos(xs[j], "x"), box.top + 10);
    };
    const yLog = told.log && lines.some((l) => l.points.some((p) => p.middle > 0));
    this.drawn[number] = curve(place, lines, { xs, xLog: log && xs[0] > 0, yLog, inNines: isCosine(metric), xName: `${words} ${letter}${unit ? ` (${unit})` : ""}`, yName: metric, text: (v) => (isCosine(metric) ? minus(String(Number(v.toPrecision(5)))) : short(v, 3)), onPoint });
    place.onmouseleave = hideTip;
  }

  // what a point of a curve stands for
  caption(lines, name, left) {
    const counts = lines.flatMap((l) => l.points.map((p) => p.n)), [few, most] = [Math.min(...counts), Math.max(...counts)];
    const over = this.pooled(this.rows, "estimator_label", name);
    return `Median, and from smallest to largest, of ${few === most ? many(few) : `${few.toLocaleString("en-US")} to ${many(most)}`} a point${over ? `, which differ in ${over}: filter to hold one fixed` : ""}.${left ? ` ${left.toLocaleString("en-US")} that are not settled, or have no such number, are left out.` : ""}`;
  }

  // a number for every cell that it has in common with those that differ from it in the seed alone
  points() {
    if (this.pointOf) return this.pointOf;
    const names = ["system_label", "estimator_label", ...this.axes.map((c) => c.name).filter((n) => n !== "seed")];
    const codes = names.map((n) => this.cells.columns[n].codes), known = new Map();
    this.pointOf = Uint32Array.from({ length: this.cells.rows }, (_, i) => {
      const key = codes.map((c) => c[i]).join();
      if (!known.has(key)) known.set(key, known.size);
      return known.get(key);
    });
    return this.pointOf;
  }

  // what the table has a row for: cells, or points with the worst number of their seeds, in the order that is asked for
  entries(order) {
    const { columns } = this.cells;
    if (!this.together()) return order.map((i) => ({ i, at: (name) => columns[name].at(i) }));
    const of = this.points(), groups = new Map(), asked = new Map();
    for (const i of this.rows) asked.set(of[i], (asked.get(of[i]) ?? 0) + 1);
    for (const i of order) groups.has(of[i]) ? groups.get(of[i]).push(i) : groups.set(of[i], [i]);
    const made = [...groups].map(([point, rows]) => {
      // the row whose number is the worst; one without a number is worse than all
      const worst = (name) => { const v = columns[name].numbers, rank = (i) => (Number.isNaN(v[i]) ? Infinity : name === "error" ? v[i] : -v[i]); return rows.reduce((a, b) => (rank(b) > rank(a) ? b : a)); };
      const rowOf = { cosine_min: worst("cosine_min"), error: worst("error"), cosine: worst("cosine") };
      Object.assign(rowOf, { worst: rowOf.cosine_min, error_of: rowOf.error });
      const seeds = `${rows.filter((i) => this.settled[i]).length} of ${asked.get(point)}`;
      return { i: rowOf.error, at: (name) => (name === "seeds" ? seeds : columns[name].at(rowOf[name] ?? rowOf.error)) };
    });
    const name = this.state.sort.replace(/^-/, ""), sign = this.state.sort.startsWith("-") ? -1 : 1;
    if (!columns[name]?.numbers) return made;
    const missing = (v) => v == null || Number.isNaN(v);
    return made.sort((a, b) => { const p = a.at(name), q = b.at(name); return missing(p) ? (missing(q) ? 0 : 1) : missing(q) ? -1 : sign * (p - q); });
  }

  columns() {
    const together = this.together();
    const varies = (name) => { const { codes } = this.cells.columns[name]; return this.order.some((i) => codes[i] !== codes[this.order[0]]); };
    const varied = this.axes.map((c) => c.name).filter((name) => varies(name) && !(together && name === "seed"));
    return [
      { name: "cell", words: together ? "worst seed" : "cell" }, ...(together ? [{ name: "seeds", words: "seeds settled", fixed: true }] : []), ...(varies("status") ? [{ name: "status", words: "status" }] : []), ...(varies("system_label") ? [{ name: "system_label", words: "system" }] : []), { name: "estimator_label", words: "estimator" },
      { name: "cosine_min", words: "cosine_min", number: true }, { name: "worst", words: "lowest in" }, { name: "error", words: "error", number: true }, { name: "error_of", words: "largest in" },
      ...varied.map((name) => ({ name, words: this.letter(name), number: true })),
      { name: "cause", words: "cause" }, { name: "work", words: "evaluations", number: true }, { name: "cosine", words: "global cosine", number: true },
    ];
  }

  // the rows in the order that is asked for; the order of all rows is kept
  sorted() {
    this.orders = this.orders ?? new Map();
    if (!this.orders.has(this.state.sort)) this.orders.set(this.state.sort, this.ordered(Array.from({ length: this.cells.rows }, (_, i) => i)));
    return this.orders.get(this.state.sort).filter((i) => this.listed(i));
  }

  ordered(rows) {
    const down = this.state.sort.startsWith("-"), name = this.state.sort.replace(/^-/, "");
    const column = this.cells.columns[name];
    if (!column) return rows;
    if (column.kind === "digits" || (column.kind === "words" && typeof column.words[0] === "number")) {
      const v = column.numbers, sign = down ? -1 : 1;
      return rows.toSorted((a, b) => { const p = v[a], q = v[b]; return Number.isNaN(p) ? (Number.isNaN(q) ? a - b : 1) : Number.isNaN(q) ? -1 : sign * (p - q) || a - b; });
    }
    const text = rows.map((i) => [i, column.at(i)]);
    text.sort(([a, p], [b, q]) => (p == null ? (q == null ? a - b : 1) : q == null ? -1 : (down ? -1 : 1) * (p < q ? -1 : p > q ? 1 : 0) || a - b));
    return text.map(([i]) => i);
  }

  table() {
    const { state } = this, entries = this.entries((this.order = this.sorted())), columns = this.columns();
    const pages = Math.max(1, Math.ceil(entries.length / PAGE_ROWS));
    state.page = Math.min(state.page, pages - 1);
    const sortName = state.sort.replace(/^-/, ""), down = state.sort.startsWith("-");
    const head = make("tr", {}, ...columns.map((c) => {
      const now = c.name === sortName;
      const flip = () => { state.sort = now && !down ? `-${c.name}` : c.name; state.page = 0; this.changed(); };
      return make("th", { scope: "col", class: `${c.number ? "n" : ""}${["cause", "worst", "error_of", "cosine", "work"].includes(c.name) ? " wideonly" : ""}`, "aria-sort": now ? (down ? "descending" : "ascending") : "none" }, c.fixed ? c.words : make("button", { type: "button", onclick: flip }, `${c.words}${now ? (down ? " ↓" : " ↑") : ""}`));
    }));
    const from = state.page * PAGE_ROWS;
    const body = entries.slice(from, from + PAGE_ROWS).map(({ i, at }) => {
      const id = this.cells.columns.cell.at(i);
      const row = make("tr", { class: `${id === this.state.cell ? "chosen" : ""}${this.settled[i] ? "" : " open"}` }, ...columns.map((c) => {
        const v = at(c.name);
        const cls = `${c.number ? "n" : ""}${["cause", "worst", "error_of", "cosine", "work"].includes(c.name) ? " wideonly" : ""}`;
        if (c.name === "cell") return make("td", {}, make("a", { href: "#", "data-cell": id, onclick: (e) => { e.preventDefault(); e.stopPropagation(); this.open(id); } }, id.slice(0, 8)));
        if (c.name === "status") return make("td", { class: "what" }, make("i", { class: `dot status ${v}`, "aria-hidden": "true" }), v);
        const text = isCosine(c.name) ? cosine(v) : c.name === "error" ? percent(v) : typeof v === "number" ? (this.axisOf[c.name] ? plain(v) : short(v)) : v ?? "";
        return make("td", { class: cls }, text === "–" && !c.number ? "" : text);
      }));
      row.addEventListener("click", () => this.open(id));
      return row;
    });
    $("#cells").replaceChildren(make("table", { class: "cells" }, make("thead", {}, head), make("tbody", {}, ...body)));
    const turn = (to) => { state.page = to; this.changed(); $("#cells").scrollIntoView({ block: "nearest" }); };
    const last = Math.min(from + PAGE_ROWS, entries.length);
    $(".pager").replaceChildren(...[
      make("button", { type: "button", class: "quiet", disabled: state.page === 0, onclick: () => turn(state.page - 1) }, "Previous"),
      make("span", {}, entries.length ? `${(from + 1).toLocaleString("en-US")} to ${last.toLocaleString("en-US")} of ${entries.length.toLocaleString("en-US")}` : "no cell"),
      this.order.length < this.rows.length ? make("span", { class: "dim" }, `${(this.rows.length - this.order.length).toLocaleString("en-US")} that are not settled or of a control are left out`) : null,
      make("button", { type: "button", class: "quiet", disabled: state.page >= pages - 1, onclick: () => turn(state.page + 1) }, "Next"),
    ].filter(Boolean));
  }

  open(id) {
    this.state.cell = id;
    this.changed();
  }

  download(what) {
    const name = `${this.meta.suite}-${what}.csv`.replace(/[^\w.-]+/g, "_");
    if (what === "matrix") return save(name, csv(this.meta.matrix.columns, this.meta.matrix.data));
    if (what === "map") return save(name, csv(["system", "estimator", this.option("x"), this.option("y") || "", "cells", "settled", this.option("metric"), "worst_cell"], this.mapRows));
    if (what.startsWith("curve")) return save(name, csv(...this[`curveRows${what.at(-1)}`]));
    const names = this.cells.names;
    return save(name, csv(names, this.order.map((i) => names.map((n) => this.cells.columns[n].at(i)))));
  }
}

const many = (n) => `${n.toLocaleString("en-US")} ${n === 1 ? "cell" : "cells"}`;
const percent = (v) => (v == null || Number.isNaN(v) ? "–" : !Number.isFinite(v) ? "not finite" : v > 0 && v < 1e-5 ? "<0.001 %" : `${100 * v >= 1000 ? Math.round(100 * v).toLocaleString("en-US") : minus(String(Number((100 * v).toPrecision(3))))} %`);

function simpleTable(head, rows) {
  return make("table", {}, make("thead", {}, make("tr", {}, ...head.map((h, i) => make("th", { scope: "col", class: i ? "n" : "" }, h)))), make("tbody", {}, ...rows.map((r) => make("tr", {}, ...r.map((v, i) => make("td", { class: i ? "n" : "" }, v))))));
}

function showTip(text, x, y) {
  const tip = $("#tip");
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 12, document.documentElement.clientWidth - width - 6))}px`;
  tip.style.top = `${Math.max(6, y - height - 8 < 6 ? y + 18 : y - height - 8)}px`;
}
const hideTip = () => { $("#tip").hidden = true; };
function tips(element, text) {
  const here = () => { const box = element.getBoundingClientRect(); showTip(text(), box.left, box.top); };
  element.addEventListener("mouseenter", here);
  element.addEventListener("focus", here);
  element.addEventListener("mouseleave", hideTip);
  element.addEventListener("blur", hideTip);
}
