"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#3b76c4", "#d9822b", "#2a9d6f", "#a45bc0", "#c43b5e", "#7d8a2e", "#1f9bb3", "#8a6d5a"];
const SIZE = { width: 460, height: 230, left: 52, right: 8, top: 8, bottom: 24 };

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) found.push(Number((tick * step).toPrecision(12)));
  return found;
}

function short(value) {
  const size = Math.abs(value);
  return size >= 1e5 || (size > 0 && size < 1e-3) ? value.toExponential(1).replace(".0e", "e") : String(Number(value.toPrecision(5)));
}

/* A chart of curves {name: [[x, y], ...]}, filled down to zero if `area`; `colors` name -> color. */
function chart(title, curves, { colors = {}, area = false } = {}) {
  const all = Object.values(curves).flat(), xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const widened = ([low, high]) => (low < high ? [low, high] : [low - 0.5, high + 0.5]);
  const [x0, x1] = widened(range(xs)), [y0, y1] = widened(range(area ? [0, ...ys] : ys));
  const x = (v) => SIZE.left + ((v - x0) / (x1 - x0)) * (SIZE.width - SIZE.left - SIZE.right);
  const y = (v) => SIZE.height - SIZE.bottom - ((v - y0) / (y1 - y0)) * (SIZE.height - SIZE.top - SIZE.bottom);
  const picture = drawn("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", "aria-label": title });
  for (const tick of ticks(y0, y1)) {
    picture.append(drawn("line", { class: "axis", x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: y(tick), y2: y(tick) }));
    picture.append(drawn("text", { x: SIZE.left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of ticks(x0, x1)) picture.append(drawn("text", { x: x(tick), y: SIZE.height - 8, "text-anchor": "middle" }, short(tick)));
  const legend = element("div", { className: "legend" });
  Object.entries(curves).forEach(([name, points], place) => {
    const color = colors[name] ?? COLORS[place % COLORS.length];
    const line = points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
    if (area) picture.append(drawn("polygon", { points: `${x(x0)},${y(0)} ${line} ${x(x1)},${y(0)}`, fill: color, opacity: 0.25 }));
    picture.append(drawn("polyline", { points: line, fill: "none", stroke: color, "stroke-width": 1.6 }));
    const sample = element("i");
    sample.style.background = color;
    const [, last] = points[points.length - 1];
    legend.append(element("span", {}, sample, area ? name : `${name}: ${short(last)}`));
  });
  return element("figure", { className: "chart" }, element("figcaption", {}, title), picture, legend);
}

function showCharts() {
  const section = document.getElementById("curves");
  if (!section) return;
  section.append(element("div", { className: "charts" }, ...data.charts.map(({ title, curves }) => chart(title, curves))));
}

function showSimilarities() {
  const section = document.getElementById("similarities");
  if (!section) return;
  const { edges, same, other } = data.similarities;
  const stairs = (heights) => heights.flatMap((height, bin) => [[edges[bin], height], [edges[bin + 1], height]]);
  const colors = { "of the same person": "var(--right)", "of different persons": "var(--wrong)" };
  const curves = { "of different persons": stairs(other), "of the same person": stairs(same) };
  section.append(element("div", { className: "charts" }, chart("density", curves, { colors, area: true })));
}

const PAGE = 40;
const folded = (text) => text.normalize("NFC").toLowerCase();

/* Returns a function that shows a list of items in `parent`, PAGE of them at a time; the button `more` shows the next. */
function paged(more, parent, row) {
  let items = [], shown = 0;
  const showMore = () => {
    parent.append(...items.slice(shown, shown + PAGE).map(row));
    shown = Math.min(items.length, shown + PAGE);
    more.hidden = shown === items.length;
  };
  more.addEventListener("click", showMore);
  return (found) => {
    [items, shown] = [found, 0];
    parent.replaceChildren();
    showMore();
  };
}

function imageCard(queries, image, pid, below, after = false) {
  const right = queries.image_pids[image] === pid, source = queries.thumbnails[image];
  const picture = source ? element("img", { src: source, alt: queries.images[image], loading: "lazy" }) : element("span", {}, queries.images[image]);
  const card = element("div", { className: `image${right ? " right" : ""}${after ? " after" : ""}`, title: queries.images[image] }, picture, below);
  return card;
}

function queryRow(queries, query) {
  const pid = queries.pids[query], first = queries.first[query], best = queries.best[query];
  const cards = best.map((image, place) => imageCard(queries, image, pid, queries.scores[query][place].toFixed(2)));
  if (first > best.length) cards.push(imageCard(queries, queries.right[query], pid, `rank ${first}`, true));
  const count = queries.counts[query];
  const facts = `caption ${query}, person ${pid}: first right image at rank ${first}; ${count} of this person`;
  const words = element("div", {}, element("p", {}, queries.captions[query]), element("p", { className: "facts" }, facts));
  return element("li", {}, words, element("div", { className: "images" }, ...cards));
}

function showQueries() {
  const section = document.getElementById("queries");
  if (!section) return;
  const queries = data.queries, form = section.querySelector("form"), list = section.querySelector("ol");
  const more = section.querySelector("button"), count = document.getElementById("count");
  const texts = queries.captions.map(folded), lengths = texts.map((text) => text.split(/\s+/).filter(Boolean).length);
  const rank = (query) => queries.first[query];
  const pages = paged(more, list, (query) => queryRow(queries, query));
  const filter = () => {
    const number = (name, other) => (form[name].value === "" ? other : Number(form[name].value));
    const words = folded(form.text.value).split(/\s+/).filter(Boolean);
    const [from, to, fewest, most] = [number("from", 0), number("to", Infinity), number("fewest", 0), number("most", Infinity)];
    const found = texts.map((_, query) => query).filter((query) =>
      rank(query) >= from && rank(query) <= to && lengths[query] >= fewest && lengths[query] <= most && words.every((word) => texts[query].includes(word)));
    const orders = { worst: (a, b) => rank(b) - rank(a) || a - b, best: (a, b) => rank(a) - rank(b) || a - b, file: (a, b) => a - b };
    found.sort(orders[form.order.value]);
    count.textContent = `${found.length.toLocaleString("en")} of ${texts.length.toLocaleString("en")} captions`;
    pages(found);
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

/* Differences with their intervals, one line each, as a picture. */
function showDifferences() {
  const section = document.getElementById("differences");
  if (!section) return;
  for (const [direction, title] of [["t2i", "text to image"], ["i2t", "image to text"]]) {
    const rows = data.differences.filter((row) => row.direction === direction);
    if (!rows.length) continue;
    const LINE = 26, width = 760, left = 260, height = LINE * rows.length + 30;
    const low = Math.min(0, ...rows.map((row) => row.low)), high = Math.max(0, ...rows.map((row) => row.high));
    const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - 20);
    const picture = drawn("svg", { class: "tall", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
    for (const tick of ticks(low, high > low ? high : low + 1)) {
      picture.append(drawn("line", { class: "axis", x1: x(tick), x2: x(tick), y1: 0, y2: height - 22, "stroke-width": tick === 0 ? 2.5 : 1 }));
      picture.append(drawn("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, short(tick)));
    }
    rows.forEach((row, place) => {
      const y = LINE * (place + 0.5), color = row.p_value >= 0.05 ? "var(--faint)" : row.difference > 0 ? "var(--right)" : "var(--wrong)";
      const name = row.name.length > 38 ? `${row.name.slice(0, 37)}…` : row.name;
      const label = drawn("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, name);
      label.append(drawn("title", {}, `${row.name}: ${row.difference.toFixed(2)}, p ${row.p_value.toFixed(3)}`));
      picture.append(label, drawn("line", { x1: x(row.low), x2: x(row.high), y1: y, y2: y, stroke: color, "stroke-width": 3 }));
      picture.append(drawn("circle", { cx: x(row.difference), cy: y, r: 5, fill: color }));
    });
    section.append(element("figure", { className: "chart wide" }, element("figcaption", {}, title), picture));
  }
}

function showContrasts() {
  const section = document.getElementById("contrasts");
  if (!section) return;
  const { captions, rows } = data.contrasts, form = section.querySelector("form"), body = section.querySelector("tbody");
  const more = section.querySelector("button"), count = document.getElementById("count"), texts = captions.map(folded);
  const names = Object.keys(rows);
  for (const select of [form.row, form.against]) select.append(...names.map((name) => element("option", { value: name }, name)));
  form.against.value = names.find((name) => data.differences.every((row) => row.name !== name)) ?? names[1];
  form.row.value = names.find((name) => name !== form.against.value);
  const pages = paged(more, body, (query) =>
    element("tr", {}, element("td", { className: "left words" }, captions[query]), ...[form.row, form.against].map((select) => element("td", {}, String(rows[select.value][query])))));
  const filter = () => {
    const own = rows[form.row.value], other = rows[form.against.value], sign = form.order.value === "better" ? 1 : -1;
    const words = folded(form.text.value).split(/\s+/).filter(Boolean);
    const gain = (query) => sign * Math.log(other[query] / own[query]);
    const found = texts.map((_, query) => query).filter((query) => gain(query) > 0 && words.every((word) => texts[query].includes(word)));
    found.sort((a, b) => gain(b) - gain(a) || a - b);
    [...section.querySelectorAll("th")].slice(1).forEach((cell, place) => { cell.textContent = `rank, ${[form.row, form.against][place].value}`; });
    count.textContent = `${found.length.toLocaleString("en")} of ${texts.length.toLocaleString("en")} captions; ranks of the first right image, mean over seeds`;
    pages(found);
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

showSimilarities();
showCharts();
showQueries();
showDifferences();
showContrasts();
