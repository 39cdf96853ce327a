"use strict";
// What the pages of `redetr explain` do when they are clicked. `explainImage(root, data)` and `explainLoss(root, data)`
// fill the elements of `root` that carry data-part; `data` is what `explain_page.py` and `explain_loss_page.py` pack.
// Boxes are [left, top, right, bottom], points [x, y], all as fractions of the image. L layers, Q queries, T objects.

const CHOSEN = "#ffe066", START = "#ffffff", TRUTH = "#51cf66";
const LEVELS = ["#4dabf7", "#ffa94d", "#f783ac"];
const KINDS = { uint8: Uint8Array, int16: Int16Array, float32: Float32Array };
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
const range = (count) => [...Array(count).keys()];
const sum = (values) => values.reduce((a, b) => a + b, 0);

/** The array that Python packed: {shape, values}. `row(...index)` of it is the part at those leading places. */
async function unpacked({ dtype, shape, bytes }) {
  const raw = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new KINDS[dtype](await new Response(stream).arrayBuffer());
  const row = (...index) => {
    const size = shape.slice(index.length).reduce((a, b) => a * b, 1);
    const place = index.reduce((all, i, axis) => all * shape[axis] + i, 0);
    return values.subarray(place * size, (place + 1) * size);
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
    this.window = [0, 0, 1, 1]; // the part of the image that is shown
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

  box([left, top, right, bottom], color, { width = 2, dash = [], alpha = 1, tag = "", below = false } = {}) {
    const { context } = this;
    const [x, y, x2, y2] = [this.x(left), this.y(top), this.x(right), this.y(bottom)];
    context.save();
    context.globalAlpha = alpha;
    context.setLineDash(dash);
    context.lineWidth = width;
    context.strokeStyle = color;
    context.strokeRect(x, y, x2 - x, y2 - y);
    if (tag) {
      context.font = "600 13px system-ui, sans-serif";
      const wide = context.measureText(tag).width + 8;
      const over = y >= 18 && !below;
      const at = [Math.max(0, Math.min(x, this.canvas.width - wide)), over ? y - 18 : Math.min(y2, this.canvas.height - 18)];
      context.fillStyle = color;
      context.fillRect(...at, wide, 18);
      context.fillStyle = "#212529";
      context.fillText(tag, at[0] + 4, at[1] + 13);
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

  /** Calls `act(x, y)` with the place in the image that was clicked. */
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

/** Buttons of which one is pressed; `act(i)` when another is. */
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

/** From image to boxes. Returns what chooses a query by its number. */
async function explainImage(root, packed) {
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const data = await allUnpacked(packed);
  const { boxes, scores, labels, self, names, colors } = data;
  const [layers, queries] = scores.shape, last = layers - 1;
  const before = boxes.shape[0] - layers; // 1 if the boxes that the queries start from are known
  const picture = await loaded(data.picture);
  const box = (q, layer = last) => boxes.row(layer + before, q); // layer -1: where the query starts
  const score = (q, layer = last) => scores.row(layer)[q];
  const name = (q, layer = last) => names[labels.row(layer)[q]];
  const color = (q) => colors[labels.row(last)[q]];
  const ranked = range(queries).sort((a, b) => score(b) - score(a));
  const few = ranked[Math.min(4, queries - 1)]; // where no score is high enough, the best five are shown
  let threshold = score(ranked[0]) >= data.threshold ? data.threshold : score(few);
  let chosen = ranked[0], head = 0; // 0: all heads, then 1, 2, ...

  const stage = new Panel(part("stage"), picture, 640);
  const perLayer = (where) => range(layers).map((layer) => new Panel(part(where), picture, 320, `layer ${layer + 1}`));
  const looks = perLayer("cross"), talks = perLayer("self");
  const path = new Panel(part("path"), picture, 420);

  function drawStage() {
    stage.clear();
    const shown = ranked.filter((q) => score(q) >= threshold);
    for (const q of [...shown].reverse()) stage.box(box(q), color(q), { tag: `${name(q)} ${score(q).toFixed(2)}` });
    stage.box(box(chosen), CHOSEN, { width: 4, tag: `query ${chosen}: ${name(chosen)} ${score(chosen).toFixed(2)}` });
    part("shown").textContent = `${shown.length} of ${queries} queries have a score of ${threshold.toFixed(2)} or more`;
  }

  function drawMap(panel, layer) {
    const [height, width] = data.maps.shape.slice(3), heads = data.maps.shape[2];
    const used = head ? [head - 1] : range(heads);
    const weights = new Float32Array(height * width);
    for (const h of used) {
      const unit = data.peaks.row(layer, chosen)[h] / data.steps / used.length;
      data.maps.row(layer, chosen, h).forEach((step, i) => { weights[i] += step * unit; });
    }
    const most = Math.max(...weights);
    panel.clear(0.55);
    panel.heat(weights, [height, width], most);
    panel.box(box(chosen, layer), CHOSEN);
    const even = 1 / (height * width);
    panel.caption.textContent = `layer ${layer + 1}: the brightest cell has ${percent(most)}, ` +
      `${(most / even).toFixed(0)} times an even share`;
  }

  function drawPoints(panel, layer) {
    const [, , heads, levels, points] = data.where.shape;
    const used = head ? [head - 1] : range(heads);
    const shares = range(levels).map(() => 0);
    panel.clear(0.35);
    panel.box(box(chosen, layer - 1), START, { width: 1.5, dash: [5, 4] });
    panel.box(box(chosen, layer), CHOSEN);
    for (const h of used) for (const s of range(levels)) for (const p of range(points)) {
      const weight = data.weights.row(layer, chosen, h, s)[p] / 255;
      const [x, y] = data.where.row(layer, chosen, h, s, p);
      shares[s] += weight / used.length;
      panel.dot(x / data.unit, y / data.unit, 1 + 9 * Math.sqrt(weight), LEVELS[s], 0.85);
    }
    const told = shares.map((share, s) => `${percent(share)} from stride ${data.strides[s]}`);
    panel.caption.textContent = `layer ${layer + 1}: ${told.join(", ")}`;
  }

  function drawSelf(panel, layer) {
    const weights = [...self.row(layer, chosen)].map((step) => (step / 255) * data.self_peaks.row(layer)[chosen]);
    const others = range(queries).filter((q) => q !== chosen).sort((a, b) => weights[b] - weights[a]);
    const most = Math.max(weights[others[0]] ?? 0, 1e-9);
    panel.clear(0.35);
    for (const q of others.slice(0, 12).reverse())
      panel.box(box(q), "#4dabf7", { alpha: weights[q] / most, width: 1 + 3 * (weights[q] / most) });
    panel.box(box(chosen), CHOSEN);
    const told = others.slice(0, 3).map((q) => `${percent(weights[q])} to query ${q} (“${name(q)}” ${score(q).toFixed(2)})`);
    panel.caption.textContent = `layer ${layer + 1}: ${percent(weights[chosen])} to itself, ${told.join(", ")}`;
  }

  function drawPath() {
    const steps = range(boxes.shape[0]).map((i) => i - before);
    const all = steps.map((layer) => [...box(chosen, layer)]);
    const [left, top] = [0, 1].map((i) => Math.min(...all.map((b) => b[i])));
    const [right, bottom] = [2, 3].map((i) => Math.max(...all.map((b) => b[i])));
    const half = Math.min(0.5, 0.7 * Math.max(right - left, bottom - top, 0.08)); // the same share of both sides
    const place = (low, high) => Math.max(0, Math.min(1 - 2 * half, (low + high) / 2 - half));
    const [x, y] = [place(left, right), place(top, bottom)];
    path.window = [x, y, x + 2 * half, y + 2 * half];
    path.clear(0.25);
    all.forEach((b, i) => {
      const end = i === all.length - 1, start = before && i === 0;
      path.box(b, start ? START : CHOSEN, { alpha: end ? 1 : 0.35 + (0.5 * i) / all.length, width: end ? 4 : 2,
        dash: start ? [5, 4] : [] });
    });
    path.line(all.map(center), CHOSEN);
    all.map(center).forEach(([cx, cy], i) => path.dot(cx, cy, 3 + i, before && i === 0 ? START : CHOSEN));
    const { width, height } = data;
    tableOf(part("steps"), ["after", "class", "score", "box, px", "IoU with the final box"], steps.map((layer, i) => {
      const px = all[i].map((v, axis) => Math.round(v * (axis % 2 ? height : width))).join(", ");
      const said = layer < 0 ? ["start", "", ""] : [`layer ${layer + 1}`, name(chosen, layer), score(chosen, layer).toFixed(3)];
      return [...said, px, iou(all[i], all.at(-1)).toFixed(2)];
    }));
  }

  function drawQuery() {
    drawStage();
    looks.forEach(data.maps ? drawMap : drawPoints);
    talks.forEach(drawSelf);
    drawPath();
    part("list").value = chosen;
    for (const said of root.querySelectorAll("[data-part=chosen]"))
      said.textContent = `query ${chosen} (“${name(chosen)}”, score ${score(chosen).toFixed(2)})`;
    habits?.();
  }

  const choose = (query) => { chosen = query; drawQuery(); };
  stage.onClick((x, y) => {
    const hit = ranked.filter((q) => score(q) >= threshold || q === chosen)
      .filter((q) => { const [l, t, r, b] = box(q); return l <= x && x <= r && t <= y && y <= b; })
      .sort((a, b) => area(box(a)) - area(box(b)));
    if (hit.length) choose(hit[0]);
  });
  for (const q of ranked) element(part("list"), "option", `query ${q}: ${name(q)} ${score(q).toFixed(3)}`).value = q;
  part("list").onchange = (event) => choose(Number(event.target.value));
  part("threshold").value = threshold;
  part("threshold").oninput = (event) => { threshold = Number(event.target.value); drawStage(); };
  const heads = data.maps ? data.maps.shape[2] : data.where.shape[2];
  buttons(part("heads"), ["all heads", ...range(heads).map((h) => `${h + 1}`)], (h) => { head = h; looks.forEach(data.maps ? drawMap : drawPoints); });

  explainEncoder(part, data, picture, center(box(chosen)));
  if (part("picks")) drawPicks(new Panel(part("picks"), picture, 420), data);
  const habits = part("habits") && explainHabits(part, data, () => chosen, choose);
  drawQuery();
  return choose;
}

/** A clicked place of the image and what it attends to in the encoder. */
function explainEncoder(part, { encoder, encoder_peaks, steps }, picture, start) {
  const [height, width] = encoder.shape;
  const panel = new Panel(part("encoder"), picture, 420);
  function draw(x, y) {
    const row = Math.max(0, Math.min(height - 1, Math.floor(y * height))), column = Math.max(0, Math.min(width - 1, Math.floor(x * width)));
    const peak = encoder_peaks.row(row)[column];
    const weights = Float32Array.from(encoder.row(row, column), (step) => (step * peak) / steps);
    panel.clear(0.55);
    panel.heat(weights, [height, width], peak);
    panel.box([column / width, row / height, (column + 1) / width, (row + 1) / height], CHOSEN);
    part("encoder-note").textContent = `Row ${row + 1} of ${height}, column ${column + 1} of ${width}: the brightest place ` +
      `gets ${percent(peak)} of its attention, ${(peak * height * width).toFixed(1)} times an even share.`;
  }
  panel.onClick(draw);
  draw(...start);
}

/** Where the queries of the fast form start. */
function drawPicks(panel, { boxes, picks, levels }) {
  panel.clear(0.35);
  range(levels.shape[0]).reverse().forEach((q) => {
    panel.box(boxes.row(0, q), LEVELS[levels.values[q]], { alpha: 0.5, width: 1 });
    panel.dot(...picks.row(q), 4, LEVELS[levels.values[q]]);
  });
}

/** What each query does over a data set. Returns what to call when another query is chosen. */
function explainHabits(part, { habits, habit_levels, strides }, chosen, choose) {
  const blank = Object.assign(document.createElement("canvas"), { width: 200, height: 200 });
  blank.getContext("2d").fillRect(0, 0, 200, 200);
  const [images, queries] = habits.shape;
  if (habit_levels) { // start points, one panel for each level
    strides.forEach((stride, s) => {
      const panel = new Panel(part("habits"), blank, 300, `one cell for ${stride} px`);
      const picked = new Map(); // how often each place
      habit_levels.values.forEach((level, i) => {
        const place = habits.values.subarray(2 * i, 2 * i + 2).join();
        if (level === s) picked.set(place, (picked.get(place) ?? 0) + 1);
      });
      const places = [...picked].map(([place, times]) => [...place.split(",").map((v) => v / 255), times]);
      const cells = new Set(places.map(([x]) => x)).size, most = Math.max(...picked.values());
      panel.clear();
      places.forEach(([x, y, times]) => panel.dot(x, y, 0.5 + (150 / cells) * Math.sqrt(times / most), LEVELS[s]));
    });
    return null;
  }
  const kind = ([, , w, h]) => (w * h < 0.05 * 65025 ? "#51cf66" : w > h ? "#ff6b6b" : "#4dabf7");
  const draw = (panel, q, radius) => {
    panel.clear();
    for (const i of range(images)) {
      const found = habits.row(i, q);
      panel.dot(found[0] / 255, found[1] / 255, radius, kind(found), 0.8);
    }
  };
  const large = new Panel(part("habit"), blank, 300, "");
  const small = range(queries).map((q) => {
    const panel = new Panel(part("habits"), blank, 84);
    panel.onClick(() => choose(q));
    panel.canvas.title = `query ${q}`;
    draw(panel, q, 1.2);
    return panel;
  });
  return () => {
    draw(large, chosen(), 2.5);
    large.caption.textContent = `query ${chosen()} on ${images} images`;
    small.forEach((panel, q) => panel.canvas.classList.toggle("chosen", q === chosen()));
  };
}

/** From boxes to loss. */
async function explainLoss(root, packed) {
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const data = await allUnpacked(packed);
  const { boxes, costs, queries, terms, unmatched, distances, objects, letters } = data;
  const [layers, , numQueries, count] = costs.shape;
  const PARTS = ["class", "L1", "GIoU"];
  const picture = await loaded(data.picture);
  const panel = new Panel(part("objects"), picture, 560);
  let layer = layers - 1, shown = 0; // 0: the whole cost, then its parts
  const cost = (p, q, t) => costs.row(layer, p, q)[t];
  const whole = (q, t) => cost(0, q, t) + cost(1, q, t) + cost(2, q, t);
  const matched = () => range(count).filter((t) => queries[layer][t] < numQueries);

  function drawObjects() {
    panel.clear(0.2);
    range(count).forEach((t) => panel.box(objects[t], TRUTH, { dash: [6, 4], tag: letters[t], below: true }));
    matched().forEach((t) => {
      const q = queries[layer][t];
      panel.box(boxes.row(layer, q), CHOSEN, { tag: `query ${q}` });
      panel.line([center(objects[t]), center(boxes.row(layer, q))], CHOSEN);
    });
  }

  function drawMatrix() {
    const taken = new Set(queries[layer]), rivals = new Set();
    for (const t of range(count))
      range(numQueries).filter((q) => !taken.has(q)).sort((a, b) => whole(a, t) - whole(b, t)).slice(0, 2)
        .forEach((q) => rivals.add(q));
    const rows = range(numQueries).filter((q) => part("every").checked || taken.has(q) || rivals.has(q));
    const value = (q, t) => (shown ? cost(shown - 1, q, t) : whole(q, t));
    const seen = rows.flatMap((q) => range(count).map((t) => value(q, t)));
    const low = Math.min(...seen), high = Math.max(...seen);
    tableOf(part("matrix"), ["", ...letters.map((letter, t) => `${letter}: ${data.names[t]}`)], rows.map((q) => [`query ${q}`,
      ...range(count).map((t) => value(q, t).toFixed(3))]));
    part("matrix").querySelectorAll("tbody tr").forEach((line, i) => [...line.children].slice(1).forEach((cell, t) => {
      const q = rows[i];
      cell.title = PARTS.map((name, p) => `${name} ${cost(p, q, t).toFixed(3)}`).join(" + ").replaceAll("+ GIoU -", "- GIoU ");
      cell.style.background = `rgba(34, 139, 230, ${0.45 * (1 - (value(q, t) - low) / Math.max(high - low, 1e-9))})`;
      cell.classList.toggle("matched", queries[layer][t] === q);
    }));
    const total = sum(matched().map((t) => whole(queries[layer][t], t)));
    part("total").textContent = matched().map((t) => whole(queries[layer][t], t).toFixed(3)).join(" + ").replaceAll("+ -", "- ") +
      ` = ${total.toFixed(3)}`;
  }

  function drawTerms() {
    const rows = matched().map((t) => {
      const [ce, l1, giou] = terms.row(layer, t), parts = [...distances.row(layer, t)];
      const apart = parts.map((d) => d.toFixed(4)).join(" + ");
      return [`${letters[t]}: ${data.names[t]}`, queries[layer][t], apart, l1.toFixed(4), giou.toFixed(4), ce.toFixed(4)];
    });
    const column = (i) => sum(matched().map((t) => terms.row(layer, t)[i]));
    tableOf(part("terms"), ["object", "query", "|Δcx| + |Δcy| + |Δw| + |Δh|", "L1", "1 − GIoU", "class"], [...rows,
      [`${numQueries - rows.length} other queries`, "", "", "", "", unmatched.values[layer].toFixed(4)],
      ["sum", "", "", column(1).toFixed(4), column(2).toFixed(4), (column(0) + unmatched.values[layer]).toFixed(4)]]);
  }

  const draw = () => { drawObjects(); drawMatrix(); drawTerms(); };
  for (const place of root.querySelectorAll("[data-part=layers]"))
    buttons(place, range(layers).map((i) => `layer ${i + 1}`), (i) => { layer = i; draw(); }, layer);
  buttons(part("costs"), ["whole cost", ...PARTS.map((name) => `${name} only`)], (i) => { shown = i; drawMatrix(); });
  part("every").onchange = drawMatrix;
  draw();
}
