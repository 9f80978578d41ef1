// What leaves this page. An answer lies in the browser's own store from the press of a button until the server has
// answered that it lies in the database: neither of the two loses it by dying.

const body = document.body.dataset;
const SHELF = `rlhf-label/${body.store}/${body.labeler}`;
const OUTBOX = `${SHELF}/outbox`;
const SECOND = 1000;
const REASONS = {
  401: "You are signed out. Open your link again, in this browser: your answer is kept here and goes out then.",
  403: "This page is too old. Load it again: your answer is kept in this browser and goes out then.",
  429: "Too much at once: your answer is kept in this browser and is sent again by itself.",
  503: "The server cannot save at the moment. Your answer is kept in this browser and is sent again by itself.",
};

/** The browser's store; what it does not take, as it is full or there is none, lasts as long as the page. */
const held = new Map();
const shelf = {
  getItem(key) {
    try {
      return held.get(key) ?? localStorage.getItem(key);
    } catch {
      return null;
    }
  },
  setItem(key, value) {
    try {
      localStorage.setItem(key, value);
      held.delete(key);
    } catch {
      held.set(key, value);
    }
  },
  removeItem(key) {
    held.delete(key);
    try {
      localStorage.removeItem(key);
    } catch { /* there is none */ }
  },
};
addEventListener("beforeunload", (event) => { if (held.has(OUTBOX) && unsent()) event.preventDefault(); });

export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** Say how things stand, in the line that screen readers follow. */
export function say(text, mood = "") {
  const line = document.getElementById("status");
  if (line && (line.textContent !== text || line.className !== `status ${mood}`)) {
    line.className = `status ${mood}`;
    line.textContent = text;
  }
}

/** POST JSON; returns `{ok, status, data}`, where status 0 means that no server answered. */
export async function post(path, value, options = {}) {
  try {
    const headers = { "Content-Type": "application/json", "X-CSRF-Token": body.csrf };
    const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(value), ...options });
    const data = await answer.json().catch(() => ({}));
    return { ok: answer.ok && !answer.redirected, status: answer.status, data };
  } catch {
    return { ok: false, status: 0, data: {} };
  }
}

function waiting() {
  try {
    return JSON.parse(shelf.getItem(OUTBOX) ?? "[]");
  } catch {
    return [];
  }
}

const keep = (entries) => shelf.setItem(OUTBOX, JSON.stringify(entries));

/** Whether there are answers that the server has not acknowledged, of one assignment or of any. */
export const unsent = (assignment) => waiting().some((entry) => assignment === undefined || entry.assignment === assignment);

/** Put an answer into the outbox; from here on it is on this machine. */
export function entrust(assignment, value) {
  const random = crypto.getRandomValues(new Uint8Array(16));
  const submission = Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const others = waiting().filter((entry) => entry.assignment !== assignment);
  keep([...others, { assignment, value: { ...value, submission } }]);
}

let sending = null;

/** Send what lies in the outbox until nothing does; resolves with null, or with the sentence of a refusal. */
export function flush() {
  sending ??= sendAll().finally(() => { sending = null; });
  return sending;
}

async function sendAll() {
  let refused = null;
  for (let attempt = 0; waiting().length;) {
    const [entry] = waiting();
    say("Saving …");
    const { ok, status, data } = await post(`/save/${encodeURIComponent(entry.assignment)}`, entry.value);
    const gone = () => keep(waiting().filter((other) => other.value.submission !== entry.value.submission));
    if (ok && data.saved === true) {
      gone();
      dropDraft(entry.assignment);
      say("Saved", "good");
      attempt = 0;
    } else if ([400, 404, 409, 413, 422].includes(status)) {
      refused = data.error ?? `The server refused the answer (${status}).`;
      gone();
    } else {
      say(REASONS[status] ?? "Not saved yet: the server does not answer. Your answer is kept in this browser and is sent again by itself.", "bad");
      await pause(Math.min(10, 0.5 * 2 ** attempt++) * SECOND);
    }
  }
  return refused;
}

// Drafts

const draftKey = (assignment) => `${SHELF}/draft/${assignment}`;

export const keepDraft = (assignment, draft) => shelf.setItem(draftKey(assignment), JSON.stringify(draft));

export const dropDraft = (assignment) => shelf.removeItem(draftKey(assignment));

/** The later of the draft in this browser and that of the server. */
export function laterDraft(assignment, other) {
  let own = null;
  try {
    own = JSON.parse(shelf.getItem(draftKey(assignment)) ?? "null");
  } catch { /* a damaged draft is none */ }
  return (own?.at ?? -1) >= (other?.at ?? -1) ? own : other;
}

/** A yes or no that this browser remembers for this labeler. */
export const setting = {
  get: (name, usual) => (shelf.getItem(`${SHELF}/setting/${name}`) ?? String(usual)) === "true",
  set: (name, value) => shelf.setItem(`${SHELF}/setting/${name}`, String(value)),
};
