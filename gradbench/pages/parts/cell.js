// One cell: what it reads, its certificate, its parameters, what its error is made of, and how to measure it again.

class CellPanel {
  constructor(tables, explorer) {
    Object.assign(this, { ...tables, explorer });
    this.place = $("#cell");
    this.index = new Map();
    for (let i = 0; i < this.cells.rows; i++) this.index.set(this.cells.columns.cell.at(i), i);
    document.addEventListener("keydown", (e) => e.key === "Escape" && $("#definition").hidden && !this.place.hidden && this.close());
  }

  close() {
    this.explorer.state.cell = null;
    this.explorer.changed();
    this.from?.isConnected && this.from.focus();
  }

  find(id) {
    if (this.index.has(id)) return this.index.get(id);
    for (const [key, i] of this.index) if (key.startsWith(id)) return i;
    return null;
  }

  at(name, i) {
    return this.cells.columns[name]?.at(i) ?? null;
  }

  show(id) {
    const i = id ? this.find(id) : null;
    if (id === this.shown) return;
    this.shown = id;
    document.body.classList.toggle("with-cell", i != null);
    if (i == null) return void (this.place.hidden = true);
    if (this.place.hidden) this.from = document.activeElement;
    const title = make("h3", { id: "cell-title", tabindex: "-1" }, `${this.at("estimator_label", i)} on ${this.at("system_label", i)}`);
    const point = this.meta.coordinates.filter((c) => this.at(c.name, i) != null).map((c) => `${c.letter} = ${plain(this.at(c.name, i))}`).join(", ");
    const close = make("button", { type: "button", class: "quiet", onclick: () => this.close() }, "Close");
    this.place.replaceChildren(
      make("header", {}, make("div", {}, title, make("p", { class: "small" }, point)), close),
      ...this.said(i), ...this.replay(i), ...this.seeds(i), ...this.parameters(i), ...this.causes(i), ...this.numbers(i),
    );
    this.place.hidden = false;
    this.place.scrollTop = 0;
    title.focus({ preventScroll: true });
  }

  said(i) {
    const status = this.at("status", i), cause = this.at("cause", i), of = this.at("cause_of", i);
    const told = [make("p", { class: "verdict" }, make("i", { class: `dot status ${status}`, "aria-hidden": "true" }), make("b", {}, status), `: ${this.meta.statuses[status]}.${this.meta.advice[status] ? ` ${upper(this.meta.advice[status])}.` : ""}`)];
    const reason = this.at("reason", i);
    if (reason) told.push(make("p", { class: "small" }, reason));
    if (this.at("cosine_min", i) != null) {
      told.push(make("p", {}, `The global cosine is ${cosine(this.at("cosine", i))}; the smallest of a parameter is ${cosine(this.at("cosine_min", i))}${this.at("worst", i) ? ` (${this.at("worst", i)})` : ""}. The largest error is ${percent(this.at("error", i))}${this.at("error_of", i) ? ` (${this.at("error_of", i)})` : ""}.`));
      const c = this.at("cosine", i), ratio = this.at("norm_ratio", i);
      if (c > 0 && ratio > 0) told.push(make("p", { class: "small" }, `The whole gradient errs by ${percent(this.at("rel_error", i))}. Multiplied by ${short(c / ratio)}, the best factor, it would err by ${percent(Math.sqrt(1 - c * c))}.`));
    }
    if (cause) told.push(make("p", {}, make("b", {}, `Cause: ${cause}`), `${of ? ` of ${of}` : ""}. ${upper(this.meta.causes[cause] ?? "")}.`));
    else if (status === "settled") told.push(make("p", {}, `No cause is looked for: the error is at most ${percent(this.meta.faithful)}.`));
    return told;
  }

  command(text, what) {
    const button = make("button", { type: "button", class: "quiet copy", "aria-label": `Copy ${what}` }, "Copy");
    button.addEventListener("click", () => copied(text, button));
    return make("div", { class: "command" }, make("pre", {}, make("code", {}, text)), button);
  }

  replay(i) {
    if (["skipped", "error", "oom"].includes(this.at("status", i))) return [];
    const told = [make("h4", {}, "Measure it again, and say why"), this.command(`gradbench explain ${quoted(this.meta.name)} ${this.at("cell", i)}`, "the shell command")];
    const call = this.call(i);
    told.push(call ? this.command(call, "the lines of Python") : make("p", { class: "small" }, "It was made from functions of a caller, which no line of Python alone brings back: the command loads them where the run names their file."));
    told.push(make("p", { class: "small" }, "The command runs where results/ holds the run; the lines of Python need no run."));
    return told;
  }

  call(i) {
    const system = this.meta.systems[this.at("system_label", i)].call, rule = this.meta.estimators[this.at("estimator_label", i)].call;
    if (!system || !rule) return null;
    const values = this.meta.coordinates.filter((c) => this.at(c.name, i) != null).map((c) => `${c.name}=${JSON.stringify(this.at(c.name, i))}`);
    const parts = [system.name, rule.name, system.options, rule.options, ...values].filter(Boolean);
    return `import gradbench as gb\nprint(gb.explain(${parts.join(", ")}))`;
  }

  // the same point in other seeds
  seeds(i) {
    const names = ["system_label", "estimator_label", ...this.meta.coordinates.map((c) => c.name).filter((n) => n !== "seed")];
    const codes = names.map((n) => this.cells.columns[n].codes);
    const same = [];
    for (let j = 0; j < this.cells.rows; j++) if (codes.every((c) => c[j] === c[i])) same.push(j);
    if (same.length < 2) return [];
    const rows = same.sort((a, b) => this.at("seed", a) - this.at("seed", b)).map((j) => {
      const id = this.at("cell", j);
      return [j === i ? make("b", {}, `${this.at("seed", j)} (here)`) : make("a", { href: "#", onclick: (e) => { e.preventDefault(); this.explorer.open(id); } }, String(this.at("seed", j))), this.at("status", j), cosine(this.at("cosine_min", j)), percent(this.at("error", j)), this.at("cause", j) ?? ""];
    });
    return [make("h4", {}, "Seeds"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Seeds" }, simpleTable(["seed", "status", "cosine_min", "error", "cause"], rows))];
  }

  rowsOf(table, i) {
    const { starts } = this[table];
    return Array.from({ length: starts[i + 1] - starts[i] }, (_, k) => starts[i] + k);
  }

  parameters(i) {
    const rows = this.rowsOf("params", i);
    if (!rows.length) return [];
    const get = (n, r) => this.params.columns[n].at(r);
    const order = rows.toSorted((a, b) => (get("cosine", a) ?? 2) - (get("cosine", b) ?? 2));
    const square = (r) => (get("reference_norm", r) ?? 0) ** 2, total = rows.reduce((sum, r) => sum + square(r), 0);
    const body = order.map((r) => {
      const c = get("cosine", r), error = get("rel_error", r);
      const track = make("span", { class: "track", "aria-hidden": "true" });
      if (c != null) {
        const from = Math.min(0, c), to = Math.max(0, c), all = order.some((q) => (get("cosine", q) ?? 0) < 0);
        const place = (v) => (all ? 50 * (v + 1) : 100 * v);
        track.append(make("i", { class: error <= this.meta.faithful ? "" : "low", style: `left: ${place(from)}%; width: ${Math.max(0.5, place(to) - place(from))}%` }));
        if (all) track.append(make("u", { style: "left: 50%" }));
      }
      return make("tr", {}, make("th", { scope: "row" }, get("param", r)), make("td", {}, track), make("td", { class: "n" }, cosine(c)), make("td", { class: "n" }, percent(error)), make("td", { class: "n" }, total ? percent(square(r) / total) : "–"), make("td", { class: "n" }, short(get("norm_ratio", r), 3)), make("td", {}, get("reason", r) ?? ""));
    });
    const head = ["parameter", "", "cosine", "error", "share of |g|\u2060²", "norm ratio", ""].map((h, k) => make("th", { scope: "col", class: k > 1 && k < 6 ? "n" : "" }, h));
    const button = make("button", { type: "button", class: "quiet" }, "CSV");
    const names = this.params.names.filter((n) => n !== "further");
    button.addEventListener("click", () => save(`${this.at("cell", i)}-params.csv`, csv(names, rows.map((r) => names.map((n) => get(n, r))))));
    return [make("div", { class: "head" }, make("h4", {}, "Parameters, the smallest cosine first"), button), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parameters" }, make("table", { class: "params bars" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)))];
  }

  causes(i) {
    const rows = this.rowsOf("budget", i);
    if (!rows.length) return [];
    const get = (n, r) => this.budget.columns[n].at(r);
    const names = Object.keys(this.meta.budget).filter((n) => rows.some((r) => get(n, r)));
    const largest = Math.max(...rows.flatMap((r) => names.map((n) => get(n, r) ?? 0)).filter(Number.isFinite));
    const shade = (v) => (v == null || v === 0 ? "" : v >= this.meta.faithful ? (v >= 0.5 * largest ? "m4" : "m3") : v >= 0.01 ? "m1" : "");
    const body = rows.map((r) => make("tr", {}, make("th", { scope: "row" }, get("param", r) || "whole gradient"), ...names.map((n) => make("td", { class: "n" }, make("span", { class: `step ${shade(get(n, r))}` }, get(n, r) == null ? "" : percent(get(n, r)))))));
    const button = make("button", { type: "button", class: "quiet" }, "CSV");
    button.addEventListener("click", () => save(`${this.at("cell", i)}-budget.csv`, csv(["param", "rel_error", ...names], rows.map((r) => ["param", "rel_error", ...names].map((n) => get(n, r))))));
    return [make("div", { class: "head" }, make("h4", {}, "What the error is made of, of the reference"), button), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Causes" }, make("table", { class: "params" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "parameter"), ...names.map((n) => make("th", { scope: "col", class: "n" }, this.meta.budget[n])))), make("tbody", {}, ...body)))];
  }

  // all other columns, in the groups of the tables
  numbers(i) {
    const told = [];
    let group = null, list = null;
    for (const name of this.cells.names) {
      if (this.meta.groups[name]) { group = this.meta.groups[name]; list = null; }
      if (!group || !(name in this.meta.metrics) || this.meta.coordinates.some((c) => c.name === name)) continue;
      const value = this.at(name, i);
      if (value == null || typeof value === "string" || name === "error") continue; // words are said above
      if (!list) told.push(make("h4", {}, upper(group)), (list = make("dl", { class: "facts" })));
      const words = this.meta.metrics[name].words;
      list.append(make("div", {}, make("dt", {}, name), make("dd", {}, typeof value === "boolean" ? (value ? "yes" : "no") : isCosine(name) ? cosine(value) : short(value, 4), words ? make("small", {}, words) : null)));
    }
    const options = Object.entries({ system: this.meta.systems[this.at("system_label", i)], estimator: this.meta.estimators[this.at("estimator_label", i)] });
    for (const [kind, { options: given }] of options) {
      if (!Object.keys(given).length) continue;
      told.push(make("h4", {}, `Options of the ${kind}`), make("dl", { class: "facts" }, ...Object.entries(given).map(([k, v]) => make("div", {}, make("dt", {}, k), make("dd", {}, String(v))))));
    }
    return told;
  }
}

const upper = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
