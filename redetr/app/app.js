"use strict";
// The page of `redetr app`. An image is sent only once; threshold and class filter its detections in the page.

const byId = (id) => document.getElementById(id);
const SAVED_PX = 1000; // on a saved picture, text has the size that it has on a screen of this width
const SMALL_PX = 1200; // smaller pictures are enlarged to keep text on them sharp

const MANY_BOXES = 30; // from here on, lines are thinner
const FEW_BOXES = 3; // up to here, all tags are shown, even those that hide something
const MOST_HIDDEN = 0.15; // share of a box that the tag of another box may hide
const MOST_IMAGES = 100; // that this page keeps in memory; `redetr predict` handles folders
const MOST_PX = 2048; // longest side of the canvas, unless the picture itself is larger
const MASK_OPACITY = 0.4;
const NOTHING = { file: null, answer: null, picture: null, masks: [], segments: null, colors: {}, scoreColors: null, selected: null };

/** What is shown: the file, the server's answer to it, and the detection that was clicked. */
const shown = { ...NOTHING };

/** All images, each with the fields of `shown`; `answer` is missing until it is computed. */
const images = [];

// ---- The server

const underway = {};

/**
 * Runs `work(signal)`, and aborts earlier work of the same name.
 * The elements `name`-status and `name`-error show its progress and its error.
 */
async function latest(name, work) {
  abort(name);
  const controller = new AbortController();
  underway[name] = controller;
  byId(`${name}-status`).textContent = "Computing…";
  try {
    await work(controller.signal);
  } catch (problem) {
    if (controller.signal.aborted) return;
    byId(`${name}-status`).textContent = "";
    byId(`${name}-error`).textContent = problem.message;
  }
}

function abort(name) {
  underway[name]?.abort();
  byId(`${name}-status`).textContent = byId(`${name}-error`).textContent = "";
}

/** The server's answer to a POST. Throws an Error with its message. */
function ask(address, body, signal) {
  return answerTo(fetch(address, { method: "POST", body, signal }), signal);
}

/** The server's answer to a request. Throws an Error with its message; an aborted request stays one. */
async function answerTo(request, signal) {
  let response, answer;
  try {
    response = await request;
    answer = await response.json();
  } catch (problem) {
    if (signal?.aborted) throw problem;
    const isOther = problem instanceof SyntaxError; // a proxy answers in HTML
    throw new Error(isOther ? statusOf(response) : "The server does not respond: is it still running?");
  }
  signal?.throwIfAborted();
  if (!response.ok) throw new Error(answer?.error ?? statusOf(response));
  return answer;
}

const statusOf = ({ status }) => `The server, or a proxy in front of it, answered with status ${status}.`;

/** The form that the server takes. Throws an Error for a file that the server would refuse, and for one that cannot be read. */
async function formOf(file, threshold) {
  const most = Number(document.body.dataset.maxBytes);
  if (file.size > most)
    throw new Error(`The file has more than ${most / 2 ** 20} MB: give a smaller one.`);
  try {
    await file.slice(0, 1).arrayBuffer(); // a request with such a file fails as if there were no server
  } catch {
    throw new Error("This file cannot be read: it is a folder, or was changed or deleted after you chose it. Choose it again.");
  }
  const form = new FormData();
  form.set("image", file);
  form.set("threshold", threshold);
  return form;
}

/** Shows a page of `explain` in a frame without rights. */
function showPage(holder, title, html) {
  const frame = document.createElement("iframe");
  frame.title = title;
  frame.sandbox = "allow-scripts";
  frame.src = "frame";
  frame.addEventListener("load", () => frame.contentWindow.postMessage(html, "*"), { once: true });
  holder.replaceChildren(frame);
}

// ---- Detections

let notes = []; // on the images of this and of earlier calls, since the last time that none was waiting

/** Takes in files, and has the server look at each that it has not looked at, in turn. */
function lookAt(files) {
  if (!files.length) return;
  closeCamera();
  if (images.every(({ answer }) => answer)) notes = [];
  const entries = [...files].map((file) => ({ ...NOTHING, file }));
  const taken = entries.slice(0, MOST_IMAGES - images.length);
  const leftOut = entries.length - taken.length;
  if (leftOut) notes.push(`This page holds ${MOST_IMAGES} images, and ${leftOut} of these are left out: remove some; redetr predict takes whole folders.`);
  images.push(...taken);
  listImages();
  show(taken[0] ?? current() ?? null);
  latest("find", async (signal) => {
    const alone = images.length === 1;
    const ordered = [...taken, ...images.filter((entry) => !taken.includes(entry))];
    for (const entry of ordered.filter(({ answer }) => !answer)) {
      const problem = await look(entry, signal);
      if (problem) {
        notes.push(alone ? problem : `${entry.file.name}: ${problem}`);
        continue;
      }
      updateThumbnail(entry);
      if (entry === current()) show(entry);
    }
    byId("find-status").textContent = summary();
    fail(notes.join(" "));
  });
}

/** Fills in the server's answer. An image that cannot be looked at leaves the list: returns what is wrong with it. */
async function look(entry, signal) {
  try {
    const content = await ask("look", await formOf(entry.file, 0), signal);
    const picture = new Image();
    picture.src = content.picture;
    await picture.decode();
    signal.throwIfAborted();
    Object.assign(entry, { picture, answer: content.answer, masks: content.masks, segments: content.segments, colors: content.colors, scoreColors: content.score_colors });
    return "";
  } catch (problem) {
    if (signal.aborted) throw problem;
    remove(entry);
    return problem.message;
  }
}

/** Whether the segments of a panoptic model are shown, instead of its detections. */
const areSegments = () => Boolean(shown.segments) && byId("segments").checked;

const current = () => images.find(({ file }) => file === shown.file);

/** Shows an image that came in; null: none. */
function show(entry) {
  abort("explain");
  byId("explained").replaceChildren();
  Object.assign(shown, entry ?? NOTHING, { selected: null });
  byId("segments-control").hidden = !shown.segments;
  if (areSegments()) Object.assign(shown, shown.segments);
  fillStage();
  pressThumbnail();
  if (!shown.answer) return;
  listClasses();
  resizeCanvas();
  refresh();
}

const isFilming = () => !byId("viewfinder").hidden;

/** Shows one of these: the viewfinder, the picture, which image is waited for, or a welcome. */
function fillStage() {
  const isThere = Boolean(shown.answer) && !isFilming();
  const isWaited = Boolean(shown.file) && !shown.answer && !isFilming();
  for (const id of ["picture", "controls", "remove"]) byId(id).hidden = !isThere;
  byId("waiting").hidden = !isWaited;
  byId("waiting").textContent = isWaited ? `Looking for objects in ${shown.file.name} …` : "";
  byId("welcome").hidden = isFilming() || isThere || isWaited;
}

/** Takes an image away; its neighbour is shown instead. */
function remove(entry) {
  const index = images.indexOf(entry);
  images.splice(index, 1);
  byId("images").children[index].remove();
  listImages();
  if (shown.file !== entry.file) return;
  byId("file").value = "";
  show(images[index] ?? images.at(-1) ?? null);
}

function removeShown() {
  remove(current());
  if (!images.length) abort("find"); // else it goes on to images that wait
}

/** The images to choose from, if there are several. New ones are added at the end. */
function listImages() {
  const list = byId("images");
  list.hidden = images.length < 2;
  list.append(...images.slice(list.children.length).map(thumbnailOf));
  pressThumbnail();
}

/** Without making the others anew, so that the keyboard stays where it is. */
function updateThumbnail(entry) {
  byId("images").children[images.indexOf(entry)].replaceWith(thumbnailOf(entry));
  pressThumbnail();
}

function pressThumbnail() {
  [...byId("images").querySelectorAll("button")].forEach((button, index) =>
    button.setAttribute("aria-pressed", images[index]?.file === shown.file));
}

function thumbnailOf(entry) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.title = entry.file.name;
  button.addEventListener("click", () => { closeCamera(); show(entry); });
  if (entry.picture) {
    const image = new Image();
    image.src = entry.picture.src;
    image.alt = entry.file.name;
    button.append(image);
  } else {
    button.disabled = true;
    button.append(entry.file.name);
  }
  item.append(button);
  return item;
}

const threshold = () => Number(byId("threshold").value);
const ofClass = (detection) => ["", detection.label].includes(byId("class").value);
const isChosen = (detection) => detection.score >= threshold() && ofClass(detection);
const chosen = () => shown.answer.detections.filter(isChosen);

function listClasses() {
  const labels = [...new Set(shown.answer.detections.map((detection) => detection.label))].sort();
  const options = labels.map((label) => new Option(label, label)); // else its value has no double spaces
  byId("class").replaceChildren(new Option("all classes", ""), ...options);
}

/** Draws and lists the detections that threshold and class choose. */
function refresh() {
  byId("threshold-shown").textContent = threshold().toFixed(2);
  if (!shown.answer || isFilming()) return; // closing the camera shows the image again
  const detections = chosen();
  if (!detections.includes(shown.selected)) shown.selected = null;
  byId("find-status").textContent = summary();
  const first = detections.slice(0, 10).map(tagOf).join(", ");
  const label = detections.length ? `The image with ${count()}: ${first}` : `${count()} in the image`;
  byId("picture").setAttribute("aria-label", label);
  byId("detections").hidden = !detections.length;
  byId("rows").replaceChildren(...detections.map(rowOf));
  draw();
}

/** How many detections are chosen, of which class. */
function count() {
  const { length } = chosen();
  const kind = areSegments() ? "segment" : "detection";
  const noun = length === 1 ? kind : `${kind}s`;
  const label = byId("class").value;
  return label ? `${length || "No"} ${noun} of ${label}` : `${length || "No"} ${noun}`;
}

/** What was found in the image that is shown; empty if none is. */
function summary() {
  if (!shown.answer || isFilming()) return "";
  const best = shown.answer.detections.find(ofClass);
  const hint = !chosen().length && best ? ` The best has ${best.score.toFixed(2)}.` : "";
  return `${count()} with a score of ${threshold().toFixed(2)} or more.${hint}`;
}

const tagOf = ({ label, score }) => `${label} ${score.toFixed(2)}`;

/** The color of its class, or of its score where the model knows a single class: red, green, blue. */
function colorOf({ label, score }) {
  const { colors, scoreColors } = shown;
  if (!scoreColors) return colors[label];
  const position = score * (scoreColors.length - 1);
  const below = Math.min(Math.floor(position), scoreColors.length - 2);
  const mix = (low, channel) => Math.round(low + (position - below) * (scoreColors[below + 1][channel] - low));
  return scoreColors[below].map(mix);
}

function rowOf(detection) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", detection === shown.selected);
  button.addEventListener("click", () => select(detection));
  const color = document.createElement("span");
  color.className = "color";
  color.style.background = `rgb(${colorOf(detection)})`;
  button.append(color, detection.label);
  const row = document.createElement("tr");
  row.insertCell().append(button);
  row.insertCell().textContent = detection.score.toFixed(2);
  row.insertCell().textContent = detection.box.map(Math.round).join(", ");
  return row;
}

/** Stresses a detection in picture and list; a second time, or null: none. */
function select(detection) {
  shown.selected = detection === shown.selected ? null : detection;
  const index = chosen().indexOf(detection);
  [...byId("rows").rows].forEach((row, i) => {
    const isSelected = i === index && shown.selected !== null;
    row.querySelector("button").setAttribute("aria-pressed", isSelected);
    if (isSelected) row.scrollIntoView({ block: "nearest" });
  });
  draw();
}

// ---- The picture

function resizeCanvas() {
  const { naturalWidth, naturalHeight } = shown.picture;
  const longest = Math.max(naturalWidth, naturalHeight);
  const factor = Math.max(1, Math.min(Math.ceil(SMALL_PX / longest), Math.floor(MOST_PX / longest)));
  byId("picture").width = naturalWidth * factor;
  byId("picture").height = naturalHeight * factor;
}

function draw() {
  const canvas = byId("picture");
  if (shown.picture) paint(canvas, canvas.width / (canvas.clientWidth || canvas.width));
}

/** Draws the picture, boxes and tags; a pixel of the screen is `unit` pixels of the canvas. */
function paint(canvas, unit) {
  const context = canvas.getContext("2d");
  context.drawImage(shown.picture, 0, 0, canvas.width, canvas.height);
  const others = chosen().filter((detection) => detection !== shown.selected);
  const line = lineWidth(context, unit, others);
  context.globalAlpha = shown.selected ? 0.4 : 1;
  for (const detection of [...others].reverse()) paintMask(context, detection);
  if (!areSegments())
    for (const detection of [...others].reverse()) paintBox(context, line, detection);
  for (const tag of tagsWithRoom(context, unit, others)) paintTag(context, unit, tag);
  context.globalAlpha = 1;
  if (!shown.selected) return;
  paintMask(context, shown.selected);
  if (!areSegments()) paintBox(context, 1.5 * line, shown.selected);
  paintTag(context, 1.2 * unit, tagAt(context, 1.2 * unit, shown.selected));
}

/** Left, top, right and bottom of a detection on the canvas. */
function cornersOn({ width, height }, { box }) {
  const [imageHeight, imageWidth] = shown.answer.image_size;
  const [left, top, right, bottom] = box;
  const scaleX = width / imageWidth, scaleY = height / imageHeight;
  return [left * scaleX, top * scaleY, right * scaleX, bottom * scaleY];
}

/** Thinner where there are many small boxes. */
function lineWidth({ canvas }, unit, detections) {
  if (detections.length <= MANY_BOXES) return 2.5 * unit;
  const sides = detections.map((detection) => {
    const [left, top, right, bottom] = cornersOn(canvas, detection);
    return Math.max(right - left, bottom - top);
  });
  const median = sides.sort((one, other) => one - other)[sides.length >> 1];
  return Math.max(unit, Math.min(2.5 * unit, median / 20));
}

/** Fills the outlines of a mask, if it is known; what is in two of them is a hole. */
function paintMask(context, detection) {
  const [height, width] = shown.answer.image_size;
  const scaleX = context.canvas.width / width, scaleY = context.canvas.height / height;
  const path = new Path2D();
  for (const polygon of shown.masks[shown.answer.detections.indexOf(detection)] ?? []) {
    path.moveTo(polygon[0] * scaleX, polygon[1] * scaleY);
    for (let i = 2; i < polygon.length; i += 2) path.lineTo(polygon[i] * scaleX, polygon[i + 1] * scaleY);
    path.closePath();
  }
  context.save();
  context.globalAlpha *= MASK_OPACITY;
  context.fillStyle = `rgb(${colorOf(detection)})`;
  context.fill(path, "evenodd");
  if (areSegments()) { // neighbours may have one color
    context.globalAlpha = 1;
    context.strokeStyle = "white";
    context.stroke(path);
  }
  context.restore();
}

function paintBox(context, line, detection) {
  const [left, top, right, bottom] = cornersOn(context.canvas, detection);
  context.lineWidth = line;
  context.strokeStyle = `rgb(${colorOf(detection)})`;
  context.strokeRect(left, top, right - left, bottom - top);
}

/** A tag above its box, or in it where there is no room above: { detection, text, corners }. */
function tagAt(context, unit, detection) {
  const { width, height } = context.canvas;
  const [left, top] = cornersOn(context.canvas, detection);
  const text = tagOf(detection);
  context.font = `600 ${14 * unit}px system-ui, sans-serif`;
  const tagWidth = context.measureText(text).width + 8 * unit, tagHeight = 19 * unit;
  const x = Math.max(0, Math.min(left - 1.25 * unit, width - tagWidth));
  const y = top >= tagHeight ? top - tagHeight : Math.min(top, height - tagHeight);
  return { detection, text, corners: [x, y, x + tagWidth, y + tagHeight] };
}

/**
 * The tags that hide no part of a tag before them, nor much of another box, and are no larger than
 * their own; all, if boxes are few.
 */
function tagsWithRoom(context, unit, detections) {
  const tags = detections.map((detection) => tagAt(context, unit, detection));
  if (tags.length <= FEW_BOXES) return tags.reverse();
  const boxes = detections.map((detection) => cornersOn(context.canvas, detection));
  const kept = [];
  tags.forEach((tag, index) => {
    const hidesTag = kept.some(({ corners }) => commonArea(corners, tag.corners) > 0);
    const hidesBox = boxes.some((box, other) =>
      other !== index && commonArea(box, tag.corners) > MOST_HIDDEN * commonArea(box, box));
    const isLarger = commonArea(tag.corners, tag.corners) > commonArea(boxes[index], boxes[index]);
    if (!hidesTag && !hidesBox && !isLarger) kept.push(tag);
  });
  return kept;
}

function commonArea(one, other) {
  const width = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const height = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  return Math.max(0, width) * Math.max(0, height);
}

function paintTag(context, unit, { detection, text, corners: [x, y, right, bottom] }) {
  const color = colorOf(detection);
  context.font = `600 ${14 * unit}px system-ui, sans-serif`;
  context.fillStyle = `rgb(${color})`;
  context.fillRect(x, y, right - x, bottom - y);
  context.fillStyle = luminance(color) > 0.179 ? "#000" : "#fff"; // the higher contrast
  context.fillText(text, x + 4 * unit, y + 14.5 * unit);
}

/** How bright a color is, from 0 to 1, as WCAG defines it. */
function luminance(color) {
  const [red, green, blue] = color.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

/** A click takes the smallest box below it. */
function click(event) {
  const { left, top, width, height } = byId("picture").getBoundingClientRect();
  const [imageHeight, imageWidth] = shown.answer.image_size;
  const x = ((event.clientX - left) / width) * imageWidth;
  const y = ((event.clientY - top) / height) * imageHeight;
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const holds = ({ box: [x1, y1, x2, y2] }) => x1 <= x && x <= x2 && y1 <= y && y <= y2;
  const below = chosen().filter(holds);
  select(below.sort((one, other) => area(one) - area(other))[0] ?? null);
}

// ---- Saving

const stem = () => shown.file.name.replace(/\.[^.]*$/, "");

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function savePicture() {
  const canvas = document.createElement("canvas");
  canvas.width = byId("picture").width;
  canvas.height = byId("picture").height;
  paint(canvas, Math.max(canvas.width, canvas.height) / SAVED_PX);
  canvas.toBlob((blob) => save(blob, `${stem()}-detections.png`), "image/png");
}

function saveJson() {
  const content = { ...shown.answer, detections: chosen() };
  const text = JSON.stringify(content, null, 2);
  save(new Blob([text], { type: "application/json" }), `${stem()}.json`);
}

function explain() {
  const { file } = shown;
  byId("explained").replaceChildren();
  latest("explain", async (signal) => {
    byId("explain-status").scrollIntoView({ block: "nearest" });
    const { page } = await ask("explain", await formOf(file, threshold()), signal);
    byId("explain-status").textContent = "";
    showPage(byId("explained"), "Where DETR looked", page);
    byId("explained").scrollIntoView({ behavior: "smooth" });
  });
}

// ---- Sources of images

function fail(message) {
  byId("find-error").textContent = message;
}

async function paste() {
  if (!navigator.clipboard?.read) return fail("In this browser, paste with Ctrl-V.");
  let items;
  try {
    items = await navigator.clipboard.read();
  } catch (problem) {
    return fail(`The clipboard cannot be read: ${problem.message}`);
  }
  for (const item of items) {
    const type = item.types.find((each) => each.startsWith("image/"));
    if (type) return lookAt([new File([await item.getType(type)], "clipboard.png", { type })]);
  }
  return fail("There is no image in the clipboard.");
}

let cameraRequests = 0; // each time the camera is opened or closed

async function openCamera() {
  fail("");
  if (!navigator.mediaDevices)
    return fail("Browsers allow the camera only over https, or on the machine of the server.");
  const wanted = { video: { facingMode: "environment" } };
  const request = ++cameraRequests;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (problem) {
    return fail(`The camera cannot be used: ${problem.message}`);
  }
  if (request !== cameraRequests) return stop(stream); // it was closed, or opened again, meanwhile
  stop(byId("video").srcObject);
  byId("video").srcObject = stream;
  byId("capture").disabled = true; // until the video has a picture, and a size
  byId("viewfinder").hidden = false;
  fillStage();
  if (shown.answer) byId("find-status").textContent = ""; // else an image is being computed, or there is none
  try {
    await byId("video").play();
  } catch (problem) {
    // Closing the camera, or opening it again, interrupts the start of the video.
    if (request !== cameraRequests) return undefined;
    closeCamera();
    return fail(`The camera cannot be used: ${problem.message}`);
  }
  byId("capture").disabled = false;
  return byId("capture").focus();
}

/** Turns off the camera of a stream, if there is one. */
function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function closeCamera() {
  cameraRequests += 1;
  stop(byId("video").srcObject);
  byId("video").srcObject = null;
  if (byId("viewfinder").hidden) return;
  byId("viewfinder").hidden = true;
  show(current() ?? null);
}

function capture() {
  const video = byId("video"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => lookAt([new File([blob], "camera.jpg")]), "image/jpeg", 0.95);
}

// ---- Matching and loss

function judge(step) {
  latest("loss", async (signal) => {
    byId("judged").replaceChildren();
    const image = byId("image-id").value, gpus = byId("world-size").value;
    const query = new URLSearchParams({ image_id: image, world_size: gpus, step });
    const { image_id, name, page } = await ask(`judge?${query}`, null, signal);
    const hasFile = name !== `image ${image_id}`;
    byId("loss-status").textContent = hasFile ? `${name} (id ${image_id})` : `Image ${image_id}`;
    byId("image-id").value = image_id;
    pressExample(image_id);
    showPage(byId("judged"), "From boxes to loss", page);
  });
}

async function startJudging() {
  if (await listExamples()) judge(0); // else it would fail for the same reason
}

/** Shows some training images as thumbnails. Returns whether the server has listed them. */
async function listExamples() {
  byId("examples-error").textContent = "";
  try {
    const { examples, errors } = await answerTo(fetch("examples"));
    byId("examples").replaceChildren(...examples.map(exampleOf));
    byId("examples-error").textContent = errors.join("\n");
    return true;
  } catch (problem) {
    byId("examples-error").textContent = problem.message;
    return false;
  }
}

function exampleOf({ image_id, name, thumbnail }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.title = name;
  button.dataset.imageId = image_id;
  const image = new Image();
  image.src = thumbnail;
  image.alt = name;
  button.append(image);
  button.addEventListener("click", () => {
    byId("image-id").value = image_id;
    judge(0);
  });
  item.append(button);
  return item;
}

function pressExample(imageId) {
  for (const button of byId("examples").querySelectorAll("button"))
    button.setAttribute("aria-pressed", button.dataset.imageId === imageId);
}

// ---- Tabs

const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", each === tab);
    each.tabIndex = each === tab ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  if (tab.id === "loss-tab" && !byId("judged").hasChildNodes()) startJudging();
}

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (!step) return;
    const next = tabs.at((index + step) % tabs.length);
    next.focus();
    open(next);
  });
});

// ---- Events

const on = (id, event, act) => byId(id).addEventListener(event, act);
on("file", "change", () => lookAt(byId("file").files));
on("camera", "click", openCamera);
on("capture", "click", capture);
on("close-camera", "click", closeCamera);
on("paste", "click", paste);
on("remove", "click", removeShown);
on("threshold", "input", refresh);
on("class", "change", refresh);
on("segments", "change", () => show(current()));
on("picture", "click", click);
on("explain", "click", explain);
on("save-picture", "click", savePicture);
on("save-json", "click", saveJson);
on("next", "click", () => judge(1));
on("world-size", "change", () => judge(0));
on("judge", "submit", (event) => { event.preventDefault(); judge(0); });
addEventListener("pagehide", closeCamera);
addEventListener("paste", ({ clipboardData }) => lookAt(clipboardData.files));
for (const event of ["dragover", "dragleave", "drop"]) {
  addEventListener(event, (drag) => {
    drag.preventDefault();
    document.body.classList.toggle("dragging", event === "dragover");
  });
}
addEventListener("drop", ({ dataTransfer }) => lookAt(dataTransfer.files));
new ResizeObserver(draw).observe(byId("picture"));
refresh();
