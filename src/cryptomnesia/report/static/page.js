"use strict";
// Texts of prompts, paths and files are always set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = Object.keys(data.counts); // strongest first
const EVIDENCE = ["confirmed", "corroborated", "suspected"];
const $ = (id) => document.getElementById(id);

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
const element = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const drawn = (tag, attributes = {}, ...children) => filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const number = (value, digits = 3) => (value === null ? "–" : String(Number(value.toPrecision(digits))));
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)}%`);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// About four round numbers from low to high.
function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1000; value += step) found.push(value);
  return found;
}

// Lines in a frame. Series are {name, kind, points: [[x, y], …]}; marks are [x, text].
function chart(label, series, { x: [first, last], y: [lowest, highest], across, up, marks = [], note = "" }) {
  const [width, height, left, right, top, bottom] = [360, 190, 38, 8, 18, 34];
  const x = (value) => left + ((value - first) / (last - first || 1)) * (width - left - right);
  const y = (value) => top + (1 - (value - lowest) / (highest - lowest || 1)) * (height - top - bottom);
  const write = (text, attributes) => drawn("text", attributes, text);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of ticks(lowest, highest)) {
    svg.append(drawn("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(write(number(value), { x: left - 4, y: y(value) + 3, "text-anchor": "end" }));
  }
  for (const value of ticks(first, last)) svg.append(write(number(value), { x: x(value), y: height - bottom + 13, "text-anchor": "middle" }));
  svg.append(write(up, { x: 2, y: 9 }), write(across, { x: width - right, y: height - 6, "text-anchor": "end" }));
  for (const [value, text] of marks) {
    svg.append(drawn("line", { x1: x(value), x2: x(value), y1: top, y2: height - bottom, class: "mark" }));
    const behind = x(value) > width - 110;
    svg.append(write(text, { x: x(value) + (behind ? -4 : 4), y: top + 8, "text-anchor": behind ? "end" : "start" }));
  }
  const keys = [];
  for (const { name, kind, points } of series) {
    svg.append(drawn("polyline", { points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(" "), class: kind }));
    const line = drawn("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" }, drawn("polyline", { points: "0,4 24,4", class: kind }));
    keys.push(element("span", { class: "key" }, line, name));
  }
  return element("figure", { class: "chart" }, svg, element("figcaption", {}, ...keys, note));
}

const known = (values) => values.filter((value) => value !== null).sort((a, b) => a - b);
const audited = known(data.prompts.flatMap(({ scores }) => scores));
const ordinary = known(data.null);

// Share of scores in bins, of the audit's images and of the references.
function distribution() {
  const all = known([...audited, ...ordinary]);
  const bins = 30;
  // a few extreme scores must not hide the rest
  const [low, high] = [Math.min(0, all[0]), all[Math.floor(0.99 * (all.length - 1))] || 1];
  const outline = (values) => {
    const shares = new Array(bins).fill(0);
    for (const value of values) shares[Math.min(bins - 1, Math.floor((bins * (value - low)) / (high - low || 1)))] += 1 / values.length;
    const corners = shares.flatMap((share, bin) => [bin, bin + 1].map((edge) => [low + (edge * (high - low)) / bins, share]));
    return [[low, 0], ...corners, [high, 0]];
  };
  const series = [{ name: "references", kind: "ordinary", points: outline(ordinary) }, { name: "this audit", kind: "audited", points: outline(audited) }];
  const top = Math.max(...series.flatMap(({ points }) => points.map(([, share]) => share)));
  const threshold = data.threshold.at(-1);
  const beyond = all.at(-1) > high ? `The last bin holds all scores above it, up to ${number(all.at(-1))}.` : "";
  return chart("Distribution of scores", series, {
    x: [low, high], y: [0, top], across: `${data.detector} score`, up: "share of images", note: beyond,
    marks: threshold !== null && threshold <= high ? [[threshold, `p ≤ ${data.fpr}`]] : [],
  });
}

// For every score: the share of references above it (across) and that of the audit's images (up).
function roc() {
  const scores = [...new Set([...audited, ...ordinary])].sort((a, b) => b - a);
  const points = [[0, 0]];
  let [area, i, j] = [0, audited.length, ordinary.length];
  for (const score of scores) {
    while (i > 0 && audited[i - 1] >= score) i -= 1;
    while (j > 0 && ordinary[j - 1] >= score) j -= 1;
    const point = [1 - j / ordinary.length, 1 - i / audited.length];
    const [x, y] = points.at(-1);
    area += ((point[0] - x) * (point[1] + y)) / 2;
    points.push(point);
  }
  const threshold = data.threshold.at(-1);
  const flagged = threshold === null ? 0 : audited.filter((score) => score >= threshold).length / audited.length;
  const note = `${percent(flagged)} of the images score as few references do (p ≤ ${data.fpr}). Area below the line ${number(area)}; prompts like the references would give 0.5.`;
  const series = [{ name: "as the references", kind: "ordinary", points: [[0, 0], [1, 1]] }, { name: "this audit", kind: "audited", points }];
  return chart("Share of images above every score, against the share of references", series, {
    x: [0, 1], y: [0, 1], across: "share of references above a score", up: "share of this audit's images", note,
  });
}

// Prompts by level as one bar.
function bar() {
  const [total, summary] = [data.prompts.length, LEVELS.map((level) => `${data.counts[level]} ${level}`).join(", ")];
  const svg = drawn("svg", { viewBox: `0 0 ${total} 1`, preserveAspectRatio: "none", role: "img", "aria-label": summary, class: "bar" });
  let x = 0;
  for (const level of LEVELS) {
    svg.append(drawn("rect", { x, width: data.counts[level], height: 1, class: level }, drawn("title", {}, `${data.counts[level]} ${level}`)));
    x += data.counts[level];
  }
  return svg;
}

// From dark to bright, so that it can also be read without colours.
const SHADES = [[10, 8, 30], [90, 20, 110], [190, 50, 85], [245, 140, 20], [250, 250, 170]];

// Heats of 0 to 255 as an image of `columns`.
function shaded(heats, columns) {
  const canvas = element("canvas", { width: columns, height: heats.length / columns });
  const image = new ImageData(columns, canvas.height);
  heats.forEach((heat, place) => {
    const at = (heat / 255) * (SHADES.length - 1);
    const [from, share] = [SHADES[Math.floor(at)], at % 1];
    const to = SHADES[Math.ceil(at)];
    image.data.set([...from.map((value, channel) => value + share * (to[channel] - value)), 255], 4 * place);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A map over its picture, with a slider for its opacity.
function overlay(image) {
  const { columns, rows, highest, heats } = image.map;
  const heat = shaded(bytes(heats), columns);
  const canvas = element("canvas", { width: 256, height: Math.round((256 * rows) / columns), role: "img", "aria-label": `Map, seed ${image.seed}` });
  const context = canvas.getContext("2d");
  const paint = (opacity) => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.globalAlpha = opacity;
    context.drawImage(heat, 0, 0, canvas.width, canvas.height);
  };
  const layers = element("div", { class: "layers" });
  const figure = element("figure", {}, layers);
  if (image.picture === null) paint(1);
  else {
    const slider = element("input", { type: "range", min: 0, max: 100, value: 60, "aria-label": `Opacity of the map, seed ${image.seed}` });
    slider.addEventListener("input", () => paint(slider.value / 100));
    paint(slider.value / 100);
    layers.append(element("img", { src: image.picture, alt: "" }));
    figure.append(slider);
  }
  layers.append(canvas);
  const scale = shaded(Uint8Array.from({ length: 64 }, (_, place) => 4 * place), 64);
  figure.append(element("figcaption", {}, "map, colours of this picture alone", element("div", { class: "legend", "aria-hidden": "true" }, "0", scale, number(highest))));
  return figure;
}

function masked(image) {
  const { columns, rows, mask } = image.map;
  const canvas = element("canvas", { width: columns, height: rows, role: "img", "aria-label": `Mask, seed ${image.seed}` });
  const packed = bytes(mask);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, columns, rows);
  context.fillStyle = "#fff";
  for (let place = 0; place < rows * columns; place += 1) {
    if (packed[place >> 3] & (128 >> place % 8)) context.fillRect(place % columns, Math.floor(place / columns), 1, 1);
  }
  return element("figure", {}, canvas, element("figcaption", {}, `mask (white), ${percent(image.fraction)} of the picture`));
}

function shown(picture, caption) {
  const content = picture ? element("img", { src: picture, alt: caption }) : element("div", { class: "withheld" }, "picture left out");
  return element("figure", {}, content, element("figcaption", {}, caption));
}

function nearest({ path, place, relative, matched, p, picture }, of = "") {
  const chance = p === null ? "" : `, p = ${number(p)}`;
  const near = relative === null ? "too few training images to judge it by" : `${matched ? "a match" : "no match"} (${number(relative)} of the distance that counts as one${chance})`;
  return shown(picture, `nearest training image${of}${place === "region" ? " inside the mask" : ""}: ${path}, ${near}`);
}

// The prompt, its words shaded by what is lost without them; below it the leading words, and a list of all.
function wordsOf(pieces) {
  const measured = (piece) => typeof piece.left_out === "number";
  const figuresOf = ({ text, left_out, gradient }) => `${text} ${percent(left_out)}${gradient === null ? "" : ` (gradient ${percent(gradient)})`}`;
  const words = pieces.map((piece) => {
    if (!measured(piece)) return piece.text;
    const word = element("span", { class: "word" }, piece.text);
    // at most half of the colour, so that the word stays legible
    word.style.setProperty("--share", percent(0.5 * Math.min(1, Math.max(0, piece.left_out))));
    return word;
  });
  const different = [...new Map(pieces.filter(measured).map((piece) => [piece.text.toLowerCase(), piece])).values()];
  different.sort((a, b) => b.left_out - a.left_out);
  const lines = [element("p", { class: "words" }, ...words)];
  if (!different.length) return lines;
  const steepest = different.reduce((best, piece) => ((piece.gradient ?? -1) > (best.gradient ?? -1) ? piece : best));
  const other = steepest !== different[0] && steepest.gradient !== null ? `; the gradient names another word: ${figuresOf(steepest)}` : "";
  lines.push(
    element("p", { class: "quiet" }, `Guidance lost without the word: ${different.slice(0, 3).map(figuresOf).join(", ")}${other}`),
    element("details", {}, element("summary", {}, "All words"), element("ul", {}, ...different.map((piece) => element("li", {}, figuresOf(piece))))),
  );
  return lines;
}

function section(image) {
  const figures = element("div", { class: "figures" }, shown(image.picture, `generated, seed ${image.seed}`));
  if (image.map) figures.append(overlay(image), masked(image));
  if (image.nearest) figures.append(nearest(image.nearest));
  if (image.action === "mitigated" || image.remade) figures.append(shown(image.instead, image.dropped.length ? `made again without ${image.dropped.join(", ")}` : "made again under mitigation"));
  if (image.returned) figures.append(nearest(image.returned, " of the picture made again"));
  const parts = [element("h3", {}, `Seed ${image.seed}: `, element("span", { class: `level ${image.level}` }, image.level)), element("p", {}, image.why)];
  if (image.action !== "none") parts.push(element("p", { class: "quiet" }, `${image.action}: ${image.reason}`));
  if (image.behind) parts.push(element("p", { class: "quiet" }, "Behind the guard: ", element("span", { class: `level ${image.behind}` }, image.behind)));
  if (image.words) parts.push(...wordsOf(image.words));
  const sheet = element("section", { class: "image", "aria-label": `Seed ${image.seed}` }, element("div", {}, ...parts));
  const points = (values) => values.map((value, place) => [place + 1, value]).filter(([, value]) => value !== null);
  const running = points(image.running);
  const thresholds = points(data.threshold);
  if (!thresholds.length) {
    sheet.append(figures);
    return sheet;
  }
  const crossed = running.find(([place, value]) => data.threshold[place - 1] !== null && value >= data.threshold[place - 1]);
  const highest = Math.max(...running.map(([, value]) => value), ...thresholds.map(([, value]) => value));
  const lines = [{ name: `threshold of p ≤ ${data.fpr}`, kind: "ordinary", points: thresholds }, { name: "this image", kind: "audited", points: running }];
  const steps = chart(`Score after every evaluation, seed ${image.seed}`, lines, {
    x: [1, data.threshold.length], y: [Math.min(0, ...running.map(([, value]) => value)), highest], across: "denoiser evaluation", up: `${data.detector} score so far`,
    note: crossed ? `First reached at evaluation ${crossed[0]}.` : "",
  });
  sheet.append(steps, figures);
  return sheet;
}

// One body of the table for every prompt; its evidence is added when it is opened.
const bodies = data.prompts.map((judged, place) => {
  const id = `prompt-${place + 1}`;
  const text = element("span", { class: "prompt", id: `${id}-text`, dir: "auto" }, judged.prompt);
  const button = element("button", { "aria-expanded": "false", "aria-labelledby": text.id });
  const cells = [element("span", { class: `level ${judged.level}` }, judged.level), number(judged.p), percent(judged.fraction)];
  const row = element("tr", { class: "row" }, element("td", {}, element("div", {}, button, text)), ...cells.map((cell) => element("td", { class: "number" }, cell)));
  return element("tbody", { id }, row);
});
const buttonOf = (body) => body.querySelector("button");
const isOpen = (body) => body.classList.contains("open");

// Calls back with the evidence on a prompt, which comes after this script and may not have been read yet.
function read(place, use) {
  const parsed = () => JSON.parse($(`evidence-${place + 1}`).textContent);
  if ($(`evidence-${place + 2}`) || document.readyState !== "loading") use(parsed());
  else document.addEventListener("DOMContentLoaded", () => use(parsed()));
}

function toggle(body, wanted = !isOpen(body)) {
  if (wanted === isOpen(body)) return;
  body.classList.toggle("open", wanted);
  buttonOf(body).setAttribute("aria-expanded", wanted);
  if (wanted) {
    const cell = element("td", { colspan: 4 });
    body.append(element("tr", {}, cell));
    read(bodies.indexOf(body), (images) => cell.append(...images.map(section)));
  } else body.lastChild.remove();
}

function choose(body) {
  toggle(body);
  buttonOf(body).focus();
  history.replaceState(null, "", isOpen(body) ? `#${body.id}` : "#");
}

const ORDERS = {
  prompt: { of: ({ prompt }) => prompt, down: false },
  level: { of: ({ level }) => -LEVELS.indexOf(level), down: true },
  p: { of: ({ p }) => p, down: false },
  fraction: { of: ({ fraction }) => fraction, down: true },
};
const state = { by: "level", down: true };
const texts = new Intl.Collator(undefined, { numeric: true });

function list() {
  const [wanted, level, { of }] = [$("search").value.toLowerCase(), $("level").value, ORDERS[state.by]];
  const places = [...data.prompts.keys()].filter((place) => {
    const judged = data.prompts[place];
    return (!level || judged.level === level) && judged.prompt.toLowerCase().includes(wanted);
  });
  places.sort((one, other) => {
    const [a, b] = [of(data.prompts[one]), of(data.prompts[other])];
    // unknown values come last in both directions, and ties stay worst first
    if (a === null || b === null) return (a === null) - (b === null) || one - other;
    return (state.down ? -1 : 1) * (typeof a === "string" ? texts.compare(a, b) : a - b) || one - other;
  });
  $("prompts").replaceChildren($("prompts").tHead, ...places.map((place) => bodies[place]));
  $("count").textContent = `${places.length} of ${bodies.length} prompts`;
  for (const button of document.querySelectorAll("th button")) {
    button.closest("th").setAttribute("aria-sort", button.value !== state.by ? "none" : state.down ? "descending" : "ascending");
  }
}

function follow() {
  const body = location.hash && bodies.find(({ id }) => `#${id}` === location.hash);
  if (!body) return;
  if (!body.isConnected) {
    $("search").value = $("level").value = "";
    list();
  }
  toggle(body, true);
  buttonOf(body).focus();
  body.scrollIntoView();
}

$("prompts").addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  // selecting the text of a prompt must not open it
  if (row && (event.target.closest("button") || getSelection().isCollapsed)) choose(row.parentElement);
});
$("search").addEventListener("input", list);
$("level").addEventListener("change", list);
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    state.down = state.by === button.value ? !state.down : ORDERS[button.value].down;
    state.by = button.value;
    list();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select");
  const listed = [...$("prompts").tBodies];
  const place = listed.indexOf(event.target.closest?.("tbody"));
  const go = (body) => body && buttonOf(body).focus();
  if (event.key === "Enter" && event.target.id === "search") go(listed[0]);
  else if (event.key === "Escape" && !event.target.matches("select")) {
    if (typing) event.target.blur();
    else if (place >= 0) go(listed[place]);
    bodies.forEach((body) => toggle(body, false));
  } else if (typing) return;
  else if (event.key === "/") $("search").focus();
  else if (event.key === "j") go(listed[place + 1]);
  else if (event.key === "k") go(listed[place - 1]);
  else return;
  event.preventDefault();
});

// On paper all listed prompts with evidence are open.
let opened = [];
addEventListener("beforeprint", () => {
  opened = bodies.filter((body, place) => body.isConnected && !isOpen(body) && EVIDENCE.includes(data.prompts[place].level));
  opened.forEach((body) => toggle(body, true));
});
addEventListener("afterprint", () => opened.forEach((body) => toggle(body, false)));
addEventListener("hashchange", follow);

for (const level of LEVELS) $("level").append(element("option", { value: level }, `${level} (${data.counts[level]})`));
$("bar").append(bar());
$("scores").append(...(!audited.length ? ["No image has a score."] : data.without ? [data.without] : [distribution(), roc()]));
list();
follow();
