"use strict";
// The contact sheet of `redetr predict`: a card for each image that passes the filters for class and score.

const byId = (id) => document.getElementById(id);
const { names, cards } = JSON.parse(byId("data").textContent);
const AT_ONCE = 60; // cards that are shown, until more are requested
const ANY = "any", NONE = "none"; // options besides the classes, whose values are their numbers
let most = AT_ONCE;

const LABEL = 0, SCORE = 1, BOX = 2; // positions in a detection

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function listClasses() {
  const counts = names.map(() => 0);
  for (const { detections } of cards) for (const detection of detections) counts[detection[LABEL]]++;
  const byName = names.map((name, label) => ({ name, label }));
  byName.sort((one, other) => one.name.localeCompare(other.name));
  const options = byName.map(({ name, label }) => new Option(`${name} (${counts[label]})`, label));
  const empty = cards.filter(({ detections }) => !detections.length).length;
  byId("class").replaceChildren(
    new Option(`all (${counted(cards.length, "image")})`, ANY), ...options, new Option(`nothing found (${empty})`, NONE));
}

function lowestScore() {
  let lowest = 1;
  for (const { detections } of cards) for (const detection of detections) lowest = Math.min(lowest, detection[SCORE]);
  return Math.floor(100 * lowest) / 100;
}

const least = lowestScore();

/** The detections of a card that class and score choose. */
function chosenOf({ detections }) {
  const label = byId("class").value, smallest = Number(byId("score").value);
  return detections.filter((detection) =>
    detection[SCORE] >= smallest && (label === ANY || Number(label) === detection[LABEL]));
}

/** Whether a card is shown, given its chosen detections. */
function isShown({ detections }, chosen) {
  const label = byId("class").value;
  if (label === NONE) return detections.length === 0;
  return chosen.length > 0 || (label === ANY && Number(byId("score").value) <= least);
}

const best = ({ chosen }) => Math.max(0, ...chosen.map((detection) => detection[SCORE]));
const worst = ({ chosen }) => Math.min(2, ...chosen.map((detection) => detection[SCORE]));
const ORDERS = {
  given: () => 0,
  most: (one, other) => other.chosen.length - one.chosen.length,
  surest: (one, other) => best(other) - best(one),
  unsure: (one, other) => worst(one) - worst(other),
};

function refresh() {
  byId("score-shown").textContent = Number(byId("score").value).toFixed(2);
  const shown = cards.map((card) => ({ card, chosen: chosenOf(card) }))
    .filter(({ card, chosen }) => isShown(card, chosen))
    .sort(ORDERS[byId("order").value]);
  let objects = 0;
  for (const { card, chosen } of shown) if (!card.is_video) objects += chosen.length;
  byId("status").textContent = `${shown.length} of ${counted(cards.length, "image")}, ${counted(objects, "object")}`;
  byId("cards").replaceChildren(...shown.slice(0, most).map(cardOf));
  byId("more").hidden = shown.length <= most;
}

function cardOf({ card, chosen }) {
  const figure = document.createElement("figure");
  const counts = card.is_video ? bestOf(chosen) : countsOf(chosen);
  figure.append(card.is_video ? videoOf(card) : imageOf(card, chosen, counts));
  const caption = document.createElement("figcaption");
  const name = document.createElement("b");
  name.textContent = card.source.split(/[\\/]/).at(-1);
  name.title = card.source;
  const summary = document.createElement("span");
  summary.textContent = counts;
  caption.append(name, summary);
  figure.append(caption);
  return figure;
}

/** The counts in words, such as "cup × 3, plate". */
function countsOf(chosen) {
  const counts = new Map();
  for (const detection of chosen) counts.set(detection[LABEL], (counts.get(detection[LABEL]) ?? 0) + 1);
  const mostFirst = [...counts].sort((a, b) => b[1] - a[1]);
  const parts = mostFirst.map(([label, count]) => names[label] + (count > 1 ? ` × ${count}` : ""));
  return parts.join(", ") || "no objects";
}

/** Of a video, the best score of each class is known. */
function bestOf(chosen) {
  const parts = chosen.map((detection) => `${names[detection[LABEL]]} up to ${detection[SCORE].toFixed(2)}`);
  return parts.join(", ") || "no objects";
}

function videoOf({ picture }) {
  const holder = document.createElement("div");
  holder.className = "frame";
  const video = document.createElement("video");
  Object.assign(video, { src: encodeURIComponent(picture), controls: true, preload: "metadata", muted: true });
  video.setAttribute("aria-label", `Video ${picture}`);
  holder.append(video);
  return holder;
}

/** The annotated image as a link to itself. With a filter, the chosen boxes are framed. */
function imageOf({ picture, size, detections }, chosen, counts) {
  const link = document.createElement("a");
  link.className = "frame";
  link.href = encodeURIComponent(picture);
  const image = document.createElement("img");
  const [height, width] = size;
  Object.assign(image, { loading: "lazy", width, height, alt: `${picture}: ${counts}`, src: link.href });
  image.style.height = "auto";
  link.append(image);
  if (chosen.length < detections.length) link.append(framesOf(chosen, width, height));
  return link;
}

function framesOf(chosen, width, height) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-hidden", "true");
  for (const detection of chosen) {
    const [left, top, right, bottom] = detection.slice(BOX);
    for (const kind of ["under", "over"]) {
      const rect = document.createElementNS(svg.namespaceURI, "rect");
      rect.setAttribute("class", kind);
      const sides = { x: left, y: top, width: right - left, height: bottom - top };
      for (const [name, value] of Object.entries(sides)) rect.setAttribute(name, value);
      svg.append(rect);
    }
  }
  return svg;
}

function changed() {
  most = AT_ONCE;
  refresh();
}

byId("score").min = least;
byId("score").value = least;
for (const id of ["class", "order"]) byId(id).addEventListener("change", changed);
byId("score").addEventListener("input", changed);
byId("filter").addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", () => { most += AT_ONCE; refresh(); });
listClasses();
refresh();
