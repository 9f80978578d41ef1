// Every page: what could not be sent before goes out now; the dialog of the keys; undo.

import { flush, post, say, setting, unsent } from "./send.js";

export const one = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** Whether single keys act: where they are on, and nobody types. */
export const keysAct = (event) =>
  setting.get("keys", true) && !event.ctrlKey && !event.metaKey && !event.altKey && !one("dialog[open]") &&
  !event.target.closest?.("textarea, select, input:not([type=radio]):not([type=checkbox])");

export async function undo() {
  const { ok, data } = await post("/undo", {});
  if (ok && data.url) location.assign(data.url);
  else say(data.error ?? "The server does not answer; try again.", "bad");
}

/** A sentence that the next page says. */
export function goTo(address, sentence) {
  sessionStorage.setItem("said", sentence);
  location.assign(address);
}

const said = sessionStorage.getItem("said");
if (said) {
  sessionStorage.removeItem("said");
  say(said, "good");
}

for (const button of all("[data-dialog]")) {
  button.addEventListener("click", () => document.getElementById(button.dataset.dialog).showModal());
}
for (const button of all("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const button of all("[data-undo]")) button.addEventListener("click", undo);

const keys = one("#single-keys");
if (keys) {
  keys.checked = setting.get("keys", true);
  keys.addEventListener("change", () => setting.set("keys", keys.checked));
}
document.addEventListener("keydown", (event) => {
  if (!keysAct(event)) return;
  if (event.key === "?" && one("#keys")) one("#keys").showModal();
  else if (event.key === "z" && one("[data-undo]")) undo();
});

if (document.body.dataset.labeler && unsent() && !one("#work")) {
  flush().then((refused) => (refused ? say(refused, "bad") : goTo(location.href, "Saved: what was waiting in this browser.")));
}
