"use strict";
// `must review` writes every answer to its disk before it gives the next picture.

const $ = (id) => document.getElementById(id);
// Invisible characters that change how text is shown: control characters, and those that change its direction.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const visible = (text) => text.replace(UNSEEN, "\ufffd");
const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const stored = (name, value, where = "localStorage") => {
  try { return value === undefined ? window[where].getItem(name) : window[where].setItem(name, value); } catch { return null; }
};
const random = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("");
function kept(name, where) {
  const value = stored(name, undefined, where) || random();
  stored(name, value, where);
  return value;
}
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { aria = {}, ...rest } = properties;
  Object.assign(element, rest);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  element.append(...children);
  return element;
}
const named = (text) => make("bdi", { textContent: visible(text) });
const key = (text) => make("kbd", { textContent: text });

const page = kept("page", "sessionStorage"); // this tab
const browser = kept("must-review-browser", "localStorage"); // all tabs: an undo takes back answers of any of them
async function ask(address, request) {
  const options = { method: "POST", body: JSON.stringify({ page, browser, who: $("who").value.trim(), finish: finishing, more, ...request }) };
  let reply;
  try { reply = await fetch(address, options); } catch { throw new Error("`must review` does not answer; is it still running? Nothing is lost: start it again, and open the address that it prints."); }
  const content = await reply.json();
  if (!reply.ok) throw new Error(content.error);
  return content;
}

const LETTERS = "1234567890-=qwrtyuipdhjklxvbm,", LISTED = 500; // keys of classes; classes that the list shows at most
const NUMBERS = "zero one two three four five six seven eight nine".split(" ");
const KINDS = {
  random: "Drawn at random: your answer measures the accuracy.",
  coverage: "Chosen to teach: unlike the pictures answered so far. It corrects labels and does not measure.",
  left: "Left to be named: its label is not sure enough. Your answer corrects labels and does not measure.",
};
let keys = [...LETTERS]; // of `keyed`, in its order
let keyed = []; // the classes with a button and a key, which they keep: all if there are few, else those used so far
let classes = [], view = "", picture = null, grid = null, busy = false, chosen = 0, listed = [], pointed = null;
let finishing = false, more = false; // name the pictures that are left; go on after the end
let also = new Set(), wrong = new Set(), queue = []; // similar pictures; marked ones of the grid, and those still to be named

async function turn(action) {
  if (busy) return;
  busy = true;
  $("note").textContent = "";
  try { await action(); $("error").hidden = true; }
  catch (error) { $("error").textContent = error.message; $("error").hidden = false; }
  busy = false;
}

function look(name) {
  view = name;
  for (const one of ["ask", "grid", "done"]) {
    $(one).hidden = one !== name;
    one === name ? $(`to-${one}`).setAttribute("aria-current", "page") : $(`to-${one}`).removeAttribute("aria-current");
  }
}

function bar(state) {
  $("question").textContent = `Is the model better than zero-shot? ${state.counting ? "…" : state.verdict || "Not decided yet: no answers."}`;
  $("progress").textContent = state.text;
  $("problem").textContent = state.problem;
  $("problem").hidden = !state.problem;
  $("gauge").hidden = !state.gain;
  if (state.gain) {
    const [value, low, high] = state.gain, most = Math.max(10, Math.abs(low), Math.abs(high)), at = (points) => `${50 + 48 * points / most}%`;
    $("span").style.left = at(low);
    $("span").style.width = `${48 * (high - low) / most}%`;
    $("dot").style.left = at(value);
    $("gauge").className = low > 0 ? "yes" : high < 0 ? "no" : "";
    $("gauge").setAttribute("aria-label", `gain of the model over zero-shot: ${value.toFixed(0)} points, between ${low.toFixed(1)} and ${high.toFixed(1)}`);
  }
  const set = state.set, share = (count) => `${100 * count / set.pictures}%`;
  $("set").hidden = !set;
  if (set) {
    $("set-done").style.width = share(set.answered);
    $("set-sure").style.width = share(set.accepted);
    $("set").setAttribute("aria-label", `${set.answered} answered, ${set.accepted} need not be looked at, ${set.left} left`);
    $("set-left").textContent = state.finished ? "finished" : `${set.left.toLocaleString("en")} left`;
  }
  const { labels, true: known } = state, percent = (part) => `${(100 * part).toFixed(1)}%`;
  $("right").hidden = !labels && !known;
  $("right-text").textContent = `Right labels: ${[
    labels && `${percent(labels[0])} by your answers (${percent(labels[1])} to ${percent(labels[2])})`,
    known && `${percent(known[1])} in truth, zero-shot ${percent(known[0])}`,
  ].filter(Boolean).join("; ")}.`;
  for (const [id, part] of Object.entries({ span: labels && labels[1], dot: labels && labels[0], zero: known && known[0], true: known && known[1] })) {
    $(`right-${id}`).hidden = typeof part !== "number";
    $(`right-${id}`).style.left = percent(part);
  }
  if (labels) $("right-span").style.width = percent(labels[2] - labels[1]);
  $("to-left").hidden = !set || state.finished || set.left === set.unread;
  if (set) $("left-text").textContent = finishing ? "go on with other pictures" : `name the ${(set.left - set.unread).toLocaleString("en")} that are left`;
  $("undo").disabled = $("grid-undo").disabled = $("done-undo").disabled = !state.undo;
  $("history").hidden = !state.recent.length;
  $("recent").replaceChildren(...state.recent.map(({ number, answer }) => {
    const button = make("button", { onclick: () => again(number), aria: { label: `${visible(answer)}; change this answer` } }, small(number));
    return make("li", {}, button, make("span", { title: visible(answer) }, named(answer)));
  }));
}

function small(number) {
  return make("img", { alt: "", onerror() { this.hidden = true; }, onmouseenter: () => { pointed = number; }, onmouseleave: () => { pointed = null; }, src: `small/${number}` });
}

function show({ state, picture: next }) {
  bar(state);
  picture = next;
  also = new Set();
  if (!next) return finish();
  look("ask");
  $("broken").hidden = true;
  $("picture").hidden = $("zoom-in").hidden = false;
  if ($("picture").dataset.number !== String(next.number)) $("picture").src = `large/${next.number}`;
  $("picture").dataset.number = next.number;
  const marked = queue.length || grid && grid.asking, progress = `${(state.answers + 1).toLocaleString("en")} of ${state.of.toLocaleString("en")}`;
  $("place").textContent = marked ? `of those you marked, ${queue.length} left` : next.answer ? "answered before" : `picture ${progress}`;
  const asked = !marked && KINDS[next.sampled];
  $("kind").textContent = asked ? `${asked}${next.answer && next.sampled === "random" ? " Answered before; your answer may be the same." : ""}` : "An answer here corrects labels and does not measure.";
  $("kind").className = asked ? next.sampled : "";
  buttons();
  [...$("names").children].forEach((button, place) => button.classList.toggle("was", keyed[place] === next.answer));
  $("typed").value = "";
  if (keyed.length < classes.length) search();
  $("similar").hidden = !next.similar.length;
  $("strip").replaceChildren(...next.similar.map(({ number, open }) => {
    const button = make("button", { disabled: !open, aria: { pressed: "false", label: open ? "a similar picture: answer it too" : "a similar picture" } }, small(number));
    button.dataset.number = number;
    button.onclick = () => mark(button, also);
    return button;
  }));
}

function buttons() {
  $("search").hidden = keyed.length === classes.length;
  $("names").hidden = !keyed.length;
  if ($("names").children.length === keyed.length) return;
  $("names").className = keyed.length > 12 ? "many most" : keyed.length > 5 ? "many" : "";
  $("names").replaceChildren(...keyed.map((name, place) => make("button", { onclick: () => say("label", name) }, key(keys[place]), named(name))));
}
function keysOf(names) { // classes that are digits have these as keys; the others letters first
  const digits = names.map((name) => NUMBERS.includes(name.toLowerCase()) ? String(NUMBERS.indexOf(name.toLowerCase())) : name);
  const own = digits.map((digit, place) => /^[0-9]$/.test(digit) && digits.indexOf(digit) === place);
  const free = [...LETTERS].filter((letter) => !digits.includes(letter));
  const others = own.includes(true) ? [...free.filter((letter) => !/[0-9]/.test(letter)), ...free.filter((letter) => /[0-9]/.test(letter))] : free;
  return digits.map((digit, place) => own[place] ? digit : others.shift());
}
function giveKey(label) { // with many classes: to one that is used for the first time
  if (keyed.includes(label) || keyed.length === LETTERS.length) return;
  keyed.push(label);
  stored("must-review-keys", JSON.stringify(keyed));
}

function mark(button, set) {
  const number = Number(button.dataset.number), on = !set.has(number);
  on ? set.add(number) : set.delete(number);
  button.setAttribute("aria-pressed", on);
  if (set === wrong) accepting();
}

$("picture").onload = function () {
  const side = Math.max(this.naturalWidth, this.naturalHeight), scale = Math.min(8, 640 / side);
  this.style.width = scale > 1 ? `${Math.round(this.naturalWidth * scale)}px` : "";
};
$("picture").onerror = () => { $("picture").hidden = $("zoom-in").hidden = true; $("broken").hidden = false; };

const say = (kind, label) => view === "ask" && picture && turn(async () => {
  $("typed").blur();
  if (kind === "label") giveKey(label);
  const marked = !!(grid && grid.asking);
  const reply = await ask("answer", { number: picture.number, kind, label, also: [...also], grid: marked });
  if (marked) await nextMarked(); else show(reply);
});
const undo = () => !$("undo").disabled && turn(async () => {
  const reply = await ask("undo");
  if (view === "grid") await load(grid.label); else show(reply);
  $("note").textContent = `${counted(reply.undone, "answer")} taken back.`;
});
const again = (number) => turn(async () => show(await ask("show", { number })));
const one = (choose) => turn(async () => { choose(); grid = null; queue = []; show(await ask("next")); });
const rest = () => one(() => { more = finishing; finishing = !finishing; });
const onward = () => one(() => { more ||= view === "done" && $("end").textContent.startsWith("Finished"); });
const finish = async () => {
  const reply = await ask("end"), { finished, answers, of } = reply.state;
  const besides = reply.state.unsure ? `, but for ${reply.state.unsure.toLocaleString("en")} that you could not tell` : "";
  const title = finished ? `Finished${besides}` : answers < of ? "Result so far" : "All pictures are answered.";
  bar(reply.state);
  look("done");
  $("end").textContent = title;
  $("endtext").textContent = reply.rows.length ? `How many of 100 pictures each names right, by ${counted(reply.measured, "answer")} about pictures drawn at random:` : reply.state.text;
  const percent = (share) => `${Math.round(100 * share)}%`;
  $("rows").replaceChildren(...reply.rows.map(([name, mean, low, high]) => {
    const line = make("i"), point = make("b"), cells = [percent(mean), `${percent(low)} to ${percent(high)}`].map((textContent) => make("td", { textContent }));
    Object.assign(line.style, { left: percent(low), width: percent(high - low) });
    point.style.left = percent(mean);
    return make("tr", {}, make("th", { scope: "row", textContent: name }), ...cells, make("td", { className: "bar" }, make("div", {}, line, point)));
  }));
  $("without-review").hidden = !reply.accepted;
  if (reply.accepted) {
    $("accepted").textContent = reply.accepted;
    $("lights").textContent = reply.classes.some(({ light }) => light) ? reply.lights : "";
    const cell = (textContent) => make("td", { textContent });
    const titles = make("tr", {}, ...["class", "", "labels", "accepted", "answers", "right", "confused with"].map((textContent) => make("th", { textContent })));
    $("classes").replaceChildren(titles, ...reply.classes.map(({ class: name, light, images, accepted, answers, right, confused_with: other }) => make("tr", {},
      make("th", { scope: "row" }, !classes.includes(name) ? named(name) : make("button", { title: "its pictures", onclick: () => open(name) }, named(name))), make("td", { className: light, textContent: light }), cell(images.toLocaleString("en")), cell(accepted?.toLocaleString("en") ?? ""),
      cell(answers), cell(right ? `${percent(right[0])} (${percent(right[1])} to ${percent(right[2])})` : ""), make("td", {}, named(other)))));
  }
  $("changed").textContent = !reply.state.answers ? "" : `${counted(reply.relabelled, "picture")} got another label from you than from the model.${reply.changed ? ` With ${counted(reply.changed[0], "answer")}, ${counted(reply.changed[1], "label")} of other pictures changed.` : ""}`;
  $("type-next").hidden = !reply.commands.length;
  $("commands").replaceChildren(...reply.commands.map((textContent) => make("pre", { textContent })));
  $("back").hidden = title === "All pictures are answered.";
  $("back-text").textContent = finished ? "answer more pictures" : "back to the pictures";
  const set = reply.state.set;
  $("saved").hidden = !finished || !set;
  if (set) $("saved").textContent = `You looked at ${counted(set.answered, "picture")}. ${counted(set.accepted, "picture")} (${percent(set.accepted / set.pictures)}) nobody has to look at.`;
};

async function load(label) {
  const sort = $("sort").value, reply = await ask("grid", { label, sort });
  if (!reply.left && label && reply.counts.some(Boolean)) return load(null);
  grid = reply;
  wrong = new Set();
  bar(reply.state);
  look("grid");
  $("class").replaceChildren(...classes.map((value, place) => make("option", { value, textContent: `${visible(value)} (${reply.counts[place].toLocaleString("en")})`, selected: value === reply.label })));
  $("grid-title").replaceChildren("The model calls these “", named(reply.label), "”");
  $("grid-help").textContent = reply.left ? `${reply.pictures.length} of ${reply.left.toLocaleString("en")} without an answer. Mark the wrong ones, then accept the others. These answers correct labels and are left out of the accuracy, as their pictures are not drawn at random.` : "There are no such pictures without an answer.";
  $("tiles").replaceChildren(...reply.pictures.map(({ number, predicted: [zeroShot, , refined] }) => {
    const others = [zeroShot !== reply.label && `zero-shot: ${zeroShot}`, refined !== reply.label && `refined: ${refined}`].filter(Boolean).map(visible).join(", ");
    const button = make("button", { title: others, aria: { pressed: "false", label: `picture ${number + 1}${others && `, ${others}`}` } }, small(number));
    button.dataset.number = number;
    button.onclick = () => mark(button, wrong);
    return button;
  }));
  accepting();
}
function accepting() {
  const right = grid.pictures.length - wrong.size, rest = wrong.size ? `the other ${right}` : `all ${right}`;
  $("accept").hidden = !grid.pictures.length;
  $("accept-text").replaceChildren(...(right ? [`accept ${rest} as “`, named(grid.label), "”"] : ["name the marked ones"]));
}
const open = (label) => turn(() => load(label));
const accept = () => grid && view === "grid" && grid.pictures.length && turn(async () => {
  const right = grid.pictures.map(({ number }) => number).filter((number) => !wrong.has(number));
  if (right.length) await ask("answer", { kind: "label", label: grid.label, also: right, grid: true });
  queue = [...wrong];
  await nextMarked();
});
async function nextMarked() {
  grid.asking = queue.length > 0;
  if (!grid.asking) return load(grid.label);
  show(await ask("show", { number: queue.shift() }));
}

const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const parts = (text) => plain(text).split(/[\s_-]+/).filter(Boolean);
// Every typed word is a word of the name (3), begins one (2) or is inside (1); 0: one is none of these.
function likeness(name, typed) {
  const words = parts(name), whole = plain(name);
  const ranks = typed.map((word) => words.includes(word) ? 3 : words.some((one) => one.startsWith(word)) ? 2 : whole.includes(word) ? 1 : 0);
  return ranks.includes(0) ? 0 : ranks.reduce((sum, rank) => sum + rank, 0);
}
function search() {
  const typed = parts($("typed").value), likely = new Set(picture.likely);
  const ranked = [...likely, ...classes.filter((name) => !likely.has(name))].map((name) => [name, likeness(name, typed)]).filter(([, rank]) => rank || !typed.length);
  const matching = ranked.sort(([, one], [, other]) => other - one).map(([name]) => name), hidden = matching.length - LISTED;
  $("others").textContent = hidden > 0 ? `and ${hidden} more: type on` : typed.length && !matching.length ? "no class has that in its name" : "";
  listed = matching.slice(0, LISTED);
  $("found").replaceChildren(...listed.map((name, place) => make("li", { id: `found-${place}`, onclick: () => say("label", name), aria: { role: "option" } }, named(name))));
  choose(0);
}
function choose(place) {
  const entries = $("found").children;
  chosen = entries.length ? (place + entries.length) % entries.length : 0;
  for (const entry of entries) entry.setAttribute("aria-selected", entry === entries[chosen]);
  entries.length ? $("typed").setAttribute("aria-activedescendant", `found-${chosen}`) : $("typed").removeAttribute("aria-activedescendant");
  if (place) entries[chosen]?.scrollIntoView({ block: "nearest" });
}
$("typed").oninput = search;
$("typed").onkeydown = (event) => {
  const action = { ArrowDown: () => choose(chosen + 1), ArrowUp: () => choose(chosen - 1), Enter: () => listed[chosen] && say("label", listed[chosen]), Escape: () => $("typed").blur() }[event.key];
  if (!action || event.isComposing) return;
  event.preventDefault();
  action();
};

function zoom() {
  const number = pointed ?? (document.activeElement.dataset.number ? Number(document.activeElement.dataset.number) : view === "ask" && picture ? picture.number : null);
  if (number === null) return;
  $("full").src = `full/${number}`;
  $("zoom").classList.remove("own");
  $("zoom").showModal();
}
function closer() {
  const larger = $("full").naturalWidth > innerWidth || $("full").naturalHeight > innerHeight;
  if ($("zoom").classList.contains("own") || !larger) return $("zoom").close();
  $("zoom").classList.add("own");
}
function move(step) {
  const tiles = [...$("tiles").children], at = tiles.indexOf(document.activeElement);
  tiles[at < 0 ? 0 : Math.min(Math.max(at + step, 0), tiles.length - 1)]?.focus();
}
const across = () => getComputedStyle($("tiles")).gridTemplateColumns.split(" ").length;
const similar = () => {
  const free = [...$("strip").children].filter((button) => !button.disabled), all = also.size === free.length;
  for (const button of free) if (all || !also.has(Number(button.dataset.number))) mark(button, also);
};
const KEYS = {
  n: () => say("none"), c: () => say("unsure"), z: undo, f: zoom, g: () => open(grid && grid.label), o: onward, e: () => turn(finish), a: accept,
  ".": () => !$("to-left").hidden && rest(), "?": () => $("keys").showModal(), "/": () => $("typed").focus(), s: similar,
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), ArrowDown: () => move(across()), ArrowUp: () => move(-across()),
};
document.onkeydown = (event) => {
  if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey || event.repeat && !event.key.startsWith("Arrow")) return;
  if (document.querySelector("dialog[open]")) {
    if ($("zoom").open && event.key.toLowerCase() === "f") closer();
    return;
  }
  if (event.key.startsWith("Arrow") && view !== "grid") return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key, place = pressed.length === 1 ? keys.indexOf(pressed) : -1;
  const action = view === "ask" && picture && place >= 0 && place < keyed.length ? () => say("label", keyed[place]) : KEYS[pressed];
  if (!action) return;
  event.preventDefault();
  action();
};
for (const [id, action] of Object.entries({
  none: KEYS.n, unsure: KEYS.c, undo, "grid-undo": undo, "done-undo": undo, larger: zoom, "zoom-in": zoom, "zoom-out": closer, accept, back: onward, "to-left": rest,
  "to-ask": onward, "to-grid": KEYS.g, "to-done": KEYS.e, "to-keys": KEYS["?"], "keys-close": () => $("keys").close(),
})) $(id).onclick = action;
$("class").onchange = $("sort").onchange = (event) => open(event.target.id === "class" ? event.target.value : grid.label);
$("who").onchange = () => stored("must-review-who", $("who").value.trim());
window.addEventListener("pagehide", () => navigator.sendBeacon("leave", JSON.stringify({ page })));

turn(async () => {
  let start = await ask("start");
  for (; start.wait; start = await ask("start")) {
    $("question").textContent = start.wait;
    await new Promise((done) => setTimeout(done, 500));
  }
  classes = start.classes;
  if (classes.length <= LETTERS.length) keys = keysOf(classes);
  keyed = classes.length <= LETTERS.length ? classes : JSON.parse(stored("must-review-keys") || "[]").filter((name) => classes.includes(name));
  $("who").value = stored("must-review-who") || start.who;
  show(await ask("next"));
});
