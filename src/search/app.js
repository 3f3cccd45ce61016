"use strict";

const byId = (id) => document.getElementById(id);
let chosen = null;
let latest = 0;

async function call(address, options) {
  const response = await fetch(address, {
    ...options,
    headers: { "X-Rushes": "1", ...(options?.headers || {}) },
  });
  const value = await response.json();
  if (!response.ok) throw new Error(value.error || response.statusText);
  return value;
}

const post = (address, value) =>
  call(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(value),
  });

const media = (video) => "/media/" + video.split("/").map(encodeURIComponent).join("/");
const still = (moment) =>
  `/still/${moment.video.split("/").map(encodeURIComponent).join("/")}?at=${moment.start}`;
const clock = (seconds) =>
  `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
const span = (moment) => `${clock(moment.start)} to ${clock(moment.end)}`;
const milliseconds = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties || {});
  made.append(...children);
  return made;
}

/* The moment plays over and over; a media fragment starts it, this keeps it inside. */
function picture(moment, controls) {
  if (moment.kind !== "video") {
    const source = moment.kind === "image" ? media(moment.video) : still(moment);
    return element("img", { src: source, alt: moment.video });
  }
  const video = element("video", {
    src: `${media(moment.video)}#t=${moment.start.toFixed(2)},${moment.end.toFixed(2)}`,
    muted: true, playsInline: true, autoplay: true, controls, preload: "auto",
  });
  const rewind = () => {
    video.currentTime = moment.start;
    video.play().catch(() => {});
  };
  video.addEventListener("timeupdate", () => {
    if (!controls && video.currentTime >= moment.end) rewind();
  });
  video.addEventListener("ended", rewind);
  video.addEventListener("pause", () => {
    if (!controls && video.currentTime >= moment.end - 0.05) rewind();
  });
  video.addEventListener("error", () => {
    video.replaceWith(element("img", { src: still(moment), alt: moment.video }));
  });
  return video;
}

function card(moment, best) {
  const bar = element("progress", { max: 1, value: Math.max(0, moment.score) / Math.max(best, 1e-9) });
  const made = element(
    "button", { type: "button", className: "moment" }, picture(moment, false),
    element("div", {},
      element("b", { title: moment.video }, moment.video),
      element("small", {}, element("span", {}, span(moment)),
        element("span", { className: "score" }, moment.score.toFixed(3))),
      bar),
  );
  made.setAttribute("aria-pressed", "false");
  made.addEventListener("click", () => choose(moment, made));
  return made;
}

function choose(moment, made) {
  chosen = moment;
  for (const other of document.querySelectorAll(".moment")) {
    other.setAttribute("aria-pressed", String(other === made));
  }
  byId("stage").replaceChildren(picture(moment, true));
  byId("chosen").textContent = `${moment.video}, ${span(moment)}`;
  byId("answers").replaceChildren();
  byId("asked").textContent = "";
  byId("panel").hidden = false;
}

function say(where, text, bad) {
  byId(where).textContent = text;
  byId(where).classList.toggle("bad", Boolean(bad));
}

async function show(promise, waiting, done) {
  const mine = ++latest;
  say("message", waiting);
  try {
    const found = await promise;
    if (mine !== latest) return;
    const best = found.moments[0]?.score || 1;
    byId("results").replaceChildren(...found.moments.map((moment) => card(moment, best)));
    const { encode, search } = found.seconds;
    say("message", `${found.moments.length} ${done} · encoded in ${milliseconds(encode)} · searched in ${milliseconds(search)}`);
  } catch (error) {
    if (mine === latest) say("message", error.message, true);
  }
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (text) show(post("/api/search", { text, top: 12 }), "searching…", "moments");
});

function neighbours(file) {
  if (!file) return;
  const sent = call("/api/neighbours?top=12", { method: "POST", body: file });
  show(sent, `encoding ${file.name}…`, `videos like ${file.name}`);
}

byId("file").addEventListener("change", (event) => {
  neighbours(event.target.files[0]);
  event.target.value = "";
});
const drop = byId("drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") neighbours(event.dataTransfer.files[0]);
  });
}

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || !chosen) return;
  const asked = { video: chosen.video, question };
  if (!byId("whole").checked) Object.assign(asked, { start: chosen.start, end: chosen.end });
  say("asked", "thinking…");
  try {
    const found = await post("/api/answer", asked);
    byId("answers").replaceChildren(...found.answers.map((answer) =>
      element("li", {},
        element("span", {}, element("span", { className: "answer" }, answer.text), `${(100 * answer.probability).toFixed(1)} %`),
        element("progress", { max: 1, value: answer.probability }))));
    say("asked", `answered in ${milliseconds(found.seconds.total)}, decoding included`);
  } catch (error) {
    say("asked", error.message, true);
  }
});

call("/api/state").then((state) => {
  say("state", `${state.videos.length} videos, ${state.moments} moments`);
  byId("ask").hidden = byId("whole").parentElement.hidden = !state.answers;
}).catch((error) => say("state", error.message));
