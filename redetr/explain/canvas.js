"use strict";
// Shared by the pages of `redetr explain`: arrays packed by Python, pictures to draw on, tables, buttons.
// Boxes are [left, top, right, bottom], points [x, y], all as fractions of the image. L layers, Q queries, T objects.

const CHOSEN = "#ffe066", START = "#ffffff", TRUTH = "#51cf66";
const LEVELS = ["#4dabf7", "#ffa94d", "#f783ac"];
const KINDS = { uint8: Uint8Array, int16: Int16Array, float32: Float32Array };
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
const range = (count) => [...Array(count).keys()];
const sum = (values) => values.reduce((a, b) => a + b, 0);
const counted = (count, singular, plural) => `${count} ${count === 1 ? singular : plural}`;

/** The array that Python packed: {shape, values}. `row(...index)` of it is the part at those leading indices. */
async function unpacked({ dtype, shape, bytes }) {
  const raw = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new KINDS[dtype](await new Response(stream).arrayBuffer());
  const row = (...index) => {
    const size = shape.slice(index.length).reduce((a, b) => a * b, 1);
    const start = index.reduce((all, i, axis) => all * shape[axis] + i, 0);
    return values.subarray(start * size, (start + 1) * size);
  };
  return { shape, values, row };
}

async function allUnpacked(data) {
  const entries = Object.entries(data).map(async ([name, value]) => [name, value?.bytes ? await unpacked(value) : value]);
  return Object.fromEntries(await Promise.all(entries));
}

async function loaded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

function element(parent, tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
  return made;
}

/** A canvas as wide as `px` with the picture on it, darkened by `shade` from 0 to 1. */
class Panel {
  constructor(parent, picture, px, caption) {
    const figure = parent.tagName === "CANVAS" ? null : element(parent, "figure");
    this.canvas = figure ? element(figure, "canvas") : parent;
    this.caption = figure && caption !== undefined ? element(figure, "figcaption", caption) : null;
    this.picture = picture;
    const scale = Math.min(px / picture.width, (1.2 * px) / picture.height);
    this.canvas.width = Math.round(picture.width * scale);
    this.canvas.height = Math.round(picture.height * scale);
    this.context = this.canvas.getContext("2d");
    if (caption !== undefined) this.say(caption);
    this.window = [0, 0, 1, 1]; // the part of the image that is shown
  }

  /** What a screen reader says instead of the picture. */
  say(text) {
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", text);
  }

  clear(shade = 0) {
    const { context, canvas, picture, window: [left, top, right, bottom] } = this;
    const { width, height } = picture;
    context.drawImage(picture, left * width, top * height, (right - left) * width, (bottom - top) * height,
      0, 0, canvas.width, canvas.height);
    context.fillStyle = `rgba(0, 0, 0, ${shade})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }

  x(fraction) { return ((fraction - this.window[0]) / (this.window[2] - this.window[0])) * this.canvas.width; }
  y(fraction) { return ((fraction - this.window[1]) / (this.window[3] - this.window[1])) * this.canvas.height; }

  box([left, top, right, bottom], color, { width = 2, dash = [], alpha = 1, tag = "", beside = false } = {}) {
    const { context } = this;
    const [x, y, x2, y2] = [this.x(left), this.y(top), this.x(right), this.y(bottom)];
    context.save();
    context.globalAlpha = alpha;
    context.setLineDash(dash);
    context.lineWidth = width;
    context.strokeStyle = color;
    context.strokeRect(x, y, x2 - x, y2 - y);
    if (tag) {
      // Letters keep their size if the canvas is shown smaller, as on a phone.
      const unit = Math.max(1, this.canvas.width / (this.canvas.clientWidth || this.canvas.width));
      const high = 18 * unit;
      context.font = `600 ${13 * unit}px system-ui, sans-serif`;
      const wide = context.measureText(tag).width + 8 * unit;
      const over = beside ? y2 - high : y >= high ? y - high : y2;
      const at = [Math.max(0, Math.min(beside ? x2 : x, this.canvas.width - wide)),
        Math.max(0, Math.min(over, this.canvas.height - high))];
      context.fillStyle = color;
      context.fillRect(...at, wide, high);
      context.fillStyle = "#212529";
      context.fillText(tag, at[0] + 4 * unit, at[1] + 13 * unit);
    }
    context.restore();
  }

  dot(x, y, radius, color, alpha = 1) {
    const { context } = this;
    context.globalAlpha = alpha;
    context.beginPath();
    context.arc(this.x(x), this.y(y), radius, 0, 2 * Math.PI);
    context.fillStyle = color;
    context.fill();
    context.globalAlpha = 1;
  }

  line(points, color) {
    const { context } = this;
    context.beginPath();
    for (const [x, y] of points) context.lineTo(this.x(x), this.y(y));
    context.lineWidth = 2;
    context.strokeStyle = color;
    context.stroke();
  }

  /** Weights `[h * w]` as warm light, the brightest where they are `most`. */
  heat(weights, [height, width], most) {
    const small = document.createElement("canvas");
    [small.width, small.height] = [width, height];
    const pixels = new ImageData(width, height);
    weights.forEach((weight, i) => {
      const v = Math.min(1, weight / most);
      pixels.data.set([255, 90 + 150 * v, 40 + 60 * v * v, 240 * v ** 0.75], 4 * i);
    });
    small.getContext("2d").putImageData(pixels, 0, 0);
    this.context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
  }

  /** Calls `act(x, y)` with the clicked position in the image. */
  onClick(act) {
    this.canvas.style.cursor = "crosshair";
    this.canvas.addEventListener("click", (event) => {
      const { left, top, width, height } = this.canvas.getBoundingClientRect();
      act((event.clientX - left) / width, (event.clientY - top) / height);
    });
  }
}

const center = ([left, top, right, bottom]) => [(left + right) / 2, (top + bottom) / 2];
const area = ([left, top, right, bottom]) => Math.max(0, right - left) * Math.max(0, bottom - top);
function iou(a, b) {
  const both = area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
  return both / Math.max(area(a) + area(b) - both, 1e-12);
}

/** The part of the image around these boxes, the same share of both sides. */
function closeUp(boxes) {
  const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((b) => b[i])));
  const [right, bottom] = [2, 3].map((i) => Math.max(...boxes.map((b) => b[i])));
  const half = Math.min(0.5, 0.7 * Math.max(right - left, bottom - top, 0.08));
  const start = (low, high) => Math.max(0, Math.min(1 - 2 * half, (low + high) / 2 - half));
  const [x, y] = [start(left, right), start(top, bottom)];
  return [x, y, x + 2 * half, y + 2 * half];
}

/** Buttons of which one is pressed; `act(i)` is called when another is pressed. */
function buttons(parent, names, act, start = 0) {
  const all = names.map((name, i) => {
    const button = element(parent, "button", name);
    button.type = "button";
    button.onclick = () => { press(i); act(i); };
    return button;
  });
  const press = (i) => all.forEach((button, j) => button.setAttribute("aria-pressed", i === j));
  press(start);
}

function tableOf(parent, heads, rows) {
  parent.replaceChildren();
  const head = element(element(parent, "thead"), "tr");
  heads.forEach((text) => element(head, "th", text));
  const body = element(parent, "tbody");
  for (const cells of rows) {
    const line = element(body, "tr");
    cells.forEach((text) => element(line, "td", text));
  }
}
