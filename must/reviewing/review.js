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
const bdi = (text) => make("bdi", { textContent: visible(text) });
const key = (text) => make("kbd", { textContent: text });

const page = kept("page", "sessionStorage"); // this tab
const browser = kept("must-review-browser", "localStorage"); // all tabs: an undo takes back answers of any of them
async function ask(address, request) {
  const options = { method: "POST", body: JSON.stringify({ page, browser, who: $("who").value.trim(), mode, more, ...request }) };
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
  left: "Left to be named: its label is not sure enough.",
};
let keys = [...LETTERS]; // of `keyed`, in its order
let keyed = []; // the classes with a button and a key, which they keep: all if there are few, else those used so far
let classes = [], view = "", picture = null, screen = null, busy = false, chosen = 0, listed = [], pointed = null;
let changes = {}; // how classes are added and renamed; {}: that is not known
let mode = "", more = false; // one, screens, or what takes fewer actions; go on after the end
let marked = new Set(), given = new Map(); // of the screen: numbers; number -> [kind, label]

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
  $("ask").hidden = name === "done";
  $("done").hidden = name !== "done";
  for (const [id, on] of [["to-one", "one"], ["to-screens", "screens"], ["to-done", "done"]]) on === name ? $(id).setAttribute("aria-current", "page") : $(id).removeAttribute("aria-current");
}

const WIDE = 0.2; // an interval as wide stands beside the share of right labels: after few answers
const hundred = (part) => Math.round(100 * part);
function bar(state) {
  const { set, labels, true: known } = state, number = (count) => count.toLocaleString("en"), width = (count) => `${100 * count / state.of}%`;
  const named = set ? set.named : state.answers;
  $("set-named").style.width = width(named);
  $("set-sure").style.width = width(set ? set.sure : 0);
  const counts = set ? `${number(set.named)} named, ${number(set.sure)} sure, ${number(set.left)} left` : `${number(named)} of ${number(state.of)} named`;
  const truth = known ? ` (in truth ${hundred(known[1])}; zero-shot ${hundred(known[0])})` : "";
  const within = labels && labels[2] - labels[1] > WIDE ? ` (${hundred(labels[1])} to ${hundred(labels[2])})` : "";
  const right = labels ? `; of 100 labels ${hundred(labels[0])} are right${within}${truth}` : state.counting ? "; …" : truth && `; of 100 labels${truth}`;
  $("set").setAttribute("aria-label", counts);
  $("sentence").textContent = `${counts}${right}${state.finished ? ". Finished" : state.actions ? `. About ${counted(state.actions, "click")} to go` : ""}.`;
  $("numbers").textContent = state.text;
  $("problem").textContent = state.problem;
  $("problem").hidden = !state.problem;
  $("undo").disabled = $("done-undo").disabled = !state.undo;
  $("history").hidden = !state.recent.length;
  $("recent").replaceChildren(...state.recent.map(({ number, answer }) => {
    const button = make("button", { onclick: () => again(number), aria: { label: `${visible(answer)}; change this answer` } }, small(number));
    return make("li", {}, button, make("span", { title: visible(answer) }, bdi(answer)));
  }));
}

function small(number) {
  return make("img", { alt: "", onerror() { this.hidden = true; }, onmouseenter: () => { pointed = number; }, onmouseleave: () => { pointed = null; }, src: `small/${number}` });
}

function show({ state, picture: next, screen: several }) {
  bar(state);
  picture = next;
  screen = several;
  marked = new Set();
  given = new Map();
  pointed = null; // the picture that was there is another one now
  if (!next && !several) return finish();
  look(several ? "screens" : "one");
  $("alone").hidden = !!several;
  $("screen").hidden = $("accept").hidden = !several;
  buttons();
  $("typed").value = "";
  if (keyed.length < classes.length) search();
  several ? showScreen() : showPicture(state);
}

function showPicture(state) {
  $("broken").hidden = true;
  $("picture").hidden = $("zoom-in").hidden = false;
  if ($("picture").dataset.number !== String(picture.number)) $("picture").src = `large/${picture.number}`;
  $("picture").dataset.number = picture.number;
  $("title").textContent = "What does this picture show?";
  const [folder, shown] = picture.folder || [];
  if (folder) $("kind").replaceChildren(bdi(picture.image), " · in the folder “", bdi(folder), "”, but seems to show “", bdi(shown), "”");
  else $("kind").replaceChildren(bdi(picture.image), ` · ${picture.answer ? "answered before" : KINDS[picture.sampled] || "An answer here corrects labels and does not measure."}`);
  $("kind").className = picture.sampled;
  [...$("names").children].forEach((button, place) => button.classList.toggle("was", keyed[place] === picture.answer));
}

function showScreen() {
  $("class").replaceChildren(...screen.classes.map(([value, count]) => make("option", { value, textContent: `${visible(value)} (${count.toLocaleString("en")})`, selected: value === screen.label })));
  $("title").replaceChildren(`${counted(screen.pictures.length, "picture")}: “`, bdi(screen.label), "”");
  $("kind").className = "";
  $("kind").textContent = matchMedia("(pointer: coarse)").matches ? "Tap those that are something else, then their class." : "Something else? Point at it and press the key of its class; or click several, then their class.";
  $("tiles").replaceChildren(...screen.pictures.map(({ number, image }) => {
    const button = make("button", { title: visible(image), aria: { pressed: "false", label: visible(image) } }, small(number), make("span", {}));
    button.dataset.number = number;
    button.onclick = () => mark(button, number);
    return button;
  }));
  accepting();
}
function accepting() {
  $("undo").disabled = !marked.size && !given.size && $("done-undo").disabled;
  const right = screen.pictures.length - marked.size - given.size;
  $("accept-text").replaceChildren(...(marked.size ? [`first give the ${marked.size === 1 ? "marked one its" : `${marked.size} marked their`} class`] : [given.size ? `the other ${right} are “` : `all ${right} are “`, bdi(screen.label), "”"]));
}
function give(kind, label) {
  const at = pointed ?? Number(document.activeElement.dataset.number);
  if (!marked.size && screen.pictures.some(({ number }) => number === at)) marked.add(at);
  if (!marked.size) return void ($("note").textContent = "Point at the picture that is this, or click several first.");
  for (const tile of $("tiles").children) {
    const number = Number(tile.dataset.number);
    if (!marked.has(number)) continue;
    tile.setAttribute("aria-pressed", "false");
    tile.lastChild.textContent = visible(label || (kind === "none" ? "none" : "cannot tell"));
    given.set(number, [kind, label]);
  }
  marked.clear();
  $("note").textContent = "";
  accepting();
}
const accept = () => view === "screens" && (marked.size ? void ($("note").textContent = "Choose the class of those that are marked; click them again if they are right.") : turn(async () => {
  const right = screen.pictures.map(({ number }) => number).filter((number) => !given.has(number));
  const answers = [["label", screen.label, right], ...[...given].map(([number, [kind, label]]) => [kind, label, [number]])];
  const reply = await ask("answer", { screen: answers, right: screen.label });
  if (reply.missed === undefined) return show(reply);
  $("note").textContent = "You named the outlined picture before, and it is something else: look at the others again, then Enter.";
  screen.pictures = screen.pictures.filter(({ number }) => number !== reply.missed);
  const tile = [...$("tiles").children].find((one) => one.dataset.number === String(reply.missed));
  tile.className = "missed";
  tile.onclick = null;
  accepting();
}));

function buttons() {
  $("search").hidden = keyed.length === classes.length;
  $("names").hidden = !keyed.length;
  if ($("names").children.length === keyed.length) return;
  $("names").className = keyed.length > 12 ? "many most" : keyed.length > 5 ? "many" : "";
  $("names").replaceChildren(...keyed.map((name, place) => make("button", { onclick: () => say("label", name) }, key(keys[place]), bdi(name))));
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

function mark(button, number) {
  given.delete(number);
  button.lastChild.textContent = "";
  button.setAttribute("aria-pressed", marked.delete(number) ? "false" : !!marked.add(number));
  accepting();
}

$("picture").onload = function () {
  const side = Math.max(this.naturalWidth, this.naturalHeight), scale = Math.min(8, 640 / side);
  this.style.width = scale > 1 ? `${Math.round(this.naturalWidth * scale)}px` : "";
};
$("picture").onerror = () => { $("picture").hidden = $("zoom-in").hidden = true; $("broken").hidden = false; };

const say = (kind, label) => {
  $("typed").blur();
  if (kind === "label") giveKey(label);
  if (view === "screens") return give(kind, label), buttons();
  if (view === "one" && picture) turn(async () => show(await ask("answer", { number: picture.number, kind, label })));
};
const undo = () => {
  if (view === "screens" && marked.size + given.size) return showScreen(marked.clear(), given.clear());
  if (!$("undo").disabled) turn(async () => {
    const reply = await ask("undo");
    show(reply);
    $("note").textContent = `${counted(reply.undone, "answer")} taken back.`;
  });
};
const again = (number) => turn(async () => show(await ask("show", { number })));
const onward = (name, label) => turn(async () => {
  more ||= view === "done" && $("end").textContent.startsWith("Finished");
  if (name !== undefined) mode = name;
  show(await ask("next", label && { label }));
});
const finish = async () => {
  const reply = await ask("end"), { finished, answers, of } = reply.state;
  const besides = reply.state.unsure ? `, but for ${reply.state.unsure.toLocaleString("en")} that you could not tell` : "";
  const all = !finished && answers >= of;
  const title = finished ? `Finished${besides}` : all ? `All pictures are answered${besides}.` : "Result so far";
  bar(reply.state);
  look("done");
  $("end").textContent = title;
  const { labels } = reply.state, set = reply.state.set;
  $("right").hidden = !labels;
  if (labels) $("right").replaceChildren("Of 100 labels that you get, ", make("b", { textContent: hundred(labels[0]) }), ` are right (95%: ${hundred(labels[1])} to ${hundred(labels[2])}).`);
  $("saved").hidden = !set;
  if (set) $("saved").textContent = `You named ${counted(set.named, "picture")}; ${counted(set.sure, "label")} nobody has to look at; ${set.left ? counted(set.left, "picture") : "none"} left.`;
  $("endtext").textContent = reply.rows.length ? `Of 100 pictures each names right, by ${counted(reply.measured, "answer")} at random` : reply.state.text;
  $("endtext").hidden = !$("endtext").textContent;
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
      make("th", { scope: "row" }, !classes.includes(name) ? bdi(name) : make("button", { title: "its pictures", onclick: () => onward("screens", name) }, bdi(name))), make("td", { className: light, textContent: light }), cell(images.toLocaleString("en")), cell(accepted?.toLocaleString("en") ?? ""),
      cell(answers), cell(right ? `${percent(right[0])} (${percent(right[1])} to ${percent(right[2])})` : ""), make("td", {}, bdi(other)))));
  }
  $("changed").textContent = !reply.state.answers ? "" : `${counted(reply.relabelled, "picture")} got another label from you than from the model.${reply.changed ? ` With ${counted(reply.changed[0], "answer")}, ${counted(reply.changed[1], "label")} of other pictures changed.` : ""}`;
  $("type-next").hidden = !reply.commands.length;
  $("commands").replaceChildren(...reply.commands.map((textContent) => make("pre", { textContent })));
  $("back").hidden = all;
  $("back-text").textContent = finished ? "answer more pictures" : "back to the pictures";
};

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
  $("found").replaceChildren(...listed.map((name, place) => make("li", { id: `found-${place}`, onclick: () => say("label", name), aria: { role: "option" } }, bdi(name))));
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
  const number = pointed ?? (document.activeElement.dataset.number ? Number(document.activeElement.dataset.number) : view === "one" && picture ? picture.number : null);
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
const word = (text) => /^[\w.,=/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`; // as a shell reads it
function change() { // the command that adds or renames a class
  const old = $("old").value, name = $("new").value.trim() || "NEW", { work, file } = changes;
  $("change-file").replaceChildren(...(file ? [old ? ", write the new name into " : ", write the name into ", make("code", { textContent: visible(file) })] : []));
  const also = old ? ` --rename ${word(`${old}=${name}`)}` : file ? "" : ` --classes ${word([...classes, name].join(","))}`;
  $("change-command").textContent = `must adapt ${visible(work + also)}`;
}
function move(step) {
  const tiles = [...$("tiles").children], at = tiles.indexOf(document.activeElement);
  pointed = null; // keys are for the picture that has the focus
  tiles[at < 0 ? 0 : Math.min(Math.max(at + step, 0), tiles.length - 1)]?.focus();
}
const across = () => getComputedStyle($("tiles")).gridTemplateColumns.split(" ").length;
const KEYS = {
  n: () => say("none"), c: () => say("unsure"), z: undo, f: zoom, g: () => onward("screens"), o: () => onward("one"), e: () => turn(finish), Enter: accept,
  "?": () => $("keys").showModal(), "/": () => $("typed").focus(),
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), ArrowDown: () => move(across()), ArrowUp: () => move(-across()),
};
document.onkeydown = (event) => {
  if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey || event.repeat && !event.key.startsWith("Arrow")) return;
  if (document.querySelector("dialog[open]")) {
    if ($("zoom").open && event.key.toLowerCase() === "f") closer();
    return;
  }
  if ((event.key.startsWith("Arrow") || event.key === "Enter") && view !== "screens") return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key, place = pressed.length === 1 ? keys.indexOf(pressed) : -1;
  const action = view !== "done" && place >= 0 && place < keyed.length ? () => say("label", keyed[place]) : KEYS[pressed];
  if (!action) return;
  event.preventDefault();
  action();
};
for (const [id, action] of Object.entries({
  none: KEYS.n, unsure: KEYS.c, undo, "done-undo": undo, larger: zoom, "zoom-in": zoom, "zoom-out": closer, accept, back: () => onward(),
  "to-one": KEYS.o, "to-screens": KEYS.g, "to-done": KEYS.e, "to-keys": KEYS["?"], "keys-close": () => $("keys").close(),
  "to-change": () => { change(); $("change").showModal(); }, "change-close": () => $("change").close(),
})) $(id).onclick = action;
$("class").onchange = () => onward("screens", $("class").value);
$("old").onchange = $("new").oninput = change;
$("who").onchange = () => stored("must-review-who", $("who").value.trim());
window.addEventListener("pagehide", () => navigator.sendBeacon("leave", JSON.stringify({ page })));

turn(async () => {
  let start = await ask("start");
  for (; start.wait; start = await ask("start")) {
    $("sentence").textContent = start.wait;
    await new Promise((done) => setTimeout(done, 500));
  }
  ({ classes, change: changes } = start);
  $("to-change").hidden = !changes.work;
  $("old").replaceChildren(make("option", { value: "", textContent: "(a new one)" }), ...classes.map((value) => make("option", { value, textContent: visible(value) })));
  if (classes.length <= LETTERS.length) keys = keysOf(classes);
  keyed = classes.length <= LETTERS.length ? classes : JSON.parse(stored("must-review-keys") || "[]").filter((name) => classes.includes(name));
  $("who").value = stored("must-review-who") || start.who;
  show(await ask("next"));
});
