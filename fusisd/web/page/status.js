// Keeps the page up to date: asks for it again each second and takes over what differs in <main>. The server draws and
// escapes everything; here nothing is made into HTML, nodes of the parsed answer are compared and moved.
"use strict";

const PERIOD_MS = 1000;
const HIDDEN_MS = 10000; // a tab in the background: its title and icon are looked at all the same
const LIMIT_MS = 5000;
const find = document.getElementById("find");
const live = document.getElementById("live");
const pause = document.getElementById("pause");
let etag = "";
let answered = Date.now();
let paused = false;
let timer = 0;

// The children of an element in the order of those of another; one with an id is known by it, others by their place.
function takeChildren(old, fresh) {
  const named = new Map();
  for (const child of old.children) if (child.id) named.set(child.id, child);
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const known = wanted.id ? named.get(wanted.id) : at && !at.id ? at : null;
    if (known && known.nodeName === wanted.nodeName) {
      if (known === at) at = at.nextSibling;
      else old.insertBefore(known, at);
      take(known, wanted);
    } else {
      old.insertBefore(document.importNode(wanted, true), at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function take(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value); // what is open is the reader's
  }
  takeChildren(old, fresh);
}

function show(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const main = fresh.getElementById("main");
  if (!main) throw new Error("this is not the status page");
  if (fresh.documentElement.dataset.version !== document.documentElement.dataset.version) {
    location.reload(); // fusisd was upgraded
    return;
  }
  take(document.getElementById("main"), main);
  document.title = fresh.title;
  document.getElementById("icon").href = fresh.getElementById("icon").getAttribute("href");
}

function say(text, stale) {
  if (live.textContent !== text) live.textContent = text;
  document.body.classList.toggle("stale", stale);
}

async function look() {
  clearTimeout(timer);
  if (paused) return;
  try {
    const headers = etag ? { "If-None-Match": etag } : {};
    const answer = await fetch(location.href, { headers, cache: "no-store", signal: AbortSignal.timeout(LIMIT_MS) });
    if (answer.status === 200 || answer.status === 404) {
      show(await answer.text());
      etag = answer.headers.get("ETag") || "";
    } else if (answer.status !== 304) {
      throw new Error(`the answer is ${answer.status}`);
    }
    answered = Date.now();
    say("live", false);
  } catch (error) {
    const seconds = Math.round((Date.now() - answered) / 1000);
    say(`✕ no answer for ${seconds} s: what is shown is old`, true);
    document.title = `✕ no answer for ${seconds} s – Fusis`;
    document.getElementById("icon").href = "/status-down.svg";
    etag = ""; // the next answer is shown whatever it is, and with it title and icon
  }
  clearTimeout(timer);
  timer = setTimeout(look, document.hidden ? HIDDEN_MS : PERIOD_MS);
}

function togglePause() {
  paused = !paused;
  pause.textContent = paused ? "Go on" : "Pause";
  if (paused) say("paused: what is shown stands still", true);
  look();
}

pause.hidden = false;
pause.addEventListener("click", togglePause);
document.addEventListener("visibilitychange", look);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") find.blur();
  if (event.target === find) return;
  if (event.key === "/") {
    event.preventDefault();
    find.focus();
  } else if (event.key === "p") {
    togglePause();
  }
});
look();
