// A task: its state, drafts of it, the way through its outputs, keys, and the saving.

import { Order } from "./order.js";
import { all, goTo, keysAct, one } from "./page.js";
import { entrust, flush, keepDraft, laterDraft, pause, post, say, unsent } from "./send.js";
import { startWriting } from "./writing.js";

const form = one("#work");
const { kind, assignment, draft: given, next } = form.dataset;
const IDLE = 120_000;
const outputs = all(".output", form);
let seconds = 0;
let lastSign = Date.now();
let groups = null;
let step = 0;
let busy = false;

// What the form holds, in the order of the page

const writing = kind === "demonstration" ? startWriting(form, touched) : null;

const scales = (output) => all("[data-scale]", output);

function chosen(scale) {
  const value = one(":checked", scale)?.value;
  return value === undefined ? null : Number(value);
}

function fieldsOf(output) {
  const ticked = all(".checks input[type=checkbox]", output).map((box) => [box.dataset.field, box.checked]);
  const open = all(".checks select", output).map((select) => [select.dataset.field, JSON.parse(select.value)]);
  return Object.fromEntries([...ticked, ...open]);
}

function answer() {
  if (writing) return writing.answer();
  const said = {};
  for (const output of outputs) {
    for (const scale of scales(output)) (said[scale.dataset.scale] ??= []).push(chosen(scale));
    if (one(".checks", output)) (said.fields ??= []).push(fieldsOf(output));
  }
  if (order) said.ranks = order.ranks();
  return said;
}

const state = () => ({ ...answer(), groups, seconds, step });

function restore(said) {
  if (!said) return;
  seconds = Number(said.seconds) || 0;
  step = Number(said.step) || 0;
  if (writing) writing.restore(said);
  for (const [place, output] of outputs.entries()) {
    for (const scale of scales(output)) {
      const radio = one(`input[value="${Number(said[scale.dataset.scale]?.[place] ?? NaN)}"]`, scale);
      if (radio) radio.checked = true;
    }
    for (const [name, value] of Object.entries(said.fields?.[place] ?? {})) {
      const field = all("[data-field]", output).find((element) => element.dataset.field === name);
      if (field?.type === "checkbox") field.checked = value === true;
      else if (field) field.value = JSON.stringify(value);
    }
  }
  const placed = (said.groups ?? []).flat();
  if (order && placed.length === outputs.length && new Set(placed).size === placed.length) groups = said.groups;
}

const isDone = (output) => scales(output).every((scale) => chosen(scale) !== null);

// Drafts: in the browser at once, on the server soon after; each is a sign of life, too

let drafting = null;

function touched() {
  lastSign = Date.now();
  keepDraft(assignment, { at: Date.now(), state: state() });
  drafting ??= setTimeout(sendDraft, 1500);
}

async function sendDraft() {
  drafting = null;
  if (busy) return;
  const { ok, status, data } = await post(`/draft/${assignment}`, { at: Date.now(), state: state() });
  if (busy) return;
  if (ok) say("Draft kept");
  else if (status === 409) say(data.error, "bad");
  else say("Draft kept in this browser; the server does not answer.", "bad");
}

setInterval(() => {
  if (document.hidden || Date.now() - lastSign > IDLE) return;
  seconds += 1;
  one("#clock").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}, 1000);
setInterval(() => { if (!document.hidden && !busy) post(`/draft/${assignment}`, null); }, 300_000);
for (const sign of ["pointermove", "keydown", "scroll"]) addEventListener(sign, () => { lastSign = Date.now(); }, { passive: true });
addEventListener("pagehide", () => {
  if (!busy && drafting) post(`/draft/${assignment}`, { at: Date.now(), state: state() }, { keepalive: true });
});

// The way through the outputs: each on its own, then, for a ranking, all of them in an order

const announcer = one("#announce");
const announce = (text) => { announcer.textContent = text; };
const ordering = one("#ordering");
const buttons = all(".steps button", form);
const order = ordering && new Order(one(".places", ordering), all(".card", ordering), (changed) => {
  groups = changed;
  compare();
  touched();
}, announce);

/** Outputs of the same quality tie, better ones stand before worse ones: where the order starts from. */
function proposal() {
  const quality = outputs.map((output) => chosen(scales(output)[0]) ?? 0);
  const levels = [...new Set(quality)].sort((a, b) => b - a);
  return levels.map((level) => quality.flatMap((value, place) => (value === level ? [place] : [])));
}

function compare() {
  const quality = outputs.map((output) => chosen(scales(output)[0]));
  const ranks = order.ranks();
  const pairs = ranks.flatMap((rank, a) => ranks.map((other, b) => [a, b, rank < other && quality[a] < quality[b]]));
  const [worse, better] = pairs.find(([, , against]) => against) ?? [];
  const name = (place) => outputs[place].dataset.name;
  one("#against").textContent = worse === undefined ? "" :
    `${name(worse)} (quality ${quality[worse]}) stands before ${name(better)} (quality ${quality[better]}). Is that what you mean?`;
}

function showOrder() {
  for (const card of all(".card", ordering)) {
    const quality = chosen(scales(outputs[Number(card.dataset.place)])[0]);
    one(".own", card).textContent = quality === null ? "" : `quality ${quality}`;
  }
  order.show(groups ?? proposal());
  for (const text of all(".card .text", ordering)) text.tabIndex = text.scrollHeight > text.clientHeight ? 0 : -1;
  compare();
}

function go(to, focus = true) {
  if (!outputs.length) return;
  step = Math.max(0, Math.min(to, buttons.length - 1));
  for (const [place, output] of outputs.entries()) output.hidden = place !== step;
  one(".task", form).classList.toggle("split", step < outputs.length);
  if (ordering) {
    ordering.hidden = step < outputs.length;
    if (!ordering.hidden) showOrder();
  }
  mark();
  for (const text of all(".prompt .text, .output-text", form)) text.tabIndex = text.scrollHeight > text.clientHeight + 1 ? 0 : -1;
  if (focus) one("h2", outputs[step] ?? ordering).focus();
}

function mark() {
  for (const [place, button] of buttons.entries()) {
    button.toggleAttribute("aria-current", place === step);
    if (place === step) button.setAttribute("aria-current", "step");
    if (place < outputs.length) {
      button.classList.toggle("done", isDone(outputs[place]));
      button.setAttribute("aria-label", `${outputs[place].dataset.name}${isDone(outputs[place]) ? ", rated" : ""}`);
    }
  }
  const last = step >= buttons.length - 1;
  one("#next")?.toggleAttribute("hidden", last);
  one("#previous")?.toggleAttribute("disabled", step === 0);
  one("#save").classList.toggle("main", last);
}

for (const [place, button] of buttons.entries()) button.addEventListener("click", () => go(place));
one("#next")?.addEventListener("click", () => go(step + 1));
one("#previous")?.addEventListener("click", () => go(step - 1));
form.addEventListener("change", (event) => {
  if (!writing && event.target.closest("[data-scale]") && order && groups === null) order.show(proposal());
  if (!writing) mark();
  touched();
});
form.addEventListener("submit", (event) => event.preventDefault());

// Saving

async function send(said) {
  busy = true;
  clearTimeout(drafting);
  drafting = null;
  keepDraft(assignment, { at: Date.now(), state: state() });
  entrust(assignment, { answer: said, seconds });
  await deliver("Saved");
}

async function deliver(sentence) {
  for (const button of all(".bar button")) button.disabled = true;
  const refused = await flush();
  if (!refused) goTo(next, sentence);
  else {
    for (const button of all(".bar button")) button.disabled = false;
    busy = false;
    say(refused, "bad");
    announce(refused);
  }
}

function save() {
  if (busy) return;
  const lacking = writing ? writing.lacking() : outputs.findIndex((output) => !isDone(output));
  if (writing ? lacking : lacking >= 0) {
    const sentence = writing ? lacking : `${outputs[lacking].dataset.name} is not rated yet.`;
    if (!writing) go(lacking);
    say(sentence, "bad");
    return;
  }
  if (ordering && ordering.hidden) {
    go(buttons.length - 1);
    say("Look at the order, then save.");
    return;
  }
  send(answer());
}

one("#save").addEventListener("click", save);
const skipping = one("#skipping");
one("form", skipping).addEventListener("submit", async () => {
  const reason = one("textarea", skipping).value.trim();
  if (!busy) await send({ skipped: reason ? `unclear: ${reason}` : "unclear" });
});

// Keys

function digit(number) {
  const focused = document.activeElement.closest("[data-scale]");
  const open = scales(outputs[step]).find((scale) => chosen(scale) === null);
  const scale = focused ?? open ?? scales(outputs[step])[0];
  const radio = all("input", scale)[number - 1];
  if (!radio) return;
  radio.checked = true;
  radio.dispatchEvent(new Event("change", { bubbles: true }));
  (scales(outputs[step]).find((other) => chosen(other) === null) ?? scale).querySelector("input:checked, input").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !one("dialog[open]")) {
    event.preventDefault();
    save();
  }
  if (event.defaultPrevented || !keysAct(event)) return;
  const output = outputs[step];
  const field = output && all(".checks [data-key]", output).find((element) => element.dataset.key === event.key);
  const card = ordering && !ordering.hidden && all(".card", ordering).find((element) => element.dataset.key === event.key);
  if (event.key === ".") go(step + 1);
  else if (event.key === ",") go(step - 1);
  else if (event.key === "x") skipping.showModal();
  else if (output && /^[1-9]$/.test(event.key)) digit(Number(event.key));
  else if (field?.type === "checkbox") field.click();
  else if (field) {
    field.selectedIndex = (field.selectedIndex + 1) % field.length;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  } else if (card) one(".handle", card).focus();
  else return;
  event.preventDefault();
});

// The start

restore(laterDraft(assignment, JSON.parse(given))?.state);
go(step, false);
if (unsent(assignment)) {
  busy = true;
  deliver("Saved: what was waiting in this browser.");
} else if (unsent()) flush().then((refused) => refused && say(refused, "bad"));
