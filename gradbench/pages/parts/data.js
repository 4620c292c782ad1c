// The tables that the page carries, as columns that are unpacked when they are first read.

const NULL = 127, INF = 126, MINUS_INF = 125;
const POWERS = Array.from({ length: 23 }, (_, n) => Number(`1e${n}`)); // these are exact

async function unpacked() {
  const text = document.getElementById("data").textContent;
  const binary = atob(text);
  const bytes = Uint8Array.from(binary, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const content = new Uint8Array(await new Response(stream).arrayBuffer());
  const size = new DataView(content.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(content.subarray(4, 4 + size)));
  const tables = {};
  let from = 4 + size;
  for (const [name, { rows, columns }] of Object.entries(header.tables)) {
    const table = (tables[name] = { rows, names: Object.keys(columns), columns: Object.create(null) });
    for (const [column, told] of Object.entries(columns)) {
      const length = rows * (told.kind === "hex" ? 8 : told.kind === "digits" ? told.width + 1 : told.width);
      table.columns[column] = new Column(told, content.subarray(from, from + length), rows);
      from += length;
    }
  }
  for (const name of ["params", "budget"]) tables[name].starts = starts(tables[name], tables.cells.rows);
  return { meta: header.meta, ...tables };
}

class Column {
  constructor(told, bytes, rows) {
    Object.assign(this, told, { bytes, rows });
  }

  // of `words`: the place of the value of a row in the list, from 1; 0 is null
  get codes() {
    const { bytes, rows, width } = this;
    const codes = new Uint32Array(rows);
    for (let plane = 0; plane < width; plane++) for (let i = 0; i < rows; i++) codes[i] |= bytes[plane * rows + i] << (8 * plane);
    Object.defineProperty(this, "codes", { value: codes });
    return codes;
  }

  // of numbers: NaN where there is none
  get numbers() {
    const { bytes, rows, width } = this;
    const numbers = new Float64Array(rows);
    if (this.kind === "words") {
      const list = [NaN, ...this.words.map((w) => (typeof w === "boolean" ? Number(w) : typeof w === "number" ? w : Number(w)))];
      const { codes } = this;
      for (let i = 0; i < rows; i++) numbers[i] = list[codes[i]];
    } else {
      const shift = 32 - 8 * width;
      for (let i = 0; i < rows; i++) {
        const power = (bytes[i] << 24) >> 24;
        if (power >= MINUS_INF) {
          numbers[i] = power === NULL ? NaN : power === INF ? Infinity : -Infinity;
          continue;
        }
        let whole = 0;
        for (let plane = 0; plane < width; plane++) whole |= bytes[rows * (1 + plane) + i] << (8 * plane);
        whole = (whole << shift) >> shift;
        numbers[i] = power < -22 || power > 22 ? Number(`${whole}e${power}`) : power < 0 ? whole / POWERS[-power] : whole * POWERS[power];
      }
    }
    Object.defineProperty(this, "numbers", { value: numbers });
    return numbers;
  }

  // what stands in a row: a word, a number, or null
  at(i) {
    if (this.kind === "hex") {
      let key = "";
      for (let plane = 0; plane < 8; plane++) key += this.bytes[plane * this.rows + i].toString(16).padStart(2, "0");
      return key;
    }
    if (this.kind === "words") {
      const code = this.codes[i];
      return code ? this.words[code - 1] : null;
    }
    const value = this.numbers[i];
    return Number.isNaN(value) ? null : value;
  }
}

// where the rows of every cell begin, with one entry more for the end
function starts(table, cells) {
  const places = new Uint32Array(cells + 1);
  const further = table.columns.further.numbers;
  let cell = 0;
  for (let i = 0; i < table.rows; i++) {
    cell += further[i];
    places[cell + 1]++;
  }
  for (let i = 0; i < cells; i++) places[i + 1] += places[i];
  return places;
}
