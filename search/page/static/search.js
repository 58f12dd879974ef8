"use strict";
const texts = JSON.parse(document.getElementById("texts").textContent);
const [form, sentence, picture, folder, like, told, gallery, more, selection, other] =
  ["form", "sentence", "picture", "folder", "like", "status", "gallery", "more", "selection", "other"].map((id) => document.getElementById(id));
const STEP = 24, MOST = Number(document.body.dataset.most), PAUSE = 250; // images, images, ms
const chosen = new Set();
let asked = null;   // {kind: "sentence", q} | {kind: "similar", id} | {kind: "picture", file}
let shown = STEP, running = null, timer = 0;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, key) => Number(values[key]).toLocaleString(document.body.dataset.language));

function say(text, failed = false) {
  told.textContent = text;
  told.classList.toggle("failed", failed);
}

/* Asks the server, and returns its answer, or throws an Error with a text for the user. */
async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(texts.failed);
  }
  if (response.ok) return response;
  const known = { 404: texts.gone, 413: texts.large, 415: texts.unreadable }[response.status];
  throw new Error(known ?? (await response.json().catch(() => ({ error: texts.failed }))).error);
}

/* The state is in the address, so that going back, reloading and the other language keep it. */
function remember(push) {
  const state = new URLSearchParams({ lang: document.body.dataset.language });
  if (asked?.kind === "sentence") state.set("q", asked.q);
  if (asked?.kind === "similar") state.set("similar", asked.id);
  if (folder.value) state.set("folder", folder.value);
  history[push ? "pushState" : "replaceState"](null, "", `?${state}`);
  state.set("lang", other.hreflang);
  other.href = `?${state}`;
}

function recall() {
  const state = new URLSearchParams(location.search);
  folder.value = state.get("folder") ?? "";
  if (folder.selectedIndex < 0) folder.value = "";
  sentence.value = state.get("q") ?? sentence.value;
  asked = state.has("similar") ? { kind: "similar", id: state.get("similar") } : sentence.value.trim() ? { kind: "sentence", q: sentence.value } : null;
  shown = STEP;
  remember(false);
  search();
}

function begin(question, push = true) {
  asked = question;
  shown = STEP;
  remember(push);
  search();
}

async function search() {
  clearTimeout(timer);
  running?.abort();
  like.hidden = asked?.kind !== "similar" && asked?.kind !== "picture";
  if (!asked) {
    gallery.replaceChildren();
    more.hidden = true;
    return say(texts.start);
  }
  const own = (running = new AbortController()), query = new URLSearchParams({ k: shown, folder: folder.value });
  if (asked.kind === "sentence") query.set("q", asked.q);
  const place = { sentence: "search", similar: `similar/${encodeURIComponent(asked.id)}`, picture: "picture" }[asked.kind];
  const options = asked.kind === "picture" ? { method: "POST", body: asked.file } : {};
  gallery.classList.add("old");
  say(texts.searching);
  try {
    const found = await (await ask(`/api/${place}?${query}`, { ...options, signal: own.signal })).json();
    if (running !== own) return;
    show(found);
  } catch (error) {
    if (running !== own) return;
    gallery.replaceChildren();
    more.hidden = true;
    say(error.message, true);
  }
  gallery.classList.remove("old");
}

function show(found) {
  if (!like.hidden) {
    const image = like.querySelector("img");
    if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
    image.hidden = asked.kind !== "similar";
    if (asked.kind === "similar") image.src = `/thumbnail/${encodeURIComponent(asked.id)}`;
    like.querySelector("b").textContent = found.name ?? asked.file.name;
  }
  const focused = gallery.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
  gallery.replaceChildren(...found.hits.map(card));
  if (focused) [...gallery.children].find((item) => item.dataset.id === focused)?.querySelector("a").focus();
  more.hidden = found.hits.length < shown || shown >= MOST;
  say(found.hits.length ? filled(texts.found, { n: found.hits.length, ms: found.ms }) : texts.none);
}

function card({ id, name, score }, rank) {
  const image = element("img", { src: `/thumbnail/${id}`, alt: name, loading: "lazy" });
  const original = element("a", { href: `/original/${id}`, target: "_blank", rel: "noopener", title: texts.original }, image);
  const box = element("input", { type: "checkbox", checked: chosen.has(id), title: texts.select });
  box.setAttribute("aria-label", `${texts.select}: ${name}`);
  const end = name.lastIndexOf("/"), facts = `${rank + 1} · ${texts.score} ${score.toFixed(2)}`;
  const made = element("li", {}, original, element("label", {}, box),
    element("p", { title: name }, element("b", {}, name.slice(end + 1)), element("br"), name.slice(0, end), element("br"), facts),
    element("button", { type: "button", className: "like" }, texts.like));
  made.dataset.id = id;
  made.classList.toggle("chosen", box.checked);
  return made;
}

function choose(item, is) {
  chosen[is ? "add" : "delete"](item.dataset.id);
  item.classList.toggle("chosen", is);
  item.querySelector("input").checked = is;
  showSelection();
}

function showSelection() {
  selection.hidden = !chosen.size;
  selection.querySelector("b").textContent = filled(texts.selected, { n: chosen.size });
}

async function download(kind) {
  try {
    const response = await ask(`/api/export?as=${kind}`, { method: "POST", body: [...chosen].join("\n") });
    const link = element("a", { href: URL.createObjectURL(await response.blob()), download: `images.${kind}` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    say(error.message, true);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  begin(sentence.value.trim() ? { kind: "sentence", q: sentence.value } : null);
});
sentence.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => begin(sentence.value.trim() ? { kind: "sentence", q: sentence.value } : null, asked?.kind !== "sentence"), PAUSE);
});
picture.addEventListener("change", () => {
  if (picture.files.length) begin({ kind: "picture", file: picture.files[0] });
  picture.value = "";
});
folder.addEventListener("change", () => begin(asked));
more.addEventListener("click", () => {
  shown = Math.min(shown + STEP, MOST);
  search();
});
like.querySelector("button").addEventListener("click", () => form.requestSubmit());
gallery.addEventListener("click", (event) => {
  const item = event.target.closest("li");
  if (event.target.matches(".like")) begin({ kind: "similar", id: item.dataset.id });
});
gallery.addEventListener("change", (event) => choose(event.target.closest("li"), event.target.checked));
selection.addEventListener("click", (event) => {
  const kind = event.target.dataset.as;
  if (kind) return download(kind);
  if (kind === "") {
    chosen.clear();
    for (const item of gallery.children) choose(item, false);
    showSelection();
  }
});
window.addEventListener("popstate", recall);

/* From image to image by arrows: the links of the cards have the focus. */
gallery.addEventListener("keydown", (event) => {
  const item = event.target.closest("li"), items = [...gallery.children];
  if (!event.target.matches("a") || event.ctrlKey || event.metaKey || event.altKey) return;
  const columns = items.filter((other) => other.offsetTop === items[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (step) {
    event.preventDefault();
    (items[items.indexOf(item) + step] ?? (event.key === "ArrowUp" ? null : item))?.querySelector("a").focus();
    if (event.key === "ArrowUp" && items.indexOf(item) < columns) sentence.focus();
  } else if (event.key === " ") {
    event.preventDefault();
    choose(item, !chosen.has(item.dataset.id));
  } else if (event.key.toLowerCase() === "m") {
    event.preventDefault();
    begin({ kind: "similar", id: item.dataset.id });
  }
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], select");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    sentence.focus();
    sentence.select();
  } else if (event.key === "Escape" && !typing) {
    sentence.focus();
  } else if (event.key === "ArrowDown" && event.target === sentence && gallery.firstChild) {
    event.preventDefault();
    gallery.querySelector("a").focus();
  }
});

recall();
