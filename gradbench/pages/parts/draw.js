// Scales, the heat map and the curves.

const BANDS = [0.5, 0.9, 0.99, 0.999]; // of a cosine: the shades change here
const SHAPES = ["circle", "square", "diamond", "triangle", "cross"];
const FIXED = { ep: ["--ep", "square", []], aep: ["--aep", "circle", []], bptt: ["--bptt", "cross", [2, 3]], adjoint: ["--adjoint", "diamond", [7, 3]], tbptt: ["--tbptt", "triangle", [2, 2]] };
const DASHES = [[5, 3], [1, 3], [8, 2, 2, 2], [4, 2]];

// colour, marker and dashes of every rule: the colour belongs to the name, the options change marker and dashes
function looks(labels, items) {
  const drawn = {}, variants = {};
  for (const label of labels) {
    const name = items[label].name;
    let hash = 0;
    for (const c of name) hash = (hash * 31 + c.codePointAt(0)) >>> 0;
    const [colour, shape, dash] = FIXED[name] ?? [`--r${hash % 5}`, SHAPES[hash % 5], []];
    const rank = (variants[name] = (variants[name] ?? -1) + 1);
    drawn[label] = { colour, shape: SHAPES[(SHAPES.indexOf(shape) + rank) % 5], dash: rank ? DASHES[(rank - 1) % DASHES.length] : dash };
  }
  return drawn;
}

const isCosine = (name) => name.startsWith("cosine");
const inText = (name, v) => (isCosine(name) ? cosine(v) : short(v, 3));
const inTile = (name, v) => (isCosine(name) && v >= 0.99995 ? (v === 1 ? "1" : ">0.9999") : inText(name, v));
// a scale on which every step is one more nine: 0.9, 0.99, 0.999
const NINES = 7;
const nines = (v) => -Math.log10(Math.max(1 - v, 10 ** -NINES));
const ofNines = (n) => (n < 0 ? minus(String(Number((1 - 10 ** -n).toFixed(1)))) : n >= NINES ? "1" : n ? `0.${"9".repeat(n)}` : "0");

// A function from a number to a shade, 4 the best or the largest, and the words of the five shades. Shades of kind "g" go from
// bad to good, those of kind "m" from small to large.
function shades(name, metric, numbers, faithful) {
  if (isCosine(name)) {
    const words = ["below 0.5", "0.5 to 0.9", "0.9 to 0.99", "0.99 to 0.999", "0.999 and more"];
    return { shade: (v) => BANDS.filter((b) => v >= b).length, words, kind: "g" };
  }
  if (metric.better === "down" && (name === "error" || name === "rel_error")) {
    const ends = [1, 3 * faithful, faithful, faithful / 10];
    const told = ends.map((e) => short(e, 2));
    const words = [`above ${told[0]}`, `${told[1]} to ${told[0]}`, `${told[2]} to ${told[1]}`, `${told[3]} to ${told[2]}`, `at most ${told[3]}`];
    return { shade: (v) => ends.filter((e) => v <= e).length, words, kind: "g" };
  }
  const finite = numbers.filter((v) => Number.isFinite(v) && (!metric.log || v > 0));
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const f = metric.log ? Math.log : (v) => v;
  const place = (v) => (high > low ? (f(v) - f(low)) / (f(high) - f(low)) : 0.5);
  const turned = metric.better === "down";
  const shade = (v) => {
    const p = metric.log && v <= 0 ? 0 : Math.min(4, Math.max(0, Math.floor(5 * place(v))));
    return turned ? 4 - p : p;
  };
  const g = metric.log ? Math.exp : (v) => v;
  const edge = (p) => short(g(f(low) + p * (f(high) - f(low))), 3);
  const words = [0, 1, 2, 3, 4].map((p) => (finite.length ? `${edge(p / 5)} to ${edge((p + 1) / 5)}` : "–"));
  return { shade, words: turned ? words.reverse() : words, kind: ["up", "down"].includes(metric.better) ? "g" : "m" };
}

const COLOURS = new Map(); // of the theme that is shown
function resolved(name) {
  if (!COLOURS.has(name)) COLOURS.set(name, computed(name));
  return COLOURS.get(name);
}
function computed(name) {
  const probe = make("span", { style: `color: var(${name}); display: none` });
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function marker(ctx, shape, x, y, r) {
  ctx.beginPath();
  if (shape === "circle") ctx.arc(x, y, r, 0, 2 * Math.PI);
  else if (shape === "square") ctx.rect(x - r * 0.9, y - r * 0.9, 1.8 * r, 1.8 * r);
  else {
    const points = { diamond: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]], triangle: [[0, -1.2], [1.2, 0.9], [-1.2, 0.9]] }[shape] ?? [[-0.4, -1.2], [0.4, -1.2], [0.4, -0.4], [1.2, -0.4], [1.2, 0.4], [0.4, 0.4], [0.4, 1.2], [-0.4, 1.2], [-0.4, 0.4], [-1.2, 0.4], [-1.2, -0.4], [-0.4, -0.4]];
    points.forEach(([dx, dy], i) => ctx[i ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
    ctx.closePath();
  }
  ctx.fill();
}

// the mark of a rule in a legend
function key(look) {
  const svg = document.createElementNS(NS, "svg");
  for (const [k, v] of Object.entries({ width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true" })) svg.setAttribute(k, v);
  const line = document.createElementNS(NS, "line");
  for (const [k, v] of Object.entries({ x1: 0, x2: 26, y1: 6, y2: 6, "stroke-width": 2, "stroke-dasharray": look.dash.join(" ") })) line.setAttribute(k, v);
  line.style.stroke = `var(${look.colour})`;
  const path = document.createElementNS(NS, "path");
  const shapes = { circle: "M13 2a4 4 0 1 0 .01 0z", square: "M9.5 2.5h7v7h-7z", diamond: "M13 1l5 5-5 5-5-5z", triangle: "M13 1l5 9H8z", cross: "M11.5 1h3v3.5H18v3h-3.5V11h-3V7.5H8v-3h3.5z" };
  path.setAttribute("d", shapes[look.shape]);
  path.style.fill = `var(${look.colour})`;
  svg.append(line, path);
  return svg;
}

// Lines of medians with bands from the smallest to the largest; `lines` is [{label, look, points: [{x, low, middle, high}]}].
function curve(place, lines, { xs, xLog, yLog, inNines, xName, yName, text, onPoint }) {
  const axis = resolved("--dim"), grid = resolved("--line"), ground = resolved("--ground");
  const data = [xs];
  const series = [{}];
  const bands = [];
  for (const line of lines) {
    const by = new Map(line.points.map((p) => [p.x, p]));
    const colour = resolved(line.look.colour);
    const usable = (v) => (v == null || !Number.isFinite(v) || (yLog && v <= 0) ? null : inNines ? nines(v) : v);
    for (const what of ["high", "low", "middle"]) data.push(xs.map((x) => usable(by.get(x)?.[what])));
    const n = series.length;
    series.push({ stroke: "transparent", points: { show: false } }, { stroke: "transparent", points: { show: false } });
    series.push({ label: line.label, stroke: colour, width: 2, dash: line.look.dash, spanGaps: false, points: { show: true, size: 8, filter: () => null, space: 0 } });
    bands.push({ series: [n, n + 1], fill: colour.replace("rgb(", "rgba(").replace(")", ", .13)") });
  }
  const shown = data.slice(1).flat().filter((v) => v != null);
  const [low, high] = [Math.min(...shown), Math.max(...shown)];
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.01 || 0.01;
  const whole = inNines ? [low < 0 ? low - 0.05 : 0, Math.max(1, Math.ceil(high))] : null;
  const decades = yLog ? [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high))] : null;
  const font = "12px ui-sans-serif, system-ui, sans-serif";
  const drawn = (u) => {
    const { ctx } = u, ratio = devicePixelRatio;
    lines.forEach((line, i) => {
      ctx.fillStyle = resolved(line.look.colour);
      u.data[3 * i + 3].forEach((v, j) => v != null && marker(ctx, line.look.shape, u.valToPos(xs[j], "x", true), u.valToPos(v, "y", true), 4 * ratio));
    });
  };
  const width = Math.max(220, Math.floor(place.clientWidth)), height = 260;
  const u = new uPlot(
    {
      width, height, series, bands, legend: { show: false },
      cursor: { points: { show: false }, drag: { x: false, y: false }, y: false },
      scales: {
        x: { time: false, distr: xLog ? 3 : 1, range: (_, a, b) => (xLog ? [a / 1.25, b * 1.25] : a === b ? [a - 1, b + 1] : [a - (b - a) * 0.05, b + (b - a) * 0.05]) },
        y: yLog ? { distr: 3, range: () => (decades[0] === decades[1] ? [decades[0] / 10, decades[1] * 10] : decades) } : { range: () => whole ?? [low - pad, high + pad] },
      },
      axes: [
        { stroke: axis, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, splits: () => xs, filter: (_, s) => s, values: (u2, s) => thinned(u2, s), label: xName, labelFont: font, labelSize: 18, labelGap: 0, size: 26, gap: 6 },
        { stroke: axis, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 66, ...(inNines ? { splits: () => Array.from({ length: whole[1] + 1 }, (_, n) => n), values: (_, s) => s.map(ofNines) } : { values: (_, s) => s.map((v) => (v == null ? "" : text(v))) }) },
      ],
      hooks: { draw: [drawn], setCursor: [(u2) => onPoint(u2.cursor.idx == null || u2.cursor.left < 0 ? null : u2.cursor.idx, u2)] },
    },
    data,
    place,
  );
  u.root.setAttribute("role", "img");
  u.root.setAttribute("aria-label", `${yName} against ${xName}; its numbers stand below`);
  return u;

  // labels of values that have room
  function thinned(u2, splits) {
    let end = -Infinity;
    return splits.map((v) => {
      const label = plain(v), x = u2.valToPos(v, "x"), half = label.length * 3.6;
      if (x - half < end + 4) return "";
      end = x + half;
      return label;
    });
  }
}
