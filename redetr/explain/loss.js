"use strict";
// From boxes to loss: `explainLoss(root, data)` fills the elements of `root` that carry data-part; `data` is what
// `loss_page.loss_data` packs. Needs canvas.js.

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
    range(count).forEach((t) => panel.box(objects[t], TRUTH, { dash: [6, 4], tag: letters[t], beside: true }));
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
    let low = Infinity, high = -Infinity; // Math.min(...all) takes no more than some 65,000 numbers
    for (const q of rows) {
      for (const t of range(count)) {
        low = Math.min(low, value(q, t));
        high = Math.max(high, value(q, t));
      }
    }
    tableOf(part("matrix"), ["", ...letters.map((letter, t) => `${letter}: ${data.names[t]}`)], rows.map((q) => [`query ${q}`,
      ...range(count).map((t) => value(q, t).toFixed(3))]));
    part("matrix").querySelectorAll("tbody tr").forEach((line, i) => [...line.children].slice(1).forEach((cell, t) => {
      const q = rows[i];
      cell.title = PARTS.map((name, p) => `${name} ${cost(p, q, t).toFixed(3)}`).join(" + ").replaceAll("+ GIoU -", "- GIoU ");
      cell.style.background = `rgba(34, 139, 230, ${0.45 * (1 - (value(q, t) - low) / Math.max(high - low, 1e-9))})`;
      cell.classList.toggle("matched", queries[layer][t] === q);
    }));
    part("size").textContent = `${rows.length} of ${numQueries} queries, ${counted(count, "object", "objects")}; a larger table scrolls.`;
    const total = sum(matched().map((t) => whole(queries[layer][t], t)));
    const parts = matched().map((t) => whole(queries[layer][t], t).toFixed(3)).join(" + ").replaceAll("+ -", "- ");
    part("total").textContent = parts ? `${parts} = ${total.toFixed(3)}` : "nothing to match";
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

  const noisyPanel = part("noisy") && new Panel(part("noisy"), picture, 560);

  /** The first group of noisy queries: their starts, and their boxes after the layer. */
  function drawNoisy() {
    noisyPanel.clear(0.2);
    const [positive, negative] = [CHOSEN, LEVELS[2]].map((color, sign) => ({ sign, color }));
    for (const { sign, color } of [negative, positive]) for (const t of range(count)) {
      noisyPanel.box(data.noisy_starts.row(sign, t), START, { width: 1.5, dash: [5, 4] });
      noisyPanel.box(data.noisy_boxes.row(layer, sign, t), color);
    }
    range(count).forEach((t) => noisyPanel.box(objects[t], TRUTH, { dash: [6, 4], tag: letters[t], beside: true }));
  }

  const draw = () => { drawObjects(); drawMatrix(); drawTerms(); if (noisyPanel) drawNoisy(); };
  for (const place of root.querySelectorAll("[data-part=layers]"))
    buttons(place, data.layers, (i) => { layer = i; draw(); }, layer);
  buttons(part("costs"), ["whole cost", ...PARTS.map((name) => `${name} only`)], (i) => { shown = i; drawMatrix(); });
  part("every").onchange = drawMatrix;
  draw();
}
