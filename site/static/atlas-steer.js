/* Atlas, steering: from a latent to a case in which it is tried. A page that came from `vsp-report live` gets the panel
   itself, at the foot of the window, and no kernel before the reader asks for it. Any other page gets links into the
   pages of the cases, which carry the latents, and the command that answers what was not recorded there.

   The case that is steered stands in the address, before the sign (?case=ID): what follows the sign is the atlas's. */
// @ts-check
(function (root) {
  "use strict";
  /** So many are steered as one group at most. */
  var MOST = 512;
  /** Of a group that is carried by a link, and of cases that are named in a line. */
  var MOST_IN_LINK = 128, MOST_IN_LINE = 12;

  /**
   * @typedef {[id: string, title: string]} Case
   * @typedef {[place: number, rank: number, why: string]} Served
   * @typedef {{cases: Case[], latents: Record<string, Served[]>}} Cases
   * @typedef {{largest: (i: number, then: (value: number) => void) => void, label: (i: number) => string, redraw: () => void}} Atlas
   * @typedef {{edited: Set<number>, picks: (i: number) => boolean, hint: () => string, button: (i: number) => HTMLElement | null,
   *   plus: (i: number) => HTMLElement | null, group: (latents: number[], name: string) => void,
   *   cases: (i: number) => Node[]}} Steer
   * @typedef {{get: (key: string) => any, on: (event: string, hear: (told: any) => void) => void,
   *   open: (caseId: string) => void}} Kernel
   * @typedef {{VspLive: {KernelModel: new (base: string, caseId: string) => Kernel},
   *   VspPanel: {render: (given: {model: object, el: HTMLElement, address: object}) => void}}} Loaded
   */

  var script = /** @type {HTMLScriptElement | null} */ (document.currentScript);
  var beside = script ? script.src.replace(/[^/]*$/, "") : "";

  /**
   * @template {keyof HTMLElementTagNameMap} T
   * @param {T} tag @param {string} kind @param {...(Node | string)} inside @returns {HTMLElementTagNameMap[T]}
   */
  function element(tag, kind, ...inside) {
    var made = document.createElement(tag);
    if (kind) made.className = kind;
    made.append(...inside);
    return made;
  }
  /** @param {string} text @param {() => void} pressed */
  function pressable(text, pressed) {
    var made = element("button", "", text);
    made.type = "button";
    made.addEventListener("click", pressed);
    return made;
  }
  /** @param {number} count */
  function latents(count) { return String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f") + (count === 1 ? " latent" : " latents"); }
  /** @param {Case} one @param {string} carried */
  function linked(one, carried) {
    var link = element("a", "", one[1]);
    link.href = "../../cases/" + encodeURIComponent(one[0]) + "/index.html#" + carried;
    return link;
  }
  /** What takes a kernel, and how to have one. @param {string} opens */
  function command(opens) {
    return element("p", "hint", "What was not recorded there takes a kernel: ", element("code", "", "vsp-report live " + opens));
  }
  /** Links in a line, or behind a line where there are many. @param {string} said @param {Case[]} cases @param {string} carried */
  function lined(said, cases, carried) {
    var line = element("p", "hint");
    cases.forEach(function (one, n) { line.append(n ? ", " : "", linked(one, carried)); });
    if (cases.length <= MOST_IN_LINE) {
      line.prepend(said + ": ");
      line.append(".");
      return line;
    }
    return element("details", "more", element("summary", "", said + " (" + cases.length + ")"), line);
  }

  /** Links into the pages of cases, which play back what was recorded. @param {Cases} known @returns {Steer} */
  function Alone(known) {
    var form = document.querySelector("[data-latent-filters]");
    var group = element("details", "more"), body = element("div", "");
    group.hidden = true;
    if (form) form.after(group);
    return {
      edited: new Set(), picks: function () { return false; }, hint: function () { return ""; },
      button: function () { return null; }, plus: function () { return null; },
      group: function (chosen, name) {
        group.hidden = !known.cases.length || !chosen.length || chosen.length > MOST_IN_LINK;
        if (group.hidden) return;
        group.replaceChildren(element("summary", "", chosen.length === 1 ? "Steer with this latent" : "Steer with these " + latents(chosen.length)), body);
        var carried = "latents=" + chosen.join(",");
        var links = element("p", "hint");
        known.cases.forEach(function (one, n) { links.append(n ? ", " : "On a case: ", linked(one, carried + (name ? "&name=" + encodeURIComponent(name) : ""))); });
        links.append(".");
        body.replaceChildren(links, command(known.cases[0][0]));
      },
      cases: function (i) {
        var there = new Set((known.latents[i] || []).map(function (one) { return one[0]; }));
        var rest = known.cases.filter(function (_, n) { return !there.has(n); }), carried = "latent=" + i;
        var first = known.latents[i] ? known.cases[known.latents[i][0][0]] : known.cases[0];
        if (!first) return [];
        return [rest.length ? lined(there.size ? "On other cases it can be tried too" : "On any case that reads these latents", rest, carried) : "",
          command('"' + first[0] + "#" + carried + '"')]
          .filter(function (one) { return one instanceof Node; });
      },
    };
  }

  /** The panel on this page. @param {string} base @param {Cases} known @param {Atlas} atlas @returns {Steer} */
  function Beside(base, known, atlas) {
    /** @type {Set<number>} */
    var edited = new Set();
    /** @type {{latents: number[], name?: string, strength?: number}[]} */
    var waiting = [];
    /** @type {Kernel | null} */
    var model = null;
    var begun = false, drawn = false, chosen = asked();
    var article = /** @type {HTMLElement} */ (document.querySelector("[data-atlas]"));
    var style = element("link", "");
    style.rel = "stylesheet";
    style.href = beside + "panel.css";
    document.head.append(style);

    var title = element("h2", "", "Steer");
    title.id = "steer-title";
    var which = element("select", ""), picking = element("input", "");
    which.setAttribute("aria-label", "Case that is steered");
    picking.type = "checkbox";
    var said = element("p", "steer-said");
    said.setAttribute("role", "status");
    var startButton = pressable("Start the panel", function () { start(); });
    var fold = pressable("Fold", function () { unfold(Boolean(panel.hidden)); });
    var panel = element("div", "steer-panel");
    panel.id = "steer-panel";
    panel.hidden = fold.hidden = true;
    fold.setAttribute("aria-controls", panel.id);
    var foot = element("section", "steer", element("div", "steer-line", title, element("label", "", "on ", which),
      element("label", "steer-pick", picking, " a click in the figures picks"), said, startButton, fold), panel);
    foot.setAttribute("aria-labelledby", title.id);
    if (known.cases.length) article.append(foot);
    known.cases.forEach(function (one) {
      var option = element("option", "", one[1]);
      option.value = one[0];
      which.append(option);
    });
    which.value = chosen || (known.cases.length ? known.cases[0][0] : "");
    which.addEventListener("change", function () {
      chosen = which.value;
      remember({ case: chosen, try: null });
      if (model) model.open(chosen);
    });
    picking.addEventListener("change", atlas.redraw);
    // What has the focus is not to lie behind the foot of the window.
    new ResizeObserver(function () { document.documentElement.style.scrollPaddingBottom = foot.offsetHeight + "px"; }).observe(foot);
    panel.addEventListener("vsp:edited", function (event) {
      edited.clear();
      /** @type {number[]} */ (event instanceof CustomEvent ? event.detail.latents : []).forEach(function (k) { edited.add(k); });
      marked();
    });

    /** The case that the address names, if it is one of these. */
    function asked() {
      var one = new URLSearchParams(location.search).get("case");
      return known.cases.some(function (known) { return known[0] === one; }) ? one : null;
    }
    /** @param {Record<string, string | null>} told */
    function remember(told) {
      var said = new URLSearchParams(location.search);
      Object.entries(told).forEach(function (pair) { if (pair[1] === null) said.delete(pair[0]); else said.set(pair[0], pair[1]); });
      history.replaceState(history.state, "", "?" + said + location.hash);
    }
    /** @param {boolean} open */
    function unfold(open) {
      panel.hidden = !open;
      fold.textContent = open ? "Fold" : "Unfold";
      fold.setAttribute("aria-expanded", String(open));
      said.hidden = open && !said.classList.contains("bad");
    }
    /** @param {string} text @param {boolean} [bad] */
    function say(text, bad) {
      said.textContent = text;
      said.classList.toggle("bad", Boolean(bad));
      said.hidden = !panel.hidden && !bad;
    }
    /** @param {string} name @returns {Promise<void>} */
    function loaded(name) {
      return new Promise(function (done, failed) {
        var made = element("script", "");
        made.src = beside + name;
        made.addEventListener("load", function () { done(); });
        made.addEventListener("error", function () { failed(new Error(name)); });
        document.head.append(made);
      });
    }
    function start() {
      if (begun) return;
      begun = true;
      startButton.hidden = true;
      chosen = which.value;
      remember({ case: chosen });
      unfold(true);
      Promise.all(["panel.js", "live.js"].map(loaded)).then(begin, function () {
        begun = false;
        unfold(false);
        startButton.hidden = false;
        say("The panel's scripts cannot be loaded. Is `vsp-report live` still running?", true);
      });
    }
    function begin() {
      var page = /** @type {Loaded} */ (/** @type {unknown} */ (window)), el = element("div", "");
      model = new page.VspLive.KernelModel(base, which.value);
      model.on("change:state", function (state) { if (state.kind !== "ready") say(state.message, state.kind === "lost"); else say("Ready."); });
      model.on("msg:custom", function (event) {
        if (event.type === "answered") say("“" + event.text.trim() + "”" + moved(event));
        if (event.type === "answered" || event.type === "done") requestAnimationFrame(shown);
      });
      panel.append(el);
      panel.dataset.panel = "";
      panel.dataset.host = "kernel";
      fold.hidden = false;
      page.VspPanel.render({ model: model, el: el, address: {
        read: function () { return new URLSearchParams(location.search); },
        /** @param {string} state */
        write: function (state) { remember({ try: state }); return location.href; },
      } });
      drawn = true;
      Object.assign(panel, { model: model });
      waiting.splice(0).forEach(hand);
    }
    /** The answer comes into view, where the panel is too low for all of it. */
    function shown() {
      var answer = panel.querySelector(".vsp-margin");
      if (answer) panel.scrollTop += Math.max(0, answer.getBoundingClientRect().bottom - panel.getBoundingClientRect().bottom + 8);
    }
    /** How far the answer moved, for who has folded the panel. @param {{margin: number | null, change: number | null}} told */
    function moved(told) {
      /** @param {number} value */
      function signed(value) { return (value > 0 ? "+" : "") + value.toFixed(2).replace("-", "−"); }
      return told.margin === null || told.change === null ? "" : ", log-odds " + signed(told.margin - told.change) + " → " + signed(told.margin);
    }
    /** @param {{latents: number[], name?: string, strength?: number}} one */
    function hand(one) {
      if (drawn) document.dispatchEvent(new CustomEvent("vsp:latents", { detail: one }));
      else { waiting.push(one); one.latents.forEach(function (k) { edited.add(k); }); marked(); }
    }
    /** @param {number} i */
    function add(i) {
      // Who has chosen no case gets one in which the latent matters.
      var lines = known.latents[i];
      if (!begun && !chosen && lines) which.value = known.cases[lines[0][0]][0];
      edited.add(i);
      marked();
      start();
      // Where it is silent it is set to the largest that is known of it.
      atlas.largest(i, function (value) {
        hand({ latents: [i], name: "latent " + i + (atlas.label(i) ? " " + atlas.label(i) : ""), strength: Number(value.toPrecision(2)) });
      });
    }
    function marked() {
      atlas.redraw();
      document.querySelectorAll("[data-steer-with]").forEach(function (one) { if (one instanceof HTMLElement) mark(one); });
    }
    /** @param {HTMLElement} button */
    function mark(button) {
      var is = edited.has(Number(button.dataset.steerWith));
      button.setAttribute("aria-disabled", String(is));
      button.textContent = button.className === "plus" ? (is ? "✓" : "+") : is ? "Among the edits" : "Steer with it";
    }
    /** @param {number} i @param {string} kind */
    function chooser(i, kind) {
      var made = pressable("", function () { if (!edited.has(i)) add(i); });
      made.className = kind;
      made.dataset.steerWith = String(i);
      mark(made);
      return made;
    }
    var groupButton = pressable("", function () { /* until there is a group */ }), count = document.querySelector("[data-latent-filters] .count");
    groupButton.className = "quiet";
    groupButton.hidden = true;
    if (count) count.append(" ", groupButton);

    var there = known.cases.length > 0;
    return {
      edited: edited,
      picks: function (i) {
        if (!there || !picking.checked) return false;
        add(i);
        return true;
      },
      hint: function () { return there && picking.checked ? "click: steer with it" : ""; },
      button: function (i) {
        if (!there) return element("p", "hint", "No case of this site reads these latents, so there is nothing to steer.");
        return chooser(i, "with");
      },
      plus: function (i) {
        if (!there) return null;
        var made = chooser(i, "plus");
        made.setAttribute("aria-label", "Steer with latent " + i);
        return made;
      },
      group: function (chosen, name) {
        groupButton.hidden = !there || !chosen.length;
        groupButton.textContent = "Steer with " + (chosen.length === 1 ? "it" : "these " + latents(chosen.length).replace(/ latents$/, ""));
        groupButton.onclick = function () {
          if (chosen.length > MOST) {
            return say(latents(chosen.length) + " are too many to steer at once. Narrow them to at most " + MOST + ".", true);
          }
          hand({ latents: chosen, name: (name ? name + ", " : "") + latents(chosen.length) });
          start();
        };
      },
      cases: function () { return []; },
    };
  }

  /** @param {Cases} known @param {Atlas} atlas @returns {Steer} */
  function steer(known, atlas) {
    var mark = /** @type {HTMLMetaElement | null} */ (document.querySelector('meta[name="vsp-live"]'));
    return mark ? Beside(mark.content, known, atlas) : Alone(known);
  }
  Object.assign(root, { VSP_STEER: steer });
})(window);
