"use strict";
// Everything that a prompt, a path or a file says is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const LEVELS = ["confirmed", "corroborated", "suspected", "unknown", "none"];
const $ = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const number = (value, digits = 3) => (value === null ? "–" : Number(value).toPrecision(digits).replace(/\.?0+$/, ""));
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)}%`);

// A line chart: series of [label, values, class], x from 1.
function chart(series, { width = 460, height = 170, label }) {
  const [left, bottom, top] = [40, 26, 8];
  const known = series.flatMap(([, values]) => values.filter((value) => value !== null));
  const highest = Math.max(...known, 1e-9);
  const count = Math.max(...series.map(([, values]) => values.length));
  const x = (index) => left + (index / Math.max(1, count - 1)) * (width - left - 6);
  const y = (value) => top + (1 - value / highest) * (height - top - bottom);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "chart" });
  for (const share of [0, 0.5, 1]) {
    const tick = drawn("text", { x: left - 4, y: y(share * highest) + 4, "text-anchor": "end" });
    tick.textContent = number(share * highest, 2);
    svg.append(drawn("line", { x1: left, x2: width - 6, y1: y(share * highest), y2: y(share * highest), class: "grid" }), tick);
  }
  series.forEach(([name, values, kind], place) => {
    const points = values.map((value, index) => (value === null ? "" : `${x(index)},${y(value)}`)).filter(Boolean);
    svg.append(drawn("polyline", { points: points.join(" "), class: kind }));
    const key = drawn("text", { x: left + 8 + 150 * place, y: height - 6, class: kind });
    key.textContent = name;
    svg.append(key);
  });
  return svg;
}

// Share of scores in 30 bins, of the audit against the references.
function histogram() {
  const all = [...data.null, ...data.prompts.flatMap((each) => each.images.map((image) => image.score))];
  const known = all.filter((value) => value !== null).sort((a, b) => a - b);
  // a few extreme scores must not hide the rest
  const highest = known[Math.floor(0.99 * (known.length - 1))] || 1;
  const bins = (values) => {
    const counts = new Array(30).fill(0);
    const own = values.filter((value) => value !== null);
    for (const value of own) counts[Math.min(29, Math.floor((value / highest) * 30))] += 1 / own.length;
    return counts;
  };
  const scores = data.prompts.flatMap((each) => each.images.map((image) => image.score));
  return chart([["references", bins(data.null), "usual"], ["this audit", bins(scores), "own"]], { label: "Distribution of scores" });
}

// A map drawn over its picture on a canvas; the slider mixes them.
function overlay(image) {
  const side = 256;
  const canvas = element("canvas", { width: side, height: side, role: "img", "aria-label": "Map of what is memorized" });
  const context = canvas.getContext("2d");
  const [rows, columns] = [image.map.length, image.map[0].length];
  const highest = Math.max(...image.map.flat().map(Math.log1p), 1e-12);
  const picture = new Image();
  const slider = element("input", { type: "range", min: 0, max: 100, value: 65, "aria-label": "Opacity of the map" });
  const paint = () => {
    context.globalAlpha = 1;
    context.fillStyle = "#777";
    context.fillRect(0, 0, side, side);
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, side, side);
    context.globalAlpha = slider.value / 100;
    image.map.forEach((line, row) => line.forEach((value, column) => {
      const heat = Math.log1p(value) / highest;
      context.fillStyle = `hsl(${60 * heat} 100% ${8 + 50 * heat}%)`;
      context.fillRect((column * side) / columns, (row * side) / rows, side / columns + 1, side / rows + 1);
    }));
  };
  slider.addEventListener("input", paint);
  picture.addEventListener("load", paint);
  if (image.picture) picture.src = image.picture;
  paint();
  return element("figure", {}, canvas, element("figcaption", {}, "memorized region ", slider));
}

function masked(image) {
  const canvas = element("canvas", { width: image.mask[0].length, height: image.mask.length, role: "img", "aria-label": "Mask" });
  const context = canvas.getContext("2d");
  image.mask.forEach((line, row) => line.forEach((value, column) => {
    context.fillStyle = value ? "#fff" : "#000";
    context.fillRect(column, row, 1, 1);
  }));
  return element("figure", {}, canvas, element("figcaption", {}, `mask, ${percent(image.fraction)} of the picture`));
}

function shown(source, caption) {
  const content = source ? element("img", { src: source, alt: caption }) : element("div", { class: "withheld" }, "picture left out");
  return element("figure", {}, content, element("figcaption", {}, caption));
}

function details(prompt) {
  return prompt.images.map((image) => {
    const figures = element("div", { class: "figures" }, shown(image.picture, `generated, seed ${image.seed}`));
    if (image.map) figures.append(overlay(image), masked(image));
    if (image.nearest) figures.append(shown(image.nearest.picture, `${image.nearest.path} (relative distance ${number(image.nearest.relative)})`));
    if (image.action === "mitigated") figures.append(shown(image.instead, `without ${image.dropped.join(", ")}`));
    const facts = element("p", {}, `${image.level}: ${image.why}`);
    const steps = chart([["references' threshold", data.threshold, "usual"], ["this image", image.running, "own"]], { label: "Score after every evaluation" });
    return element("section", { class: "image" }, facts, figures, steps);
  });
}

const state = { sort: "level", down: false, selected: -1, visible: [] };

function visible() {
  const wanted = $("search").value.toLowerCase();
  const level = $("level").value;
  const rows = data.prompts.filter((each) => (!level || each.level === level) && each.prompt.toLowerCase().includes(wanted));
  const by = {
    level: (each) => [LEVELS.indexOf(each.level), each.p ?? 2],
    prompt: (each) => [each.prompt],
    p: (each) => [each.p ?? 2],
    fraction: (each) => [-(each.fraction ?? -1)],
  }[state.sort];
  const compare = (a, b) => {
    const [first, second] = [by(a), by(b)];
    for (let place = 0; place < first.length; place += 1) {
      if (first[place] < second[place]) return -1;
      if (first[place] > second[place]) return 1;
    }
    return 0;
  };
  rows.sort(compare);
  return state.down ? rows.reverse() : rows;
}

function list() {
  state.visible = visible();
  const body = document.createDocumentFragment();
  state.visible.forEach((each, place) => {
    const row = element("tr", { tabindex: 0, "data-place": place },
      element("td", { class: "prompt" }, each.prompt),
      element("td", {}, element("span", { class: `level ${each.level}` }, each.level)),
      element("td", { class: "number" }, number(each.p)),
      element("td", { class: "number" }, percent(each.fraction)));
    body.append(row);
  });
  $("rows").replaceChildren(body);
  $("count").textContent = `${state.visible.length} of ${data.prompts.length} prompts`;
  close();
}

function close() {
  document.querySelector("tr.open")?.remove();
  document.querySelector("tr.selected")?.classList.remove("selected");
}

function open(row) {
  const again = row.classList.contains("selected");
  close();
  state.selected = Number(row.dataset.place);
  row.focus();
  if (again) return;
  row.classList.add("selected");
  const cell = element("td", { colspan: 4 }, ...details(state.visible[state.selected]));
  row.after(element("tr", { class: "open" }, cell));
}

$("rows").addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-place]");
  if (row) open(row);
});
$("search").addEventListener("input", list);
$("level").addEventListener("change", list);
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  state.down = state.sort === button.value ? !state.down : false;
  state.sort = button.value;
  list();
}));
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  const rows = $("rows").querySelectorAll("tr[data-place]");
  const here = document.activeElement.closest?.("tr[data-place]");
  const place = here ? Number(here.dataset.place) : -1;
  if (event.key === "/" && !typing) { event.preventDefault(); $("search").focus(); }
  else if (event.key === "Escape") { close(); }
  else if (!typing && (event.key === "j" || event.key === "ArrowDown") && rows[place + 1]) { event.preventDefault(); rows[place + 1].focus(); }
  else if (!typing && (event.key === "k" || event.key === "ArrowUp") && rows[place - 1]) { event.preventDefault(); rows[place - 1].focus(); }
  else if (event.key === "Enter" && here) { open(here); }
});
for (const level of LEVELS) $("level").append(element("option", { value: level }, `${level} (${data.counts[level]})`));
$("scores").append(histogram());
list();
