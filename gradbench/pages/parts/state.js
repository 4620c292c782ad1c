// What is shown, as the address says it: #system_label=cet_real&T2=60&cell=... Text is shown as text, never as markup.

const SORT = "sort", CELL = "cell", PAGE = "page";
const DEFAULT_SORT = "cosine_min";

const make = (tag, props = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((c) => c != null && c !== false));
  return element;
};
const $ = (selector, within = document) => within.querySelector(selector);
const NS = "http://www.w3.org/2000/svg";

const minus = (text) => text.replace("-", "−");
const short = (v, digits = 4) => {
  if (v == null || Number.isNaN(v)) return "–";
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  if (Number.isInteger(v) && Math.abs(v) < 1e7) return minus(v.toLocaleString("en-US"));
  const size = Math.abs(v);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? v.toExponential(digits - 1).replace(/\.?0+e/, "e") : String(Number(v.toPrecision(digits)));
  return minus(text.replace("e-", "e−"));
};
const cosine = (v) => {
  if (v == null || Number.isNaN(v)) return "–";
  const text = v.toFixed(4);
  return minus(text === "1.0000" ? v.toFixed(6) : text);
};
const plain = (v) => (v == null ? "–" : typeof v === "number" ? minus(String(v)) : String(v));

class State {
  constructor(fields, first) {
    this.fields = Object.assign(Object.create(null), fields); // name -> the words that it may be
    this.first = first; // the filters of a fresh page
    this.reset();
  }

  reset() {
    this.filters = new Map(Object.entries(this.first).map(([k, v]) => [k, new Set(v)]));
    this.options = new Map();
    this.sort = DEFAULT_SORT;
    this.page = 0;
    this.cell = null;
  }

  // from an address; one without `=` names a part of the page
  read(hash) {
    const text = hash.replace(/^#/, "");
    if (!text.includes("=")) return this.reset();
    const given = new URLSearchParams(text);
    const filtered = [...given.keys()].some((k) => this.fields[k]) || given.has("all");
    this.reset();
    if (filtered) this.filters = new Map();
    for (const [key, value] of given) {
      if (this.fields[key]) this.filters.set(key, new Set([...(this.filters.get(key) ?? []), ...this.fields[key].filter((w) => String(w) === value)]));
      else if (key === SORT) this.sort = value;
      else if (key === PAGE) this.page = Math.max(0, Math.floor(Number(value)) || 0);
      else if (key === CELL) this.cell = /^[0-9a-f]{4,16}$/.test(value) ? value : null;
      else if (key !== "all") this.options.set(key, value);
    }
    for (const [key, chosen] of [...this.filters]) if (!chosen.size) this.filters.delete(key);
  }

  write() {
    const told = new URLSearchParams();
    for (const [key, chosen] of this.filters) for (const word of chosen) told.append(key, String(word));
    if (!this.filters.size) told.set("all", "1");
    for (const [key, value] of this.options) told.set(key, value);
    if (this.sort !== DEFAULT_SORT) told.set(SORT, this.sort);
    if (this.page) told.set(PAGE, String(this.page));
    if (this.cell) told.set(CELL, this.cell);
    return `#${told}`;
  }

  option(name, allowed, fallback) {
    const value = this.options.get(name);
    return allowed.includes(value) ? value : fallback;
  }

  set(name, words) {
    if (words.size && words.size < this.fields[name].length) this.filters.set(name, words);
    else this.filters.delete(name);
    this.page = 0;
  }
}

// CSV: a head and rows; what a spreadsheet would take for a formula is left as text
function csv(head, rows) {
  const field = (v) => {
    if (v == null || (typeof v === "number" && Number.isNaN(v))) return "";
    const text = typeof v === "string" && /^[=+@\t\r-]/.test(v) ? `'${v}` : String(v);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [head, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function copied(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { readonly: true, style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = said), 1200);
}
