"use strict";
// Draws the curves of a report, and updates the page when the threshold changes. All numbers are in the page.
const { data, checkpoints: runs } = JSON.parse(document.getElementById("numbers").textContent);
const COLORS = ["#1864ab", "#c2410c"], LEVELS = Array.from({ length: 101 }, (_, i) => i / 100);
const slider = document.querySelector("#threshold input"), select = document.getElementById("class");
const percent = value => value === null || value === undefined || isNaN(value) ? "-" : (100 * value).toFixed(1);
const f1 = (p, r) => p === null || r === null ? null : p + r > 0 ? 2 * p * r / (p + r) : 0;
const plain = text => text.replace(/[&<>]/g, sign => `&#${sign.charCodeAt(0)};`);
const mark = k => runs.length > 1 ? "AB"[k] + " " : "";
slider.value = runs[0].threshold; // browsers keep the value of a reloaded page
let mode = "all"; // the best threshold of each checkpoint for "all" classes, for "each" class, or that of the "slider"
const thresholdOf = run => mode === "slider" ? +slider.value : run.threshold;

// A chart in its figure: lines are {name, color, points: [[x, y]], dash, faint, sizes}, y is null where there is no value.
function chart(name, x, y, lines, marks = []) {
  const figure = document.querySelector(`[data-chart=${name}]`);
  if (!figure) return;
  const [left, top, width, height] = [48, 12, 500, 270];
  const put = ([a, b]) => [left + width * a / x.max, top + height * (1 - Math.min(1, b / y.max))];
  const ticks = axis => {
    const rough = axis.max / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
    return Array.from({ length: 1 + Math.floor(axis.max / step + 1e-9) }, (_, i) => i * step);
  };
  const text = (axis, value) => axis.percent ? (100 * value).toFixed(0) : +value.toPrecision(3);
  let svg = "";
  for (const value of ticks(y)) {
    const [, v] = put([0, value]);
    svg += `<path class="rule" d="M${left} ${v}h${width}"/><text x="${left - 6}" y="${v + 4}" text-anchor="end">${text(y, value)}</text>`;
  }
  for (const value of ticks(x)) {
    const [u] = put([value, 0]);
    svg += `<text x="${u}" y="${top + height + 16}" text-anchor="middle">${text(x, value)}</text>`;
  }
  svg += `<text x="${left + width}" y="${top + height + 32}" text-anchor="end">${x.label}</text>`;
  if (x.diagonal) svg += `<path class="mark" d="M${put([0, 0])}L${put([1, 1])}"/>`;
  for (const at of marks) svg += `<path class="mark" d="M${put([at, 0])}V${top}"/>`;
  for (const { points, color, dash, faint, sizes } of lines) {
    const shown = points.filter(([, b]) => b !== null && b !== undefined);
    svg += `<path stroke="${color}" stroke-width="${faint ? 1 : 2}" opacity="${faint ? 0.35 : 1}" stroke-dasharray="${dash || ""}" d="${shown.map((p, i) => (i ? "L" : "M") + put(p).map(v => v.toFixed(1))).join("")}"/>`;
    shown.forEach((point, i) => { const size = sizes ? sizes[i] : shown.length < 30 ? 2.5 : 0, [u, v] = put(point); svg += `<circle cx="${u}" cy="${v}" r="${size}" fill="${color}" opacity=".7"/>`; });
  }
  figure.innerHTML = `<svg class="plot" role="img" aria-label="${y.label} over ${x.label}" viewBox="0 0 560 320">${svg}</svg><figcaption></figcaption>`;
  const plot = figure.firstChild, named = lines.filter(line => line.name);
  const legend = where => figure.lastChild.innerHTML = `${y.label}: ` + named.map(({ name, color, points, dash }) => {
    const near = where === null ? null : points.reduce((a, b) => Math.abs(b[0] - where) < Math.abs(a[0] - where) ? b : a, [Infinity, null]);
    const value = near && near[1] !== null ? ` ${y.percent ? percent(near[1]) : (+near[1]).toPrecision(3)}` : "";
    return `<b style="color:${color}">${dash ? "┄" : "━"} <bdi>${plain(name)}</bdi>${value}</b>`;
  }).join("") + (where === null ? "" : `at ${x.percent ? percent(where) : where.toPrecision(3)}`);
  legend(null);
  plot.onmousemove = event => {
    const box = plot.getBoundingClientRect(), u = (event.clientX - box.left) * 560 / box.width;
    legend(Math.max(0, Math.min(1, (u - left) / width)) * x.max);
  };
  plot.onmouseleave = () => legend(null);
}

const entryOf = (run, name) => name === "" ? run.all : run.per_class[name];
const over = values => values.map((value, i) => [LEVELS[i], value]);

function drawCurves() {
  const share = label => ({ label, max: 1, percent: true });
  const lines = [], triples = [];
  runs.forEach((run, k) => {
    if (select.value === "" && runs.length === 1 && data.classes.length <= 20)
      for (const entry of Object.values(run.per_class)) lines.push({ points: over(entry.curves.precision_at_recall), color: "#868e96", faint: true });
    const { curves } = entryOf(run, select.value);
    lines.push({ name: mark(k) + (select.value || "all classes"), color: COLORS[k], points: over(curves.precision_at_recall) });
    const shades = runs.length > 1 ? Array(3).fill(COLORS[k]) : ["#1864ab", "#20702f", "#212529"];
    triples.push({ name: mark(k) + "precision", color: shades[0], dash: "6 3", points: over(curves.precision) },
      { name: mark(k) + "recall", color: shades[1], dash: "2 3", points: over(curves.recall) },
      { name: mark(k) + "F1", color: shades[2], points: over(curves.precision.map((p, i) => f1(p, curves.recall[i]))) });
  });
  chart("pr", share("recall"), share("precision"), lines);
  chart("confidence", { label: "threshold", max: 1 }, share("precision, recall and F1, %"), triples, runs.map(thresholdOf));
}

function drawOnce() {
  const share = label => ({ label, max: 1, percent: true });
  chart("calibration", { ...share("score"), diagonal: true }, share("share that is correct"), runs.map((run, k) => {
    const { bins } = run.calibration, most = Math.max(...bins.map(bin => bin.count));
    return { name: mark(k) + "detections", color: COLORS[k], points: bins.map(bin => [bin.score, bin.correct]), sizes: bins.map(bin => 2 + 8 * Math.sqrt(bin.count / most)) };
  }));
  const trained = runs.map((run, k) => ({ k, ...run.training })).filter(run => run.steps);
  const steps = { label: "step", max: Math.max(1, ...trained.flatMap(run => [...run.steps, ...run.evaluations].map(line => line.step))) };
  const losses = trained.flatMap(run => run.steps.map(line => line.loss)).sort((a, b) => a - b);
  chart("loss", steps, { label: "loss", max: 1.1 * losses[Math.floor(losses.length * 0.98)] || 1 }, trained.flatMap(({ k, steps, evaluations }) => [
    { name: mark(k) + "training", color: COLORS[k], points: steps.map(line => [line.step, line.loss]) },
    { name: mark(k) + "validation", color: COLORS[k], dash: "5 3", points: evaluations.map(line => [line.step, line.val_loss]) },
  ].filter(line => line.points.some(([, value]) => value !== null && value !== undefined))));
  const best = Math.max(0.01, ...trained.flatMap(run => run.evaluations.map(line => line.AP50)));
  chart("ap", steps, { label: "validation", max: Math.min(1, 1.1 * best), percent: true }, trained.flatMap(({ k, evaluations }) => [
    { name: mark(k) + "AP", color: COLORS[k], points: evaluations.map(line => [line.step, line.AP]) },
    { name: mark(k) + "AP50", color: COLORS[k], dash: "5 3", points: evaluations.map(line => [line.step, line.AP50]) },
  ]));
}

// The precision, recall and F1 of an entry at the threshold.
function at(entry, run) {
  if (mode === "each" && entry !== run.all) return entry.best || { precision: null, recall: null, f1: null };
  const i = Math.round(100 * thresholdOf(run)), [precision, recall] = [entry.curves.precision[i], entry.curves.recall[i]];
  return { precision, recall, f1: f1(precision, recall) };
}

function follow() {
  const thresholds = runs.map(run => thresholdOf(run).toFixed(2));
  document.querySelector("#threshold output").value = [...new Set(thresholds)].join(" / ");
  document.querySelector("#threshold span").innerHTML = runs.map((run, k) => {
    const { precision, recall, f1 } = at(run.all, run);
    return `${runs.length > 1 ? `<b class="who who${k}">${"AB"[k]}</b>` : ""}precision ${percent(precision)} &nbsp; recall ${percent(recall)} &nbsp; F1 ${percent(f1)}`;
  }).join(" &nbsp; ");
  document.querySelectorAll("#threshold button").forEach(button => button.setAttribute("aria-pressed", button.dataset.mode === mode));
  document.querySelectorAll("td[data-what]").forEach(cell => {
    const { class: name, run, what } = cell.dataset;
    cell.textContent = percent(at(runs[run].per_class[name], runs[run])[what]);
  });
  document.querySelectorAll(".scene.live").forEach(scene => {
    let wrong = 0, missed = 0, shown = 0;
    const threshold = thresholdOf(runs[scene.dataset.run]);
    scene.querySelectorAll(".box").forEach(box => {
      const visible = "score" in box.dataset ? +box.dataset.score >= threshold : +box.dataset.finderScore < threshold;
      box.classList.toggle("hidden", !visible);
      shown += visible;
      if (visible && box.classList.contains("missed")) missed++;
      else if (visible && !box.classList.contains("correct")) wrong++;
    });
    scene.classList.toggle("many", shown > 15);
    scene.parentNode.querySelector("figcaption span").textContent = `(${wrong} wrong, ${missed} missed)`;
  });
  drawCurves();
}

function sortBy(table, column, head) {
  const down = head.getAttribute("aria-sort") !== "descending" && !(column === 0 && !head.hasAttribute("aria-sort"));
  table.querySelectorAll("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.children[column].textContent.replaceAll(",", "");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [u, v] = [value(a), value(b)], [p, q] = [parseFloat(u), parseFloat(v)];
    if (u === "-" || v === "-") return (u === "-") - (v === "-");
    return (isNaN(p) || isNaN(q) ? u.localeCompare(v) : p - q) * (down ? -1 : 1);
  });
  table.tBodies[0].append(...rows);
}

select.append(new Option("all classes", ""), ...data.classes.map(name => new Option(name, name)));
select.onchange = drawCurves;
slider.oninput = () => { mode = "slider"; follow(); };
document.querySelectorAll("#threshold button").forEach(button => button.onclick = () => {
  mode = button.dataset.mode;
  slider.value = runs[0].threshold;
  follow();
});
document.querySelectorAll(".sortable").forEach(table => [...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.onclick = () => sortBy(table, column, head);
  head.append(button);
}));
drawOnce();
follow();
