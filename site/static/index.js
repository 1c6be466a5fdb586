/* Index: search and filters over the cards and the charts, with their state behind the # of the address.

   The page holds the first cards. The others stand where only a page without scripts shows them, as text; they are read
   from there once, and shown as they are asked for. */
(function () {
  "use strict";
  var list = document.querySelector("[data-cards]");
  if (!list) return;
  var form = document.querySelector("[data-filters]");
  var more = document.querySelector("[data-more]"), none = document.querySelector("[data-none]");
  var step = Number(list.dataset.shown) || 48, room = step;
  var cards = Array.prototype.slice.call(list.children), texts = null;
  var names = form ? Array.prototype.map.call(form.querySelectorAll("select"), function (select) { return select.name; }) : [];
  var fitting = cards, complete = false, watchers = [];

  // What only a page without scripts shows, is text here: the same markup, escaped by the same rules.
  function complement() {
    if (complete) return;
    complete = true;
    var rest = document.querySelector("noscript");
    if (!rest) return;
    var parsed = new DOMParser().parseFromString(rest.textContent, "text/html");
    Array.prototype.forEach.call(parsed.querySelectorAll("[data-rest] > li"), function (card) { cards.push(document.adoptNode(card)); });
    rest.remove();
  }

  function wordsOf(card) { return (card.textContent + " " + card.dataset.words + " " + card.dataset.tag).toLowerCase(); }

  function asked() {
    var found = {};
    if (form) new FormData(form).forEach(function (value, name) { if (value) found[name] = String(value); });
    return found;
  }

  function fits(card, i, want, words) {
    return names.every(function (name) {
      if (!want[name]) return true;
      var has = card.dataset[name] || "";
      return name === "tag" ? JSON.parse(has || "[]").indexOf(want[name]) >= 0 : has === want[name];
    }) && words.every(function (word) { return texts[i].indexOf(word) >= 0; });
  }

  function show() {
    // Cards keep their place in the page while they stay; the reader's focus stays with them.
    var wanted = fitting.slice(0, room), at = 0;
    var keep = new Set(wanted);
    Array.prototype.slice.call(list.children).forEach(function (card) { if (!keep.has(card)) card.remove(); });
    wanted.forEach(function (card) {
      if (list.children[at] !== card) list.insertBefore(card, list.children[at] || null);
      at += 1;
    });
    var left = fitting.length - wanted.length;
    more.hidden = left <= 0;
    more.firstElementChild.textContent = left > step ? "Show " + step + " more of " + left : "Show the other " + left;
    none.hidden = fitting.length > 0;
  }

  function apply(remember) {
    var want = asked(), words = (want.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    var anything = Object.keys(want).length > 0;
    complement();
    if (words.length && !texts) texts = cards.map(wordsOf);
    fitting = anything ? cards.filter(function (card, i) { return fits(card, i, want, words); }) : cards;
    room = step;
    show();
    if (form) {
      form.querySelector("[data-count]").textContent =
        anything ? fitting.length + " of " + cards.length + " cases" : cards.length + " cases";
      form.querySelector("[data-clear]").hidden = !anything;
    }
    if (remember) {
      var hash = new URLSearchParams(want).toString();
      history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
    }
    watchers.forEach(function (watch) { watch(anything); });
  }

  function restore() {
    if (!form) return show();
    var given = new URLSearchParams(location.hash.slice(1));
    form.elements.q.value = given.get("q") || "";
    names.forEach(function (name) {
      var select = form.elements[name];
      select.value = given.get(name) || "";
      if (select.selectedIndex < 0) select.value = "";
    });
    apply(false);
  }

  function clear() {
    form.elements.q.value = "";
    names.forEach(function (name) { form.elements[name].value = ""; });
    apply(true);
    form.elements.q.focus();
  }

  more.firstElementChild.addEventListener("click", function () {
    var first = room;
    room += step;
    show();
    var next = list.children[first];
    if (next) next.querySelector("a").focus({ preventScroll: true });
  });
  if (form) {
    form.addEventListener("input", function () { apply(true); });
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    form.addEventListener("reset", function (event) { event.preventDefault(); clear(); });
    none.querySelector("button").addEventListener("click", clear);
    window.addEventListener("hashchange", restore);
    form.hidden = false;
  }
  restore();
  if (window.performance && performance.mark) performance.mark("vsp-usable");

  // --- charts: the library comes when they are near --------------------------------------------------------------------

  var summary = document.querySelector("[data-summary]"), specs = window.VSP_FIGURES;
  if (!summary || !specs || !window.VSP_COLOURS) return;
  var dark = matchMedia("(prefers-color-scheme: dark)"), views = {};

  function coloured(value) {
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      var copy = {};
      Object.keys(value).forEach(function (key) { copy[key] = coloured(value[key]); });
      return copy;
    }
    if (typeof value !== "string" || !dark.matches) return value;
    var name = Object.keys(VSP_COLOURS.light).filter(function (key) { return VSP_COLOURS.light[key] === value; })[0];
    return name ? VSP_COLOURS.dark[name] : value;
  }

  function narrowed(id) {
    // Tables of other cases go into the same chart: those that the reader has left in.
    var spec = coloured(specs[id]), place = summary.querySelector('[data-figure="' + id + '"]');
    spec.width = Math.min(spec.width, Math.max(140, place.clientWidth - (spec.height.step ? 190 : 60)));
    if (fitting.length === cards.length) return spec;
    var fit = new Set(fitting.map(function (card) { return card.dataset.id; }));
    [spec].concat(spec.layer).forEach(function (layer) {
      if (layer.data && layer.data.name === "cases") layer.data.values = rows(id, layer.data.values, fit);
    });
    return spec;
  }
  function rows(id, given, fit) {
    if (id === "before-after") return given.filter(function (row) { return fit.has(row.id); });
    var tally = {};
    fitting.forEach(function (card) {
      var key = card.dataset.mode + "\n" + card.dataset.verdict;
      tally[key] = (tally[key] || 0) + 1;
    });
    var ends = {};
    return given.map(function (row) {
      var cases = tally[row.filter + "\n" + row.verdict] || 0, from = ends[row.filter] || 0;
      ends[row.filter] = from + cases;
      return Object.assign({}, row, { cases: cases, from: from, to: from + cases });
    }).filter(function (row) { return row.cases; });
  }

  function embed(id) {
    var place = summary.querySelector('[data-figure="' + id + '"]'), target = document.createElement("div");
    return window.vegaEmbed(target, narrowed(id), {
      mode: "vega-lite", ast: true, actions: false, defaultStyle: false, renderer: "svg",
      tooltip: { disableDefaultStyle: true, theme: "site" }
    }).then(function (made) {
      if (views[id]) views[id].finalize();
      views[id] = made.view;
      made.view.addEventListener("click", function (event, item) {
        var datum = item && item.datum;
        if (!datum) return;
        if (datum.id) location.href = "cases/" + encodeURIComponent(datum.id) + "/index.html";
        else if (datum.verdict) location.hash = new URLSearchParams(
          datum.filter ? { mode: datum.filter, verdict: datum.verdict } : { verdict: datum.verdict }).toString();
      });
      place.replaceChildren(target);
      place.dataset.live = "yes";
    }, function (error) { console.error("The chart " + id + " stays a picture:", error); });
  }
  function embedAll() { Object.keys(specs).forEach(function (id) { if (views[id]) embed(id); }); }

  function loaded() {
    Object.keys(specs).forEach(embed);
    dark.addEventListener("change", embedAll);
    watchers.push(embedAll);
  }
  var near = new IntersectionObserver(function (entries) {
    if (!entries.some(function (entry) { return entry.isIntersecting; })) return;
    near.disconnect();
    if (window.vegaEmbed) return loaded();
    var script = document.createElement("script");
    script.src = "static/vega.js";
    script.onload = loaded;
    document.head.append(script);
  }, { rootMargin: "400px" });
  near.observe(summary);
})();
