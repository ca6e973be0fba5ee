"use strict";
const PERIOD = 2000, COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b"];
const token = location.pathname.split("/")[1];
const at = (id) => document.getElementById(id);
const colors = new Map();
document.documentElement.classList.add("scripted");

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function replace(id, children) {
  at(id).replaceChildren(...children);
}

function drawing(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function colorOf(run) {
  if (!colors.has(run)) colors.set(run, COLORS[colors.size % COLORS.length]);
  return colors.get(run);
}

// Telling -----------------------------------------------------------------------------------------

function say(text, refused = false) {
  at("said").textContent = text;
  at("said").hidden = false;
  at("said").classList.toggle("refused", refused);
}

async function tell(instruction) {
  say("…");
  try {
    const answer = await fetch("tell", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Harness-Token": token },
      body: JSON.stringify(instruction),
    });
    const said = await answer.json();
    say(said.said ?? said.refused, !answer.ok);
  } catch {
    say("The page's server does not answer; is it still running?", true);
  }
  show();
}

// A click that ends something is asked for twice.
function twice(button, instruction) {
  if (button.dataset.sure) {
    tell(instruction);
    delete button.dataset.sure;
    return;
  }
  const label = button.textContent;
  button.dataset.sure = "1";
  button.classList.add("sure");
  button.textContent = "Really?";
  setTimeout(() => {
    delete button.dataset.sure;
    button.classList.remove("sure");
    button.textContent = label;
  }, 4000);
}

function onSubmit(id, act) {
  at(id).addEventListener("submit", (event) => {
    event.preventDefault();
    act(event);
  });
}

onSubmit("form-sweep", () => twice(at("stop-sweep"), { kind: "stop_sweep" }));
onSubmit("form-trials", () => tell({ kind: "more_trials", more: Math.trunc(Number(at("more").value)) }));
onSubmit("form-value", () => tell({ kind: "add_value", axis: at("axis").value, value: at("value").value }));
onSubmit("form-clone", () => tell({ kind: "clone", run_id: at("clone-of").value.trim(), overrides: at("changes").value }));
at("axis").addEventListener("change", describe);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-run]");
  if (!button) return;
  if (button.dataset.act === "stop") {
    twice(button, { kind: "stop_run", run_id: button.dataset.run });
  } else {
    at("clone-of").value = button.dataset.run;
    at("changes").focus();
    at("form-clone").scrollIntoView({ block: "center" });
  }
});

// Showing -----------------------------------------------------------------------------------------

let axes = [];

function describe() {
  at("described").textContent = axes.find((axis) => axis.key === at("axis").value)?.described ?? "";
}

function showAxes(found) {
  const same = JSON.stringify(found) === JSON.stringify(axes);
  axes = found;
  if (!same) {
    const chosen = at("axis").value;
    replace("axis", axes.map((axis) => element("option", { value: axis.key, textContent: axis.key })));
    if (axes.some((axis) => axis.key === chosen)) at("axis").value = chosen;
    describe();
  }
  at("form-value").hidden = !axes.length;
}

// What a question's author has put between backticks is code.
function prose(id, text) {
  replace(id, text.split("`").map((part, index) => (index % 2 ? element("code", { textContent: part }) : part)));
}

function row(cells) {
  return element("tr", {}, ...cells.map(([text, kind = ""]) => element("td", { textContent: text ?? "", className: kind })));
}

function head(id, names) {
  replace(id, [element("tr", {}, ...names.map(([text, kind = ""]) => element("th", { textContent: text, className: kind })))]);
}

function button(label, run, act) {
  const made = element("button", { type: "button", textContent: label });
  made.dataset.run = run;
  made.dataset.act = act;
  return made;
}

function runRow(run, driven) {
  const steps = run.total_steps ? `${run.step}/${run.total_steps}` : "";
  const status = run.error ? `${run.status}: ${run.error}` : run.status;
  const made = row([[run.run_id], [run.role], [run.point, "text"], [run.seed, "number"], [status, "text"], [steps, "number"], [""]]);
  const last = made.lastElementChild;
  if (driven && !run.has_ended) last.append(button("Stop", run.run_id, "stop"));
  if (run.role !== "probe") last.append(button("Clone", run.run_id, "clone"));
  return made;
}

function rounded(value) {
  return String(Number(value.toPrecision(3)));
}

function chart(curve) {
  const width = 460, height = 220, left = 52, bottom = 26, top = 10, right = 10;
  const all = curve.lines.flatMap((line) => line.points);
  const xs = all.map((point) => point[0]), ys = all.map((point) => point[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  const low = Math.min(...ys), high = Math.max(...ys);
  const log = low > 0 && high / low > 20;
  const scale = log ? Math.log : (y) => y;
  const y0 = scale(low), y1 = scale(high) === y0 ? y0 + 1 : scale(high);
  const px = (x) => left + (x - x0) / (x1 - x0) * (width - left - right);
  const py = (y) => height - bottom - (scale(y) - y0) / (y1 - y0) * (height - bottom - top);
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${curve.title} by step` });
  const text = (x, y, anchor, said) => {
    const made = drawing("text", { x, y, "text-anchor": anchor });
    made.textContent = said;
    svg.append(made);
  };
  const middle = log ? Math.exp((y0 + y1) / 2) : (y0 + y1) / 2;
  for (const y of high === low ? [low] : [low, middle, high]) {
    svg.append(drawing("line", { x1: left, x2: width - right, y1: py(y), y2: py(y), stroke: "currentColor", "stroke-opacity": 0.15 }));
    text(left - 6, py(y) + 4, "end", rounded(y));
  }
  text(left, height - 8, "start", rounded(x0));
  text(width - right, height - 8, "end", `step ${rounded(x1)}`);
  for (const line of curve.lines) {
    const color = colorOf(line.run_id);
    const points = line.points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ");
    svg.append(drawing("polyline", { points, fill: "none", stroke: color, "stroke-width": 1.5 }));
    if (line.points.length < 30) {
      for (const [x, y] of line.points) svg.append(drawing("circle", { cx: px(x), cy: py(y), r: 2, fill: color }));
    }
  }
  const legend = curve.lines.map((line) => {
    const swatch = drawing("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" });
    swatch.append(drawing("line", { x1: 0, x2: 20, y1: 4, y2: 4, stroke: colorOf(line.run_id), "stroke-width": 3 }));
    return element("li", {}, swatch, line.label);
  });
  const title = element("h3", { textContent: curve.title + (log ? " (logarithmic)" : "") });
  return element("div", { className: "curve" }, title, svg, element("ul", { className: "legend" }, ...legend));
}

function draw(view) {
  at("status").textContent = view.status;
  prose("question", view.question || view.name);
  prose("expect", view.expect ? `Expected: ${view.expect}` : "");
  prose("found", view.answer ? `Found: ${view.answer}` : "");
  at("progress").textContent = view.complaint ?? view.progress;
  at("bar").style.width = `${(100 * view.share_done).toFixed(1)}%`;
  replace("devices", view.is_driven ? view.devices.map((text) => element("li", { textContent: text })) : []);
  head("leaders-head", [["trial", "number"], ["point"], ...view.objectives.map((name) => [name, "number"])]);
  replace("leaders", view.leaders.map((each) => row([[each.trial, "number"], [each.point, "text"], ...each.values.map((value) => [value, "number"])])));
  at("confirmed-part").hidden = !view.confirmed.length;
  head("confirmed-head", [["point"], ["n", "number"], ...view.objectives.map((name) => [name, "number"])]);
  replace("confirmed", view.confirmed.map((each) => row([[each.point, "text"], [each.n, "number"], ...each.values.map((value) => [value, "number"])])));
  replace("curves", view.curves.filter((curve) => curve.lines.some((line) => line.points.length > 1)).map(chart));
  at("stop-sweep").disabled = !view.is_driven;
  at("form-trials").hidden = !view.takes_trials;
  showAxes(view.axes);
  const asked = document.querySelector("#runs button[data-sure]");
  if (!asked) replace("runs", view.runs.map((run) => runRow(run, view.is_driven)));
  at("runs-count").textContent = view.runs.length < view.runs_in_all ? `${view.runs.length} of ${view.runs_in_all}; those in training first` : `${view.runs_in_all} in all`;
  replace("problems", view.problems.map((text) => element("li", { textContent: text })));
  at("log").textContent = view.log.join("\n");
}

async function show() {
  try {
    const answer = await fetch("state");
    const view = await answer.json();
    if (answer.ok) draw(view);
    else at("progress").textContent = view.refused;
  } catch {
    at("progress").textContent = "The page's server does not answer; what stands below is the last it said.";
  }
}

async function keepShowing() {
  await show();
  setTimeout(keepShowing, PERIOD);
}

keepShowing();
