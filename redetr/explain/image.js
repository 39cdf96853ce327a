"use strict";
// From image to boxes: `explainImage(root, data)` fills the elements of `root` that carry data-part; `data` is what
// `image_page.image_data` packs. Needs canvas.js. Layer -1 is where a query starts.

/** Returns what chooses a query by its number. */
async function explainImage(root, packed) {
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const data = await allUnpacked(packed);
  const { boxes, scores, labels, self, names, colors } = data;
  const [layers, queries] = scores.shape, last = layers - 1;
  const before = boxes.shape[0] - layers; // 1 if the boxes that the queries start from are known
  const picture = await loaded(data.picture);
  const steps = range(boxes.shape[0]).map((i) => i - before);
  const box = (q, layer = last) => boxes.row(layer + before, q); // layer -1: where the query starts
  const score = (q, layer = last) => scores.row(layer)[q];
  const name = (q, layer = last) => names[labels.row(layer)[q]];
  const color = (q) => colors[labels.row(last)[q]];
  const ranked = range(queries).sort((a, b) => score(b) - score(a));
  const few = ranked[Math.min(4, queries - 1)]; // if no score is high enough, the best five are shown
  let threshold = score(ranked[0]) >= data.threshold ? data.threshold : score(few);
  let chosen = ranked[0], head = 0; // 0: all heads, then 1, 2, ...

  const stage = new Panel(part("stage"), picture, 640);
  const perLayer = (where) => range(layers).map((layer) => new Panel(part(where), picture, 320, `layer ${layer + 1}`));
  const looks = perLayer("cross"), talks = perLayer("self");
  const mask = data.masks && new Panel(part("mask"), picture, 320, "mask");
  const path = new Panel(part("path"), picture, 420);

  function drawStage() {
    stage.clear();
    const shown = ranked.filter((q) => score(q) >= threshold);
    for (const q of [...shown].reverse()) stage.box(box(q), color(q), { tag: `${name(q)} ${score(q).toFixed(2)}` });
    stage.box(box(chosen), CHOSEN, { width: 4, tag: `query ${chosen}: ${name(chosen)} ${score(chosen).toFixed(2)}` });
    stage.say(`The image with ${counted(shown.length, "box", "boxes")}; query ${chosen} is ${name(chosen)} with a score of ${score(chosen).toFixed(2)}`);
    part("shown").textContent = `${shown.length} of ${queries} queries ${shown.length === 1 ? "has" : "have"} a score of ${threshold.toFixed(2)} or more`;
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
    panel.window = nearby();
    panel.clear(0.35);
    panel.box(box(chosen, layer - 1), START, { width: 1.5, dash: [5, 4] });
    panel.box(box(chosen, layer), CHOSEN);
    for (const h of used) for (const s of range(levels)) for (const p of range(points)) {
      const weight = data.weights.row(layer, chosen, h, s)[p] / 255;
      const [x, y] = data.where.row(layer, chosen, h, s, p);
      shares[s] += weight / used.length;
      panel.dot(x / data.unit, y / data.unit, 1 + 9 * Math.sqrt(weight), LEVELS[s], 0.85);
    }
    const parts = shares.map((share, s) => `${percent(share)} on ${data.strides[s]} px`);
    panel.caption.textContent = `layer ${layer + 1}: ${parts.join(", ")}`;
  }

  function drawMask() {
    const size = data.masks.shape.slice(1);
    const shares = Float32Array.from(data.masks.row(chosen), (step) => step / 255);
    mask.clear(0.55);
    mask.heat(shares, size, 1);
    mask.box(box(chosen), CHOSEN);
    const inside = shares.filter((share) => share > 0.5).length / shares.length;
    mask.caption.textContent = `mask: ${percent(inside)} of the image`;
  }

  /** The part of the image in which the query reads in any layer. */
  function nearby() {
    const all = steps.map((layer) => box(chosen, layer));
    for (const layer of range(layers)) {
      const weights = data.weights.row(layer, chosen), where = data.where.row(layer, chosen);
      weights.forEach((weight, i) => {
        const [x, y] = [where[2 * i], where[2 * i + 1]].map((v) => Math.max(0, Math.min(1, v / data.unit)));
        if (weight > 5) all.push([x, y, x, y]); // 2% of a head's
      });
    }
    return closeUp(all);
  }

  function drawSelf(panel, layer) {
    const weights = [...self.row(layer, chosen)].map((step) => (step / 255) * data.self_peaks.row(layer)[chosen]);
    const others = range(queries).filter((q) => q !== chosen).sort((a, b) => weights[b] - weights[a]);
    const most = Math.max(weights[others[0]] ?? 0, 1e-9);
    panel.clear(0.35);
    for (const q of others.slice(0, 12).reverse())
      panel.box(box(q), "#4dabf7", { alpha: weights[q] / most, width: 1 + 3 * (weights[q] / most) });
    panel.box(box(chosen), CHOSEN);
    const parts = others.slice(0, 3).map((q) => `${percent(weights[q])} to query ${q} (“${name(q)}” ${score(q).toFixed(2)})`);
    panel.caption.textContent = `layer ${layer + 1}: ${percent(weights[chosen])} to itself, ${parts.join(", ")}`;
  }

  function drawPath() {
    const all = steps.map((layer) => [...box(chosen, layer)]);
    path.window = closeUp(all);
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
    if (mask) drawMask();
    talks.forEach(drawSelf);
    drawPath();
    showEncoder(...center(box(chosen)));
    showPicks?.(chosen);
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

  const showEncoder = explainEncoder(part, data, picture);
  const showPicks = part("picks") && explainPicks(new Panel(part("picks"), picture, 420), part("picks-note"), data);
  const habits = part("habits") && explainHabits(part, data, () => chosen, choose);
  drawQuery();
  return choose;
}

/** What a cell of the image attends to in the encoder: a clicked one, or that of the chosen box. Returns what shows it. */
function explainEncoder(part, { encoder, encoder_peaks, steps }, picture) {
  const [height, width] = encoder.shape;
  const panel = new Panel(part("encoder"), picture, 420);
  function draw(x, y) {
    const row = Math.max(0, Math.min(height - 1, Math.floor(y * height))), column = Math.max(0, Math.min(width - 1, Math.floor(x * width)));
    const peak = encoder_peaks.row(row)[column];
    const weights = Float32Array.from(encoder.row(row, column), (step) => (step * peak) / steps);
    panel.clear(0.55);
    panel.heat(weights, [height, width], peak);
    panel.box([column / width, row / height, (column + 1) / width, (row + 1) / height], CHOSEN);
    part("encoder-note").textContent = `Row ${row + 1} of ${height}, column ${column + 1} of ${width}: the brightest cell ` +
      `gets ${percent(peak)} of its attention, ${(peak * height * width).toFixed(1)} times an even share.`;
  }
  panel.onClick(draw);
  return draw;
}

/** Where the queries of the fast form start. Returns what stresses one of them. */
function explainPicks(panel, note, { boxes, picks, levels, strides }) {
  return (chosen) => {
    panel.clear(0.35);
    range(levels.shape[0]).reverse().forEach((q) => {
      panel.box(boxes.row(0, q), LEVELS[levels.values[q]], { alpha: 0.5, width: 1 });
      panel.dot(...picks.row(q), 4, LEVELS[levels.values[q]]);
    });
    panel.box(boxes.row(0, chosen), CHOSEN, { width: 3 });
    panel.dot(...picks.row(chosen), 7, CHOSEN);
    panel.dot(...picks.row(chosen), 4, LEVELS[levels.values[chosen]]);
    note.textContent = `Yellow: query ${chosen} starts in a cell of ${strides[levels.values[chosen]]} px.`;
  };
}

/** What each query does over a data set. Returns what to call when another query is chosen. */
function explainHabits(part, { habits, habit_levels, strides }, chosen, choose) {
  const blank = Object.assign(document.createElement("canvas"), { width: 200, height: 200 });
  blank.getContext("2d").fillRect(0, 0, 200, 200);
  const [images, queries] = habits.shape;
  if (habit_levels) { // start points, one panel for each level
    const picked = strides.map(() => new Map()); // how often each cell, per level
    habit_levels.values.forEach((level, i) => {
      const cell = habits.values.subarray(2 * i, 2 * i + 2).join();
      picked[level].set(cell, (picked[level].get(cell) ?? 0) + 1);
    });
    const most = Math.max(...picked.flatMap((cells) => [...cells.values()]));
    const columns = new Set(habits.values.filter((_, i) => i % 2 === 0)).size, largest = Math.min(9, 250 / columns);
    strides.forEach((stride, s) => {
      const panel = new Panel(part("habits"), blank, 300, `one cell for ${stride} px`);
      panel.clear();
      for (const [cell, times] of picked[s]) {
        const [x, y] = cell.split(",").map((v) => v / 255);
        panel.dot(x, y, 1 + largest * Math.sqrt(times / most), LEVELS[s], 0.8);
      }
    });
    return null;
  }
  const kind = ([, , w, h]) => (w * h < 0.05 * 65025 ? "#51cf66" : w > h ? "#ff6b6b" : "#4dabf7");
  const draw = (panel, q, radius) => {
    panel.clear();
    for (const i of range(images)) {
      const box = habits.row(i, q);
      panel.dot(box[0] / 255, box[1] / 255, radius, kind(box), 0.8);
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
