"use strict";
// The page of maps: what is selected, what is drawn of it, and the events that change it.
const { figures, maps } = JSON.parse(document.getElementById("data").textContent);
const element = id => document.getElementById(id);
const ZOOMS = [1, 2, 5, 10, 20, 50, 100, 200, 500];
const KNOWN = { 1: "LeCun, the default of Flax", 2: "He" };
const WIDE = matchMedia("(min-width: 56rem)");
const state = { kind: 0, row: 0, quantity: "gradient", depth: 0, variance: 0, held: false };
const plots = {};

function decoded(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

for (const map of maps) {
  map.heights = map.variances.map(Math.log2);
  map.step = (map.heights.at(-1) - map.heights[0]) / (map.heights.length - 1);
  for (const row of map.rows) {
    for (const [name, value] of Object.entries(row)) {
      if (typeof value === "string" && name !== "name") row[name] = decoded(value);
    }
  }
}

const current = () => {
  const map = maps[state.kind];
  return { map, row: map.rows[state.row], count: map.depths.length };
};

// The number of one network in an array [w_variance, depth] or, with a seed, one more axis before.
function pick(values, variance, depth, seed = 0) {
  const { map, count } = current();
  return values[(seed * map.variances.length + variance) * count + depth];
}

function overSeeds(one) {
  const seeds = current().map.seeds;
  const values = Array.from({ length: seeds }, (_, seed) => one(seed));
  const mean = values.reduce((a, b) => a + b, 0) / seeds;
  const square = values.reduce((a, b) => a + (b - mean) ** 2, 0) / (seeds - 1);
  return { mean, error: Math.sqrt(square / seeds) };
}

// A network of d layers is the first d layers of a deeper one. So the gradient at a layer over that
// at the last is that of the d layers at the first, over that of the layers before.
function gradientCurve(variance, depth) {
  const { row, count } = current();
  const start = row.inputs ? -1 : 0, curve = [];
  const at = (values, place, seed) => place < 0 ? 0 : pick(values, variance, place, seed);
  for (let place = start; place <= depth; place++) {
    const ends = place === start || place === depth;
    const x = place + 1;
    if (row.deepest && !ends) {
      // Inside of a network of tokens only the gradient of the deepest one was measured.
      const known = depth === count - 1;
      const one = seed => known
        ? at(row.gradient, depth, seed) + pick(row.deepest, variance, place + 1, seed) : NaN;
      curve.push({ x, ...overSeeds(one), theory: NaN });
    } else {
      const one = seed => at(row.gradient, depth, seed) - at(row.gradient, place, seed);
      const theory = at(row.gradientTheory, depth, 0) - at(row.gradientTheory, place, 0);
      curve.push({ x, ...overSeeds(one), theory });
    }
  }
  return curve;
}

function signalCurve(variance, depth) {
  const { row } = current(), curve = [];
  for (let place = 0; place <= depth; place++) {
    const one = seed => pick(row.signal, variance, place, seed);
    const theory = pick(row.signalTheory, variance, place);
    curve.push({ x: place + 1, ...overSeeds(one), theory });
  }
  return curve;
}

function words(decades) {
  if (!Number.isFinite(decades)) return decades === -Infinity ? "0" : "not finite";
  if (Math.abs(decades) < 2.9) return String(Number((10 ** decades).toPrecision(2)));
  let power = Math.floor(decades), digit = (10 ** (decades - power)).toPrecision(2);
  if (digit === "10") [digit, power] = ["1.0", power + 1];
  const raised = [...String(Math.abs(power))].map(d => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]).join("");
  return `${digit} × 10${power < 0 ? "⁻" : ""}${raised}`;
}

const verb = regime => ({ "-1": "vanishes", 0: "survives", 1: "explodes" })[regime] ?? "is unknown";

function put(plot, name, data) {
  plot.document.get_model_by_name(name).data_source.data = data;
}

function drawCurve(plot, curve, last) {
  const finite = curve.filter(p => Number.isFinite(p.mean));
  const columns = (points, key) => ({ x: points.map(p => p.x), y: points.map(p => p[key]) });
  const banded = finite.filter(p => Number.isFinite(p.error));
  const isolated = key => curve.filter((p, i) => Number.isFinite(p[key]) &&
    !Number.isFinite(curve[i - 1]?.[key]) && !Number.isFinite(curve[i + 1]?.[key]));
  put(plot, "measured", columns(curve, "mean"));
  put(plot, "theory", columns(curve, "theory"));
  put(plot, "measured points", columns(isolated("mean"), "mean"));
  put(plot, "theory points", columns(isolated("theory"), "theory"));
  put(plot, "band", { x: banded.map(p => p.x), low: banded.map(p => p.mean - 2 * p.error),
    high: banded.map(p => p.mean + 2 * p.error) });
  // 1 stays in the middle, so that up is growth in every network.
  const largest = key => Math.max(...curve.map(p => p[key]).filter(Number.isFinite).map(Math.abs), 0);
  // Theory that is far off leaves the panel before the measurement becomes flat.
  const measured = largest("mean"), reach = Math.max(measured, Math.min(largest("theory"), 2 * measured));
  const half = ZOOMS.find(zoom => zoom > 1.05 * reach) ?? 2 * reach;
  plot.y_range.setv({ start: -half, end: half });
  plot.x_range.setv({ start: curve[0].x - 0.5, end: Math.max(last, curve[0].x + 1) + 0.5 });
}

function drawCell() {
  const { map, row } = current(), { depth, variance } = state;
  const gradient = gradientCurve(variance, depth), signal = signalCurve(variance, depth);
  const layers = map.depths[depth], size = Number(map.variances[variance].toPrecision(3));
  drawCurve(plots.gradient, gradient, layers);
  drawCurve(plots.signal, signal, layers);
  const mark = { x: [layers], y: [map.heights[variance]] };
  put(plots.map, "mark", mark);
  put(plots.map, "mark halo", mark);
  element("depth").value = depth;
  element("variance").value = variance;
  const plural = layers === 1 ? map.block : `${map.block}s`;
  element("cell").textContent = `${row.name}, ${layers} ${plural}, weight variance ${size}` +
    (KNOWN[size] ? ` (${KNOWN[size]})` : "") +
    (state.held ? " (held; click to release)" : "");
  const first = gradient[0], end = signal.at(-1);
  element("verdict").textContent = `The ${map.quantity} ${verb(pick(row.regime, variance, depth))}: ` +
    `at the first ${map.block} it is ${words(first.mean)} × that at the last.`;
  element("ends").textContent = `Theory: ${words(first.theory)}. Signal after the last ${map.block}: ` +
    `${words(end.mean)}, theory ${words(end.theory)}.`;
  element("gradient").setAttribute("aria-label", `Gradient over the ${map.block}s: from ` +
    `${words(first.mean)} at the first to 1 at the last. The table below has all numbers.`);
  element("signal").setAttribute("aria-label", `Signal over the ${map.block}s: from ` +
    `${words(signal[0].mean)} at the first to ${words(end.mean)} at the last.`);
  element("inner").textContent = row.deepest && depth < map.depths.length - 1
    ? `Inside of this network, the gradient was measured with ${map.depths.at(-1)} ${map.block}s only.`
    : "";
  if (element("numbers").open) drawNumbers(gradient, signal);
}

function drawNumbers(gradient, signal) {
  const cells = p => p ? [words(p.mean), words(p.theory)] : ["", ""];
  const bySignal = new Map(signal.map(p => [p.x, p]));
  const rows = gradient.map(p => [p.x, ...cells(p), ...cells(bySignal.get(p.x))]);
  element("numbers").querySelector("tbody").replaceChildren(...rows.map(texts => {
    const row = document.createElement("tr");
    row.append(...texts.map((text, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) cell.scope = "row";
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

function drawMap() {
  const { map, row, count } = current(), cells = { x: [], y: [], height: [], value: [] };
  map.heights.forEach((height, variance) => map.depths.forEach((depth, i) => {
    cells.x.push(depth);
    cells.y.push(height);
    cells.height.push(map.step);
    cells.value.push(overSeeds(seed => pick(row[state.quantity], variance, i, seed)).mean);
  }));
  put(plots.map, "cells", cells);
  const isGradient = state.quantity === "gradient";
  for (const [name, lines] of Object.entries(row.lines)) {
    const data = isGradient ? { x: lines.map(l => l[0]), y: lines.map(l => l[1]) } : { x: [], y: [] };
    put(plots.map, name, data);
    put(plots.map, `${name} halo`, data);
  }
  const texts = isGradient ? row.words : [];
  put(plots.map, "words", { x: texts.map(t => t[0]), y: texts.map(t => t[1]), text: texts.map(t => t[2]) });
  const { heights, step, block, quantity } = map;
  plots.map.x_range.setv({ start: map.depths[0] - 0.5, end: map.depths[count - 1] + 0.5 });
  plots.map.y_range.setv({ start: heights[0] - step / 2, end: heights.at(-1) + step / 2 });
  plots.map.below[0].axis_label = `depth (number of ${block}s)`;
  element("map-keys").hidden = !isGradient;
  element("map-title").textContent = isGradient
    ? `Map: ${quantity} at the first ${block} / at the last` : `Map: signal after the last ${block}`;
  element("map").setAttribute("aria-label", `${element("map-title").textContent}, over depth and ` +
    "weight variance. Arrow keys select a network.");
  const places = row.inputs ? `${block}s passed (0 is the input)` : `${block} (1 is next to the input)`;
  const from = row.inputs ? `of each ${block}'s input` : `at each ${block}`;
  element("gradient-title").textContent = `Gradient ${from} / that ${row.inputs ? "of the output" : "at the last"}`;
  element("signal-title").textContent = `Signal after each ${block} (root mean square)`;
  element("place").textContent = row.inputs ? `${block}s passed` : block;
  element("measured-words").textContent = `measured: mean of ${map.seeds} seeds ± 2 standard errors`;
  for (const name of ["gradient", "signal"]) {
    plots[name].below[0].axis_label = places;
    plots[name].left[0].axis_label = name === "gradient" ? "gradient (norm)" : "signal";
  }
}

function options(id, texts) {
  element(id).replaceChildren(...texts.map((text, i) => new Option(text, i)));
}

function selectKind() {
  const { map } = current();
  element("row-words").textContent = map.rowWords;
  options("row", map.rows.map(row => row.name));
  options("depth", map.depths.map(String));
  options("variance", map.variances.map(v => String(Number(v.toPrecision(3)))));
  // LeCun's variance, with which most libraries start, or the nearest to it.
  const distance = map.heights.map(Math.abs);
  Object.assign(state, { row: 0, depth: map.depths.length - 1,
    variance: distance.indexOf(Math.min(...distance)) });
  element("row").value = 0;
}

const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));

function select(depth, variance) {
  const { map, count } = current();
  const next = [clamp(depth, count), clamp(variance, map.variances.length)];
  if (next[0] === state.depth && next[1] === state.variance) return;
  [state.depth, state.variance] = next;
  drawCell();
}

function point({ x, y }) {
  const { map } = current();
  select(Math.round(x - map.depths[0]), Math.round((y - map.heights[0]) / map.step));
}

function onKey(event) {
  const count = current().count;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
    PageUp: [0, 5], PageDown: [0, -5], Home: [-count, 0], End: [count, 0] };
  const move = moves[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  select(state.depth + move[0], state.variance + move[1]);
}

function recolour() {
  const style = getComputedStyle(document.documentElement);
  const [paper, ink, faint, rule, measured, theory] =
    ["paper", "ink", "faint", "rule", "measured", "theory"].map(n => style.getPropertyValue(`--${n}`).trim());
  const font = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";
  for (const plot of Object.values(plots)) {
    plot.setv({ background_fill_color: paper, border_fill_color: paper });
    const bar = plot.document.get_model_by_name("bar");
    bar?.setv({ background_fill_color: paper, major_label_text_color: ink, major_label_text_font: font,
      major_label_text_font_size: "13px" });
    for (const axis of [...plot.below, ...plot.left]) {
      axis.setv({ axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: faint,
        major_tick_line_color: faint, minor_tick_line_color: null, axis_label_text_font: font,
        major_label_text_font: font, axis_label_text_font_style: "normal",
        axis_label_text_font_size: "14px", major_label_text_font_size: "13px" });
    }
    for (const grid of plot.center) if ("grid_line_color" in grid) grid.grid_line_color = rule;
  }
  for (const name of ["gradient", "signal"]) {
    const model = part => plots[name].document.get_model_by_name(part);
    for (const [part, color] of [["measured", measured], ["theory", theory]]) {
      model(part).glyph.line_color = color;
      model(`${part} points`).glyph.setv({ line_color: color, fill_color: color });
    }
    model("band").glyph.fill_color = measured;
  }
}

async function start() {
  for (const [name, item] of Object.entries(figures)) {
    await Bokeh.embed.embed_item(item);
    plots[name] = Bokeh.documents.at(-1).roots()[0];
  }
  options("kind", maps.map(map => map.name));
  element("kind-label").hidden = maps.length < 2;
  const redraw = () => { drawMap(); drawCell(); };
  element("kind").onchange = e => { state.kind = Number(e.target.value); selectKind(); redraw(); };
  element("row").onchange = e => { state.row = Number(e.target.value); redraw(); };
  element("quantity").onchange = e => { state.quantity = e.target.value; redraw(); };
  element("depth").onchange = e => select(Number(e.target.value), state.variance);
  element("variance").onchange = e => select(state.depth, Number(e.target.value));
  element("numbers").ontoggle = drawCell;
  element("map").onkeydown = onKey;
  plots.map.on_event("mousemove", event => { if (!state.held) point(event); });
  // The second of two quick clicks is no tap.
  for (const name of ["tap", "doubletap"]) {
    plots.map.on_event(name, event => { state.held = !state.held; point(event); drawCell(); });
  }
  selectKind();
  recolour();
  redraw();
  const resize = () => { plots.map.height = WIDE.matches ? 560 : 400; };
  WIDE.addEventListener("change", resize);
  resize();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  document.body.dataset.ready = "yes";
}

start();
