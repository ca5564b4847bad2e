const {run, questions} = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const number = x => x.toLocaleString("en");
const p2 = x => x.toFixed(2);
const signed = x => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
const range = (low, high) => `[${p2(low)}, ${p2(high)}]`;

function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Characters that are not seen, or that turn the text around them, are shown by their numbers.
const named = text => text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, c =>
  "\n\t\u200c\u200d".includes(c) ? c : `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
// A token alone: nothing stays empty, and a mark that combines has something to stand on.
const standing = text => {
  if (/^[\u200c\u200d]+$/u.test(text)) return [...text].map(c => `⟨U+${c.codePointAt(0).toString(16).toUpperCase()}⟩`).join("");
  return named(text).replace(/^\p{M}/u, "◌$&") || "∅";
};
const visible = text => standing(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
const LONGEST = 40;
function code(text, longest = Infinity) {
  const letters = [...visible(text)];
  return el("code", "", letters.length > longest ? letters.slice(0, longest).join("") + "…" : letters.join(""));
}
const direction = delta => delta < 0 ? "down" : "up";
const shade = delta => `rgba(var(--${direction(delta)}), ${Math.min(.5, Math.abs(delta)).toFixed(3)})`;
const SEEN = .05;  // changes of p(success) smaller than this are not underlined

const questionCount = Object.values(run.status).reduce((a, b) => a + b, 0);

function showRun() {
  const pieces = [run.name];
  if (!run.finished) pieces.push("not finished");
  if (questions.length < questionCount)
    pieces.push(`the first ${number(questions.length)} of ${number(questionCount)} questions`);
  byId("name").append(pieces.join(" · "));
  const card = (value, label) => byId("cards").append(el("div", "card", el("b", "", value), el("span", "", label)));
  const total = run.total;
  card(number(run.status.searched || 0), `of ${number(questionCount)} questions searched`);
  if (run.unit === "token") card(number(run.confirmed), `of ${number(run.proposed)} proposed pairs confirmed`);
  card(number(total.rollouts), "rollouts (sampled continuations)");
  card(number(total.tokens), "tokens sampled");
  const share = total.rollouts ? total.truncated / total.rollouts : 0;
  card((100 * share).toFixed(1) + " %", "of the rollouts cut by the length limit");
  const each = number(Math.round(run.kept.bytes_per_rollout));
  if (run.kept.rollouts_bytes)
    card(number(run.kept.rollouts_bytes), `bytes of rollouts kept, ${each} for each`);
  if (total.unscored) card(number(total.unscored), "unscored, drawn again");
  for (const [term, text] of run.words) byId("words").append(el("dt", "", term), el("dd", "", text));
  for (const [name, value] of run.settings) byId("settings").append(el("dt", "dim", name), el("dd", "", value));
  byId("spent").append(spentTable());
}

function spentTable() {
  const line = (name, tally, text) => row("td", name, ...["rollouts", "tokens", "passed", "truncated", "unscored"].map(key => number(tally[key])), text);
  return el("table", "numbers", row("th", "purpose", "rollouts", "tokens", "passed", "truncated", "drawn again", "spent on"),
    ...Object.entries(run.spent).map(([purpose, tally]) => line(purpose, tally, tally.for)),
    line("all", run.total, ""));
}

const confirmedIn = question => question.paths.flatMap(path => path.pairs).filter(pair => pair.confirmed).length;
const pivotsIn = question => question.paths.reduce((n, path) => n + Object.keys(path.pivots).length + path.steps.filter(step => step.reported).length, 0);
const WITH_PAIRS = "with pairs";
let filter = null;
let current = null;

function kept(question) {
  const sought = byId("find").value.toLowerCase();
  const right = filter === null || (filter === WITH_PAIRS ? confirmedIn(question) > 0 : question.status === filter);
  return right && (question.id.toLowerCase().includes(sought) || question.prompt.toLowerCase().includes(sought));
}

function showFilters() {
  const status = countBy(questions.map(q => q.status));
  const pairs = questions.filter(confirmedIn).length;
  const choices = [[null, questions.length], ...Object.entries(status), ...(pairs ? [[WITH_PAIRS, pairs]] : [])];
  byId("filters").replaceChildren(...choices.map(([name, n]) => {
    const button = el("button", "", `${name ?? "all"} ${number(n)}`);
    button.setAttribute("aria-pressed", filter === name);
    button.onclick = () => {
      filter = name;
      for (const other of byId("filters").children) other.setAttribute("aria-pressed", other === button);
      showRows();
    };
    return button;
  }));
}

function countBy(values) {
  const counts = {};
  for (const value of values) counts[value] = (counts[value] || 0) + 1;
  return counts;
}

const plural = (n, thing) => `${number(n)} ${thing}${n === 1 ? "" : "s"}`;

/** The list of questions; one that the filter leaves out gives way to the first that it keeps. */
function showRows() {
  const shown = questions.filter(kept);
  if (shown.length && !shown.includes(current)) showQuestion(shown[0]);
  byId("rows").replaceChildren(...shown.map(question => {
    const facts = question.status === "searched"
      ? `${number(pivotsIn(question))} pivotal` + (run.unit === "token" ? ` · ${plural(confirmedIn(question), "pair")}` : "")
      : question.status;
    const button = el("button", "", el("span", "name", named(question.id)),
      el("span", "dim", p2(question.solved[0])), el("span", "meta", facts));
    button.setAttribute("aria-current", question === current);
    button.title = `${named(question.id)}: p(success) ${p2(question.solved[0])} before the answer`;
    button.onclick = () => turnTo(question);
    return button;
  }));
  if (!shown.length) byId("rows").append(el("p", "dim", "No question fits."));
}

const narrow = () => matchMedia("(max-width: 760px)").matches;

function turnTo(question) {
  showQuestion(question);
  showRows();
  byId("rows").querySelector("[aria-current=true]")?.scrollIntoView({block: "nearest"});
  if (narrow()) byId("question").scrollIntoView();
  byId("question").focus({preventScroll: true});
}

function steer(question) {
  const shown = questions.filter(kept), at = shown.indexOf(question);
  const go = (text, label, to) => {
    const button = el("button", "", text);
    button.setAttribute("aria-label", label);
    button.disabled = !to;
    button.onclick = () => turnTo(to);
    return button;
  };
  const list = el("button", "to-list", "list");
  list.onclick = () => byId("list").scrollIntoView();
  return el("div", "steer", list, go("‹", "previous question", shown[at - 1]), go("›", "next question", shown[at + 1]));
}

function showQuestion(question) {
  current = question;
  const [mean, low, high, n] = question.solved;
  const box = byId("question");
  box.replaceChildren(
    steer(question),
    el("h2", "", named(question.id)),
    el("p", "facts", `${question.status} · ${number(Math.round(mean * n))} of ${plural(n, "filter rollout")} passed` +
      `${question.filter_stopped ? ", the rest was not drawn" : ""}: ` +
      `p(success) ${p2(mean)} ${range(low, high)} · in all ${plural(question.rollouts, "rollout")}, ` +
      plural(question.tokens, "token") + (question.redrawn ? ` · ${number(question.redrawn)} drawn again` : "")),
    el("h3", "", "Prompt"), el("div", "text prompt", named(question.prompt)));
  if (!question.paths.length) box.append(el("p", "dim", "No answer of this question was searched."));
  question.paths.forEach((path, k) => box.append(pathSection(path, question.paths.length > 1 ? ` ${k + 1}` : "")));
}

byId("find").oninput = showRows;
showRun();
showFilters();
const start = questions.find(confirmedIn) || questions.find(q => q.paths.length) || questions[0];
if (start) showQuestion(start); else byId("question").append("No question is finished yet.");
showRows();
