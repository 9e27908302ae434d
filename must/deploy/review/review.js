"use strict";
// One page, two homes: served by `must review`, which keeps every answer on its disk before it gives the next picture;
// or a file that carries its pictures, keeps answers in this browser and saves them as answers.jsonl.

const $ = (id) => document.getElementById(id);
// What cannot be seen but changes what is: control characters, and those that turn the direction of writing.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const visible = (text) => text.replace(UNSEEN, "\ufffd");
const stored = (name, value) => {
  try { return value === undefined ? localStorage.getItem(name) : localStorage.setItem(name, value); } catch { return null; }
};

class Served {
  constructor() {
    let page = null;
    try { page = sessionStorage.getItem("page"); } catch {}
    this.page = page || Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("");
    try { sessionStorage.setItem("page", this.page); } catch {}
  }
  async ask(address, said) {
    const options = said && { method: "POST", body: JSON.stringify({ page: this.page, ...said }) };
    let reply;
    try { reply = await fetch(address, options); } catch { throw new Error("`must review` does not answer; is it still running? Nothing is lost: start it again, and open the address that it prints."); }
    const content = await reply.json();
    if (!reply.ok) throw new Error(content.error);
    return content;
  }
  start() { return this.ask("start"); }
  next() { return this.ask("next", {}); }
  answer(said) { return this.ask("answer", said); }
  undo(said) { return this.ask("undo", said); }
  leave() { navigator.sendBeacon("leave", JSON.stringify({ page: this.page })); }
  source(size, number) { return `${size}/${number}`; }
}

class Carried {
  constructor(content) {
    this.content = content;
    this.key = "must-review-" + content.pictures.map((picture) => picture.sha256.slice(0, 4)).join("").slice(0, 64);
    this.lines = JSON.parse(stored(this.key) || "[]");
  }
  get given() {
    const given = new Map();
    for (const line of this.lines) line.undone ? given.delete(line.sha256) : given.set(line.sha256, line);
    return given;
  }
  now(position) {
    const given = this.given, open = this.content.pictures.filter((picture) => !given.has(picture.sha256));
    const picture = position === undefined ? open[0] : this.content.pictures.find((one) => one.position === position);
    const count = `${given.size.toLocaleString("en")} ${given.size === 1 ? "answer" : "answers"}`;
    return { picture: picture || null, state: { curve: [],
      text: `${count}, ${open.length.toLocaleString("en")} left in this file. Save answers.jsonl when you stop, and send it to whoever sent you this page.` } };
  }
  add(position, rest) {
    const { image, sha256, names } = this.content.pictures.find((one) => one.position === position);
    this.lines.push({ image, sha256, ...rest, ...(this.content.picked && { picked: true }), when: new Date().toISOString(), shown: names });
    stored(this.key, JSON.stringify(this.lines));
  }
  async start() { return this.content; }
  async next() { return this.now(); }
  async answer({ position, kind, label, who }) {
    this.add(position, { ...(kind === "unsure" ? { unsure: true } : { label: kind === "label" ? label : null }), who });
    return this.now();
  }
  async undo({ position, who }) { this.add(position, { unsure: true, undone: true, who }); return this.now(position); }
  leave() {}
  source(size, number) { return this.content.images[`${size}/${number}`] || ""; }
  save() {
    const escaped = (line) => JSON.stringify(line).replace(/[\u007f-\uffff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(this.lines.map((line) => escaped(line) + "\n"), { type: "application/jsonl" }));
    link.download = "answers.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

const carried = $("carried");
const home = carried ? new Carried(JSON.parse(carried.textContent)) : new Served();
let classes = [], picture = null, busy = false, history = [], chosen = 0;

function show({ state, picture: next }) {
  picture = next;
  $("progress").textContent = state.text;
  $("taught").hidden = !state.curve.length;
  $("curve").replaceChildren(...state.curve.map(([answers, changed, ...right]) => {
    const [mean, low, high] = right.map((share) => `${Math.round(100 * share)}%`), row = document.createElement("tr");
    for (const text of [answers.toLocaleString("en"), changed.toLocaleString("en"), `${mean} (${low} to ${high})`]) row.insertCell().textContent = text;
    return row;
  }));
  $("undo").disabled = $("back").disabled = !history.length;
  $("main").hidden = !next;
  $("done").hidden = !!next;
  close();
  if (!next) {
    $("end").textContent = "All pictures are answered.";
    $("endtext").textContent = state.text;
    return;
  }
  $("broken").hidden = true;
  $("picture").hidden = false;
  $("picture").src = home.source("large", next.number);
  $("another").hidden = next.names.length >= classes.length;
  $("names").classList.toggle("many", next.names.length > 5);
  $("names").replaceChildren(...next.names.map((name, place) => {
    const button = document.createElement("button"), key = document.createElement("kbd"), text = document.createElement("bdi");
    key.textContent = "1234567890"[place] || "";
    text.textContent = visible(name);
    button.append(...(place < 10 ? [key, text] : [text]));
    button.onclick = () => say("label", name);
    return button;
  }));
  const strip = next.similar.map((number) => {
    const image = document.createElement("img");
    image.alt = "";
    image.onload = tiny;
    image.onerror = () => image.remove();
    image.src = home.source("small", number);
    return image;
  });
  $("strip").replaceChildren(...strip);
  $("similar").hidden = !strip.length;
}

function tiny() { this.classList.toggle("tiny", this.naturalWidth < 100); }
$("picture").onload = tiny;
$("picture").onerror = () => { $("picture").hidden = true; $("broken").hidden = false; };

async function turn(action) {
  if (busy) return;
  busy = true;
  try { show(await action()); $("error").hidden = true; }
  catch (error) { $("error").textContent = error.message; $("error").hidden = false; }
  busy = false;
}

const say = (kind, label) => picture && turn(async () => {
  const position = picture.position;
  const reply = await home.answer({ position, kind, label, who: $("who").value.trim() });
  history.push(position);
  return reply;
});
const undo = () => history.length && turn(async () => {
  const reply = await home.undo({ position: history[history.length - 1], who: $("who").value.trim() });
  history.pop();
  return reply;
});

const LISTED = 500; // classes that the list shows at most
function open() {
  if ($("another").hidden) return;
  $("search").hidden = false; $("typed").value = ""; search(); $("typed").focus();
}
function close() { $("search").hidden = true; $("typed").blur(); }
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const parts = (text) => plain(text).split(/[\s_-]+/).filter(Boolean);
// Every typed word is a word of the name (3), begins one (2) or is inside (1); 0: one is none of these.
function likeness(name, typed) {
  const words = parts(name), whole = plain(name);
  const ranks = typed.map((word) => words.includes(word) ? 3 : words.some((one) => one.startsWith(word)) ? 2 : whole.includes(word) ? 1 : 0);
  return ranks.includes(0) ? 0 : ranks.reduce((sum, rank) => sum + rank);
}
function search() {
  const typed = parts($("typed").value);
  const ranked = classes.map((name) => [name, likeness(name, typed)]).filter(([, rank]) => rank || !typed.length);
  const matching = ranked.sort(([, one], [, other]) => other - one).map(([name]) => name), hidden = matching.length - LISTED;
  $("others").textContent = hidden > 0 ? `and ${hidden} more: type on` : typed.length && !matching.length ? "no class has that in its name" : "";
  chosen = 0;
  $("found").replaceChildren(...matching.slice(0, LISTED).map((name, place) => {
    const entry = document.createElement("li"), text = document.createElement("bdi");
    text.textContent = visible(name);
    entry.append(text);
    entry.id = `found-${place}`;
    entry.setAttribute("role", "option");
    entry.onclick = () => say("label", name);
    return entry;
  }));
  mark();
}
function mark() {
  const entries = [...$("found").children];
  entries.forEach((entry, place) => entry.setAttribute("aria-selected", place === chosen));
  entries[chosen]?.scrollIntoView({ block: "nearest" });
  entries.length ? $("typed").setAttribute("aria-activedescendant", `found-${chosen}`) : $("typed").removeAttribute("aria-activedescendant");
}
$("typed").oninput = search;
$("typed").onkeydown = (event) => {
  const entries = $("found").children;
  if (event.isComposing) return;
  if (event.key === "Escape") close();
  else if (event.key === "Enter" && entries[chosen]) entries[chosen].click();
  else if (event.key === "ArrowDown" && entries.length) chosen = (chosen + 1) % entries.length;
  else if (event.key === "ArrowUp" && entries.length) chosen = (chosen + entries.length - 1) % entries.length;
  else return;
  event.preventDefault();
  mark();
};

const KEYS = { a: open, n: () => say("none"), c: () => say("unsure"), z: undo, Backspace: undo };
document.onkeydown = (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const name = picture && picture.names["1234567890".indexOf(event.key)];
  const action = name !== undefined && /^[0-9]$/.test(event.key) ? () => say("label", name) : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
};
$("another").onclick = open;
$("none").onclick = () => say("none");
$("unsure").onclick = () => say("unsure");
$("undo").onclick = $("back").onclick = undo;
$("who").onchange = () => stored("must-review-who", $("who").value.trim());
window.addEventListener("pagehide", () => home.leave());
if (carried) { $("save").hidden = false; $("save").onclick = () => home.save(); }

turn(async () => {
  const start = await home.start();
  classes = start.classes;
  $("who").value = stored("must-review-who") || start.who;
  return home.next();
});
