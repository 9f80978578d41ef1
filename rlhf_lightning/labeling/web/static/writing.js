// A demonstration: the prompt that is given, or one that the labeler writes, and the answer to it.

import { all, one } from "./page.js";
import { post } from "./send.js";

/** Wire the form of a demonstration; returns what reads, fills and checks it. */
export function startWriting(form, touched) {
  const value = (name) => one(`[name="${name}"]`, form)?.value ?? "";
  const promptKind = () => one("[name=prompt_kind]:checked", form)?.value ?? value("prompt_kind");
  const pairs = one("#pairs", form);

  const answer = () => {
    const kind = promptKind();
    if (kind === "given") return { prompt_kind: kind, response: value("response") };
    if (kind !== "few_shot") return { prompt_kind: kind, prompt: value("prompt"), response: value("response") };
    const rows = all(".pair", pairs).map((row) => ({ query: one("[data-part=query]", row).value, response: one("[data-part=response]", row).value }));
    return { prompt_kind: kind, instruction: value("instruction"), pairs: rows };
  };

  const number = () => {
    for (const [place, row] of all(".pair", pairs).entries()) {
      one("[data-part=query]", row).setAttribute("aria-label", `Query ${place + 1}`);
      one("[data-part=response]", row).setAttribute("aria-label", `Response ${place + 1}`);
      one("button", row).setAttribute("aria-label", `Remove pair ${place + 1}`);
      one("button", row).hidden = all(".pair", pairs).length < 2;
    }
  };
  const addPair = (pair = {}) => {
    const row = one("template", form).content.firstElementChild.cloneNode(true);
    one("[data-part=query]", row).value = pair.query ?? "";
    one("[data-part=response]", row).value = pair.response ?? "";
    one("button", row).addEventListener("click", () => {
      const beside = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      number();
      one("textarea", beside).focus();
      changed();
    });
    pairs.append(row);
    number();
    return row;
  };

  const arrange = () => {
    for (const part of all("[data-for]", form)) part.hidden = !part.dataset.for.split(" ").includes(promptKind());
    if (pairs && !all(".pair", pairs).length) for (let count = 0; count < 3; count += 1) addPair();
  };

  let asked = null;
  const preview = async () => {
    asked = null;
    if (!one("#preview").open) return;
    const { ok, data } = await post(`/preview/${form.dataset.assignment}`, { answer: answer() });
    if (ok) one("#preview pre").textContent = data.text;
  };
  const changed = () => {
    touched();
    asked ??= setTimeout(preview, 600);
  };

  one("#preview").addEventListener("toggle", preview);
  one("#add-pair", form)?.addEventListener("click", () => { one("textarea", addPair()).focus(); changed(); });
  form.addEventListener("input", changed);
  form.addEventListener("change", arrange);
  arrange();

  return {
    answer,
    restore(said) {
      const radio = one(`[name=prompt_kind][value="${CSS.escape(said.prompt_kind ?? "")}"]`, form);
      if (radio?.type === "radio") radio.checked = true;
      for (const name of ["prompt", "response", "instruction"]) {
        const box = one(`[name="${name}"]`, form);
        if (box && typeof said[name] === "string") box.value = said[name];
      }
      if (pairs && said.pairs?.length) {
        pairs.replaceChildren();
        for (const pair of said.pairs) addPair(pair);
      }
      arrange();
    },
    lacking() {
      const { prompt_kind: kind, ...parts } = answer();
      const empty = Object.entries(parts).find(([, text]) => typeof text === "string" && !text.trim());
      if (empty) {
        one(`[name="${empty[0]}"]`, form).focus();
        return `The ${empty[0]} is empty.`;
      }
      const row = (parts.pairs ?? []).findIndex((pair) => !pair.query.trim() || !pair.response.trim());
      if (row < 0) return null;
      one("textarea", all(".pair", pairs)[row]).focus();
      return `Pair ${row + 1} is not complete: fill both of its boxes, or remove it.`;
    },
  };
}
