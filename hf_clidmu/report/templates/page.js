"use strict";
// The page's own script. What comes from the data reaches the document as text alone, never as markup.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const byId = (id) => document.getElementById(id);
  const { names, columns, chunkSize, chunkCount, image, reasons } = data;
  const total = columns.index.length;
  const WORDS = ["", "wrong", "right", "unsure"];
  const SUGGESTIONS = ["keep", "relabel", "review"];
  const decisions = new Uint8Array(total);
  const chosen = new Map(); // position -> class chosen by a person
  let shown = [];
  let focused = 0; // place within `shown`
  let rendered = new Map(); // place within `shown` -> element

  // ---- what is kept between visits ------------------------------------------------------------------------------
  const STORE = "hf_clidmu.label_report." + data.id;
  const remember = () => {
    const kept = [];
    for (let p = 0; p < total; p++) if (decisions[p]) kept.push([p, decisions[p], chosen.has(p) ? chosen.get(p) : -1]);
    try { localStorage.setItem(STORE, JSON.stringify(kept)); } catch { /* private windows keep nothing; export does */ }
  };
  try {
    for (const [p, decision, label] of JSON.parse(localStorage.getItem(STORE) || "[]")) {
      if (p < total) { decisions[p] = decision; if (label >= 0) chosen.set(p, label); }
    }
  } catch { /* nothing kept, or nothing that can be read */ }

  // ---- samples: parsed a chunk at a time, when they are looked at -----------------------------------------------
  const chunks = new Map();
  const sampleOf = (p) => {
    const number = Math.floor(p / chunkSize);
    if (number >= chunkCount) return null;
    if (!chunks.has(number)) {
      const element = byId("chunk-" + number);
      if (!element) return null; // the page is still being read
      chunks.set(number, JSON.parse(element.textContent));
    }
    const value = chunks.get(number)[p % chunkSize];
    return value === undefined ? null : value;
  };

  // ---- filter, sort, search -------------------------------------------------------------------------------------
  const choose = (id) => { const value = byId(id).value; return value === "" ? -1 : Number(value); };
  const matches = (p, words) => {
    if (!words) return true;
    if (String(columns.index[p]) === words) return true;
    const own = names[columns.given[p]] + " " + names[columns.suggested[p]];
    if (own.toLowerCase().includes(words)) return true;
    const sample = image ? null : sampleOf(p);
    return typeof sample === "string" && sample.toLowerCase().includes(words);
  };
  const refresh = () => {
    const given = choose("given"), suggestion = choose("suggestion"), decision = choose("decision");
    const words = byId("search").value.trim().toLowerCase();
    shown = [];
    for (let p = 0; p < total; p++) {
      if (given >= 0 && columns.given[p] !== given) continue;
      if (suggestion >= 0 && columns.suggestion[p] !== suggestion) continue;
      if (decision >= 0 && decisions[p] !== decision) continue;
      if (matches(p, words)) shown.push(p);
    }
    const key = byId("sort").value;
    if (key !== "suspect") shown.sort((a, b) => columns[key][a] - columns[key][b] || a - b);
    focused = 0;
    viewport.scrollTop = 0;
    clear();
    draw();
    tell();
  };
  const tell = () => {
    let decided = 0;
    for (let p = 0; p < total; p++) if (decisions[p]) decided++;
    byId("count").textContent = `${shown.length.toLocaleString("en")} shown, ${decided.toLocaleString("en")} decided`;
  };

  // ---- the list: only what is in sight exists -------------------------------------------------------------------
  const viewport = byId("viewport"), list = byId("list");
  let height = 132;
  const clear = () => { list.replaceChildren(); rendered = new Map(); };
  const draw = () => {
    height = matchMedia("(max-width: 720px)").matches ? 200 : 132;
    list.style.height = shown.length * height + "px";
    if (!shown.length) { const none = make("p", "empty", "No sample matches."); list.replaceChildren(none); list.style.height = "auto"; return; }
    const first = Math.max(0, Math.floor(viewport.scrollTop / height) - 4);
    const last = Math.min(shown.length, Math.ceil((viewport.scrollTop + viewport.clientHeight) / height) + 4);
    for (const [place, element] of rendered) {
      if ((place < first || place >= last) && element !== document.activeElement && !element.contains(document.activeElement)) { element.remove(); rendered.delete(place); }
    }
    for (let place = first; place < last; place++) if (!rendered.has(place)) append(place);
  };
  const append = (place) => {
    const element = card(place);
    rendered.set(place, element);
    // In the order of the list, so that readers of the document meet samples in the order of sight.
    let next = null;
    for (const other of list.children) if (Number(other.dataset.place) > place) { next = other; break; }
    list.insertBefore(element, next);
  };
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const percent = (share) => Math.round(share * 100) + " %";
  const card = (place) => {
    const p = shown[place], sample = sampleOf(p);
    const given = names[columns.given[p]], suggested = names[columns.suggested[p]], wrong = columns.wrong[p] / 1000;
    const element = make("article", "sample");
    element.setAttribute("role", "listitem");
    element.setAttribute("aria-setsize", shown.length);
    element.setAttribute("aria-posinset", place + 1);
    element.tabIndex = place === focused ? 0 : -1;
    element.dataset.place = place;
    element.dataset.decision = decisions[p];
    element.style.top = place * height + "px";
    const said = SUGGESTIONS[columns.suggestion[p]];
    element.setAttribute("aria-label", `Row ${columns.index[p]}, labelled ${given}, ${percent(wrong)} likely wrong` +
      (said === "relabel" ? `, suggested: ${suggested}` : "") + (decisions[p] ? `, marked ${WORDS[decisions[p]]}` : ""));
    if (image) {
      if (typeof sample === "string") {
        const picture = make("img");
        picture.alt = `sample ${columns.index[p]}`;
        picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth <= 64));
        picture.src = sample;
        element.append(picture);
      } else element.append(make("span", "muted", "no thumbnail"));
    } else element.classList.add("plain");

    const body = make("div", "body"), labels = make("div", "labels");
    labels.append(make("span", "row", "#" + columns.index[p]), make("b", "", given));
    if (said !== "keep") labels.append(make("span", "muted", said === "relabel" ? "→" : "→ perhaps"), make("b", "", suggested));
    body.append(labels);
    if (!image) body.append(make("p", "text", typeof sample === "string" ? sample : "(left out of this page)"));
    body.append(make("p", "reasons", reasons.map(([name, text]) => `${text} ${columns[name][p] === null ? "–" : percent(columns[name][p] / 100)}`).join(" · ")));
    element.append(body);

    const side = make("div", "side"), meter = make("div", "meter"), track = make("span"), fill = make("i");
    fill.style.width = wrong * 100 + "%";
    track.append(fill);
    meter.append(make("b", "", percent(wrong)), track, make("small", "muted", "wrong"));
    const choices = make("div", "choices");
    for (const value of [1, 2, 3]) {
      const button = make("button", "", WORDS[value][0].toUpperCase() + WORDS[value].slice(1));
      button.type = "button";
      button.tabIndex = place === focused ? 0 : -1;
      button.dataset.set = value;
      button.setAttribute("aria-pressed", decisions[p] === value);
      button.addEventListener("click", () => {
        focused = place;
        decide(decisions[p] === value ? 0 : value, false);
        rendered.get(place)?.querySelector(`[data-set="${value}"]`).focus(); // where it was, on the card made anew
      });
      choices.append(button);
    }
    side.append(meter, choices);
    if (decisions[p] === 1) {
      const select = make("select");
      select.setAttribute("aria-label", "New label");
      const unset = make("option", "", said === "keep" ? "new label: not set" : `${suggested} (suggested)`);
      unset.value = "-1";
      select.append(unset);
      names.forEach((name, label) => {
        if (label === columns.given[p]) return;
        const option = make("option", "", name);
        option.value = label;
        select.append(option);
      });
      select.value = chosen.has(p) ? chosen.get(p) : "-1";
      select.addEventListener("change", () => {
        if (select.value === "-1") chosen.delete(p); else chosen.set(p, Number(select.value));
        remember();
      });
      side.append(select);
    }
    element.append(side);
    element.addEventListener("focusin", () => { if (focused !== place) { focused = place; roving(); } });
    return element;
  };
  const roving = () => {
    for (const [place, element] of rendered) {
      element.tabIndex = place === focused ? 0 : -1;
      for (const button of element.querySelectorAll("button")) button.tabIndex = element.tabIndex;
    }
  };

  // ---- marking --------------------------------------------------------------------------------------------------
  const replace = (place) => {
    const old = rendered.get(place);
    if (!old) return;
    const fresh = card(place);
    old.replaceWith(fresh);
    rendered.set(place, fresh);
  };
  const decide = (value, advance) => {
    if (!shown.length) return;
    const p = shown[focused];
    decisions[p] = value;
    if (value !== 1) chosen.delete(p);
    remember();
    replace(focused);
    byId("announce").textContent = `Row ${columns.index[p]} ${value ? "marked " + WORDS[value] : "no longer marked"}.`;
    tell();
    go(advance ? Math.min(focused + 1, shown.length - 1) : focused);
  };
  const go = (place) => {
    focused = Math.max(0, Math.min(place, shown.length - 1));
    const top = focused * height;
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    else if (top + height > viewport.scrollTop + viewport.clientHeight) viewport.scrollTop = top + height - viewport.clientHeight;
    draw();
    roving();
    const element = rendered.get(focused);
    if (element) element.focus({ preventScroll: true });
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (!shown.length) return;
    const page = Math.max(1, Math.floor(viewport.clientHeight / height) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: page, PageUp: -page, Home: -total, End: total };
    const marks = { w: 1, r: 2, u: 3, Backspace: 0, Delete: 0 };
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const inside = viewport.contains(event.target);
    if (key in marks && (inside || event.target === document.body)) decide(marks[key], marks[key] !== 0);
    else if (key in moves && inside) go(focused + moves[key]);
    else return;
    event.preventDefault();
  });

  // ---- export ---------------------------------------------------------------------------------------------------
  window.exportDecisions = () => {
    const lines = ["index,given_label,decision,new_label"];
    for (let p = 0; p < total; p++) {
      if (decisions[p]) lines.push([columns.index[p], columns.given[p], WORDS[decisions[p]], chosen.has(p) ? chosen.get(p) : ""].join(","));
    }
    return lines.join("\n") + "\n";
  };
  byId("export").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([window.exportDecisions()], { type: "text/csv" }));
    link.download = "label_decisions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // ---- themes and charts ----------------------------------------------------------------------------------------
  const THEME = "hf_clidmu.theme";
  let theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  try { theme = localStorage.getItem(THEME) || theme; } catch { /* as the system has it */ }
  const dress = () => {
    document.documentElement.dataset.theme = theme;
    document.documentElement.style.colorScheme = theme;
    byId("theme").setAttribute("aria-pressed", theme === "dark");
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
  };
  window.drawCharts = () => {
    const specs = read("charts");
    for (const figure of document.querySelectorAll("[data-chart]")) {
      window.vegaEmbed(figure, specs[figure.dataset.chart][theme], { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme } })
        .catch((error) => { figure.textContent = "This chart could not be drawn: " + error.message; });
    }
  };
  byId("theme").addEventListener("click", () => {
    theme = theme === "dark" ? "light" : "dark";
    try { localStorage.setItem(THEME, theme); } catch { /* as the system has it, next time */ }
    dress();
    if (window.vegaEmbed) window.drawCharts();
  });

  // ---- begin ----------------------------------------------------------------------------------------------------
  dress();
  names.forEach((name, label) => { const option = make("option", "", name); option.value = label; byId("given").append(option); });
  for (const id of ["given", "suggestion", "decision", "sort"]) byId(id).addEventListener("change", refresh);
  let waiting;
  byId("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 150); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  viewport.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  window.addEventListener("resize", () => { clear(); draw(); });
  // Chunks but the first follow this script in the document; a list scrolled or kept meanwhile is filled in then.
  document.addEventListener("DOMContentLoaded", () => { clear(); draw(); });
  refresh();
})();
