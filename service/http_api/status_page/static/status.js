// Keeps a page up to date: panels come as HTML in server-sent events, or are asked for where no events arrive.
"use strict";

const SILENCE_MS = 12_000; // the service says something every 5 s
const POLL_MS = 5_000;

const feed = document.body.dataset.feed;
const connection = document.getElementById("connection");
const pageName = document.title.replace(/^.*? · /, "");

let clock = Number(document.body.dataset.now) * 1000 - Date.now(); // the service's clock less this one
let heardAt = Date.now();
let source = null;
let isPolling = false;
let isRefused = false; // nobody answers at all

function show(panels, now) {
  clock = now * 1000 - Date.now();
  for (const [name, html] of Object.entries(panels)) {
    const panel = document.getElementById(`panel-${name}`);
    if (panel === null) continue;
    const next = panel.cloneNode(false);
    next.innerHTML = html; // made by the service, which escapes what others wrote
    morph(panel, next);
  }
  tick();
}

// Changes only what differs, so that focus, selection and scrolling stay.
function morph(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(to);
    return;
  }
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return;
  }
  for (const { name } of [...from.attributes]) if (!to.hasAttribute(name)) from.removeAttribute(name);
  for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  const now = [...from.childNodes];
  const next = [...to.childNodes];
  next.forEach((child, index) => (index < now.length ? morph(now[index], child) : from.append(child)));
  now.slice(next.length).forEach((child) => child.remove());
}

// Ages, as the templates write them.
function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  const minutes = String(Math.floor((whole % 3600) / 60)).padStart(2, "0");
  return whole < 48 * 3600 ? `${Math.floor(whole / 3600)} h ${minutes} min` : `${Math.floor(whole / 86_400)} d`;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function tick() {
  const now = Date.now();
  const isLost = isRefused || now - heardAt > SILENCE_MS;
  for (const time of isLost ? [] : document.querySelectorAll("time[data-age]")) {
    write(time, age((now + clock - Date.parse(time.dateTime)) / 1000));
  }
  document.body.classList.toggle("lost", isLost);
  if (isLost) {
    write(connection, `No answer for ${age((now - heardAt) / 1000)}: what is below is old`);
  } else {
    write(connection, isPolling ? "Live, every 5 s" : "Live");
  }
  document.title = `${isLost ? "No answer" : document.querySelector("[data-title]").dataset.title} · ${pageName}`;
}

function heard(byPolling) {
  heardAt = Date.now();
  isPolling = byPolling;
  isRefused = false;
}

function listen() {
  source?.close();
  source = new EventSource(`${feed}/events`);
  source.addEventListener("panels", (event) => {
    heard(false);
    const { panels, now } = JSON.parse(event.data);
    show(panels, now);
  });
  source.addEventListener("alive", () => {
    heard(false);
    tick();
  });
  source.addEventListener("error", poll);
}

async function poll() {
  try {
    const response = await fetch(`${feed}/panels`, { signal: AbortSignal.timeout(POLL_MS) });
    if (response.status === 401) location.reload(); // to the form that asks for the key
    if (!response.ok) return;
    const { panels, now } = await response.json();
    heard(true);
    show(panels, now);
  } catch {
    isRefused = true;
    tick();
  }
}

setInterval(tick, 1000);
setInterval(() => {
  if (source.readyState === EventSource.CLOSED) listen(); // a browser does not try again after an error's status
  if (isPolling || source.readyState !== EventSource.OPEN || Date.now() - heardAt > POLL_MS + 2000) poll();
}, POLL_MS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && Date.now() - heardAt > POLL_MS + 2000) listen();
});

listen();
