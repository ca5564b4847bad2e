"use strict";
function deltas(path) {
  const found = {};
  path.curve.forEach(([at, mean], k) => {
    if (k && at - path.curve[k - 1][0] === 1) found[at - 1] = mean - path.curve[k - 1][1];
  });
  for (const [at, pivot] of Object.entries({...path.undecided, ...path.pivots})) found[at] = pivot[0];
  return found;
}

const stepAt = (path, at) => path.steps.find(step => step.start <= at && at < step.end);

function pathSection(path, label) {
  const section = el("section", "");
  const change = deltas(path);
  const detail = el("div", "detail", el("span", "dim", "Choose a token to see its probability, p(success) around it and its siblings."));
  detail.setAttribute("aria-live", "polite");
  detail.classList.toggle("follow", path.tokens.length > LONG);  // its tokens fill the screen
  const spans = path.tokens.map((token, at) => tokenSpan(path, change, at));
  const drawn = path.curve.length ? chart(path, at => select(at)) : null;
  const select = at => {
    spans.forEach((span, k) => { span.classList.toggle("here", k === at); span.tabIndex = k === at ? 0 : -1; });
    drawn?.mark(at);
    detail.replaceChildren(...tokenDetail(path, change, at));
  };
  const answer = el("div", "text answer", ...spans);
  steerByKeys(answer, spans, select);
  section.append(el("h3", "", `p(success) along the answer${label}`));
  if (drawn) section.append(drawn.frame, curveLegend());
  else section.append(el("p", "dim", "No curve: the policy cannot sample this answer."));
  section.append(
    el("h3", "", `Answer${label} · ${path.verdict === "pass" ? "✓ passed" : "✗ failed"} · the search stopped: ${STOPPED[path.stopped] ?? path.stopped}`),
    answer, legend(), detail);
  if (path.pairs.length) section.append(el("h3", "", "Pairs, measured anew"), el("div", "scroll", pairTable(path, select)));
  const first = Object.keys(path.pivots)[0] ?? path.steps[0]?.start ?? Object.keys(path.undecided)[0] ?? path.pairs[0]?.at;
  if (first !== undefined) select(Number(first));
  else if (spans.length) spans[0].tabIndex = 0;
  return section;
}

const LONG = 150;

const STOPPED = {
  "decided": "all is decided",
  "indifferent": "what is open lies too near to p_gap to be decided",
  "unlikely": "what is open is hardly pivotal",
  "budget": "its rollouts are spent",
  "no candidates": "no token can be pivotal",
  "impossible": "the policy cannot sample this answer",
};

/** One stop of the Tab key; arrows go from token to token, Home and End to the ends. */
function steerByKeys(answer, spans, select) {
  answer.onclick = event => {
    const at = spans.indexOf(event.target.closest(".token"));
    if (at >= 0) { select(at); spans[at].focus({preventScroll: true}); }
  };
  answer.onkeydown = event => {
    const at = spans.indexOf(document.activeElement);
    const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1, Enter: at, " ": at}[event.key];
    if (at < 0 || !spans[to]) return;
    event.preventDefault();
    select(to);
    spans[to].focus();
  };
}

function tokenSpan(path, change, at) {
  const [text, q] = path.tokens[at];
  const span = el("span", "token inspectable");
  span.setAttribute("role", "button");
  span.tabIndex = -1;
  standing(text).split("\n").forEach((part, k) => {
    if (k) span.append(el("span", "nl", "↵"), "\n");
    span.append(part);
  });
  const step = stepAt(path, at);
  const delta = step ? step.delta[0] : change[at];
  span.title = `${visible(text)}  probability ${share(q)}`;
  if (delta !== undefined) {
    span.style.background = shade(delta);
    if (Math.abs(delta) >= SEEN) span.classList.add(direction(delta));
    span.title += `, Δ ${step ? "of the step " : ""}${signed(delta)}`;
  }
  if (path.pivots[at]) span.classList.add("pivot");
  else if (path.undecided[at]) span.classList.add("undecided");
  if (step) span.classList.add("step", ...(step.reported ? [] : ["maybe"]), ...(at === step.start ? ["opens"] : []), ...(at === step.end - 1 ? ["closes"] : []));
  return span;
}

function legend() {
  const sample = (delta, text, kind = "") => {
    const span = el("span", `token ${direction(delta)} ${kind}`, text);
    span.style.background = shade(delta);
    return span;
  };
  const kind = run.unit === "step" ? "step opens closes" : "pivot";
  return el("div", "legend", sample(.3, "raises"), sample(-.3, "lowers p(success)"),
    sample(.3, `pivotal ${run.unit}`, kind), sample(-.3, `pivotal ${run.unit}`, kind), ` by ${run.gap} or more; `,
    el("span", `token ${run.unit === "step" ? "step maybe opens closes" : "undecided"}`, "undecided"), " may do so");
}

function curveLegend() {
  const key = shape => { const box = svg("svg", {width: 22, height: 14}); box.append(shape); return box; };
  return el("div", "legend",
    key(svg("line", {x1: 0, x2: 22, y1: 7, y2: 7, stroke: "var(--accent)", "stroke-width": 2})), "p(success) ",
    key(svg("rect", {width: 22, height: 14, fill: "var(--band)"})), "its interval ",
    key(svg("rect", {width: 22, height: 14, fill: "rgba(var(--up), .35)"})),
    key(svg("rect", {width: 22, height: 14, fill: "rgba(var(--down), .35)"})), `pivotal ${run.unit}s, up and down`);
}

// A probability with as many digits as it takes to tell it from 0 and from 1.
const share = q => q > .9995 ? "> 0.999" : q > 0 && q < .001 ? "< 0.001" : q.toFixed(3);
const estimate = (label, [mean, low, high, n]) => `${label} ${p2(mean)} ${range(low, high)}` + (n ? `, n = ${n}` : "");

const changeText = ([mean, low, high, , decided, method]) =>
  [el("b", "", `Δ ${signed(mean)}`), ` [${signed(low)}, ${signed(high)}]` + ` by ${method}` + (decided ? "" : ", undecided")];

function tokenDetail(path, change, at) {
  const [text, q] = path.tokens[at];
  const step = stepAt(path, at);
  const [start, end] = step ? [step.start, step.end] : [at, at + 1];
  const before = path.curve.find(point => point[0] === start);
  const after = path.curve.find(point => point[0] === end);
  const line = el("div", "", code(text), ` token ${at + 1} of ${path.tokens.length} · probability ${share(q)}`);
  const pivot = path.pivots[at] || path.undecided[at];
  if (pivot) line.append(" · ", ...changeText(pivot));
  else if (change[at] !== undefined) line.append(` · Δ ${signed(change[at])}`);
  else if (!step) line.append(" · no Δ of its own: the policy is nearly sure of it, or it was measured together with its neighbours");
  const parts = [line];
  if (step) parts.push(el("div", "", `in the step of tokens ${start + 1} to ${end} · probability ${share(step.prob)} · `, ...changeText(step.delta)));
  const known = [before && estimate("before", before.slice(1)), after && estimate("after", after.slice(1))].filter(Boolean);
  if (known.length) parts.push(el("div", "dim", "p(success) " + known.join(" · ")));
  const siblings = path.siblings[at] || [];
  if (siblings.length) {
    const rows = siblings.map(([other, prob, passed, n]) => row("td", code(other, LONGEST), share(prob), n ? bar(passed / n) : "not measured", `${passed} of ${n}`));
    parts.push(el("div", "scroll", el("table", "", row("th", "sibling", "probability", "p(success)", "rollouts passed"), ...rows)));
  }
  return parts;
}

const row = (tag, ...cells) => el("tr", "", ...cells.map(cell => el(tag, "", cell)));
function bar(p) {
  const fill = el("i", "");
  fill.style.width = `${100 * p}%`;
  return el("span", "", el("span", "bar", fill), p2(p));
}

function pairTable(path, select) {
  const side = ([text, prob, passed, n]) => el("span", "", code(text, LONGEST), el("small", "", `${passed} of ${n} passed`), el("small", "", `probability ${share(prob)}`));
  const rows = path.pairs.map(pair => {
    const [gap, low, high] = pair.gap;
    const place = el("button", "", number(pair.at + 1));
    place.title = "Show this token";
    place.onclick = () => select(pair.at);
    return row("td", place, side(pair.chosen), side(pair.rejected), el("span", "", signed(gap), el("small", "", pair.confirmed ? `[${signed(low)}, ${signed(high)}]` : "")),
      signed(pair.expected_gain), pair.pvalue < .001 ? "< 0.001" : pair.pvalue.toFixed(3), pair.criterion,
      el("span", pair.confirmed ? "tag yes" : "tag", pair.confirmed ? "✓ confirmed" : run.finished ? "not confirmed" : "not yet tested"));
  });
  return el("table", "", row("th", "token", "chosen", "rejected", "gap", "expected gain", "p-value", "criterion", "result"), ...rows);
}

function chart(path, select) {
  const width = 800, height = 190, left = 30, right = 8, top = 10, bottom = 24;
  const length = path.tokens.length;
  const x = at => left + (width - left - right) * at / length;
  const y = p => top + (height - top - bottom) * (1 - p);
  const box = svg("svg", {class: "chart", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `p(success) from ${p2(path.curve[0][1])} to ${p2(path.curve.at(-1)[1])} over ${length} tokens`});
  for (const p of [0, .5, 1]) box.append(svg("line", {x1: left, x2: width - right, y1: y(p), y2: y(p), stroke: "var(--line)"}));
  for (const [at, pivot] of Object.entries(path.pivots)) {
    const colour = `rgba(var(${pivot[0] < 0 ? "--down" : "--up"}), .35)`;
    box.append(svg("rect", {x: x(Number(at)), width: Math.max(2, x(1) - x(0)), y: top, height: height - top - bottom, fill: colour}));
  }
  for (const step of path.steps.filter(step => step.reported)) {
    const colour = `rgba(var(${step.delta[0] < 0 ? "--down" : "--up"}), .35)`;
    box.append(svg("rect", {x: x(step.start), width: x(step.end) - x(step.start), y: top, height: height - top - bottom, fill: colour}));
  }
  const points = (key, list) => list.map(point => `${x(point[0])},${y(point[key])}`).join(" ");
  box.append(
    svg("polygon", {points: points(2, path.curve) + " " + points(3, [...path.curve].reverse()), fill: "var(--band)"}),
    svg("polyline", {points: points(1, path.curve), fill: "none", stroke: "var(--accent)", "stroke-width": 2,
      "stroke-linejoin": "round", "vector-effect": "non-scaling-stroke"}));
  box.onclick = event => {
    const frame = box.getBoundingClientRect();
    const at = ((event.clientX - frame.left) / frame.width * width - left) / (width - left - right) * length;
    select(Math.max(0, Math.min(length - 1, Math.floor(at))));
  };
  const place = svg("line", {class: "place", y1: top, y2: height - bottom, "vector-effect": "non-scaling-stroke"});
  const mark = at => {
    place.setAttribute("x1", x(at + .5));
    place.setAttribute("x2", x(at + .5));
    box.append(place);
  };
  const frame = el("div", "");
  frame.style.position = "relative";
  frame.append(box, ...[0, .5, 1].map(p => label(p === .5 ? "½" : String(p), {left: 0, top: `${y(p) - 9}px`})),
    label("0", {left: `${100 * left / width}%`, bottom: 0}), label(`${length} tokens`, {right: 0, bottom: 0}));
  return {frame, mark};
}

function label(text, place) {
  const span = el("span", "dim", text);
  Object.assign(span.style, {position: "absolute", fontSize: "11px"}, place);
  return span;
}
