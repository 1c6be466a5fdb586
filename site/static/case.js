/* Case: the picture, the words and the charts of one page answer to the hand. Everything is recorded; nothing is
   computed but scale and order. A classic script, because a page that was opened from a folder runs no other. */
(function () {
  "use strict";
  var $ = function (selector) { return document.querySelector(selector); };
  var all = function (selector) { return Array.prototype.slice.call(document.querySelectorAll(selector)); };
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var holder = $("#case-data");
  var data = holder ? JSON.parse(holder.textContent) : null;
  var state = { token: data ? data.start : null, latent: null, whose: data ? data.whose : "predicting" };
  var watchers = [];
  function changed() { watchers.forEach(function (watch) { watch(); }); }

  all("[data-js], [data-copy]").forEach(function (part) { part.hidden = false; });
  all("[data-copy]").forEach(function (button) {
    button.addEventListener("click", function () {
      var text = document.getElementById(button.dataset.copy).textContent;
      function said(word) { button.textContent = word; setTimeout(function () { button.textContent = "Copy"; }, 1600); }
      function select() {
        var range = document.createRange();
        range.selectNodeContents(document.getElementById(button.dataset.copy));
        getSelection().removeAllRanges(); getSelection().addRange(range);
        said(document.execCommand("copy") ? "Copied" : "Selected");
      }
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(function () { said("Copied"); }, select);
      else select();
    });
  });

  // --- what was recorded ---------------------------------------------------------------------------------------

  function unpacked(packed) {
    var text = atob(packed.bytes), width = packed.top.length ? text.length / packed.top.length : 0;
    return packed.top.map(function (top, row) {
      var values = new Float64Array(width);
      for (var i = 0; i < width; i++) values[i] = text.charCodeAt(row * width + i) / 255 * top;
      return values;
    });
  }
  var attention = {}, totals = {};
  Object.keys(data ? data.attention : {}).forEach(function (whose) {
    attention[whose] = unpacked(data.attention[whose]);
    totals[whose] = attention[whose].map(function (row) { return row.reduce(function (a, b) { return a + b; }, 0); });
  });
  var maps = data && data.maps ? unpacked(data.maps) : [];
  // The attention of a token: of the position that said it, or of its own, where it is read.
  function looking() { return attention[state.whose][state.token]; }
  function hasRow() { return data.attention[state.whose].top[state.token] !== null; }
  function digits(value) { return value === 0 ? "0" : Number(value.toPrecision(3)).toString(); }

  // --- the picture -----------------------------------------------------------------------------------------------

  var RASTER = 192;
  function field(weights) {
    var scale = RASTER / Math.max(data.width, data.height, 1);
    var columns = Math.max(1, Math.round(data.width * scale)), rows = Math.max(1, Math.round(data.height * scale));
    var values = new Float64Array(rows * columns), top = 0;
    data.boxes.forEach(function (box, p) {
      if (!box || !(weights[p] > 0)) return;
      var x0 = Math.min(Math.max(Math.round(box[0] * scale), 0), columns - 1);
      var y0 = Math.min(Math.max(Math.round(box[1] * scale), 0), rows - 1);
      var x1 = Math.min(Math.max(Math.round(box[2] * scale), x0 + 1), columns);
      var y1 = Math.min(Math.max(Math.round(box[3] * scale), y0 + 1), rows);
      var each = weights[p] / ((x1 - x0) * (y1 - y0));
      for (var y = y0; y < y1; y++) for (var x = x0; x < x1; x++) top = Math.max(top, values[y * columns + x] += each);
    });
    return { rows: rows, columns: columns, values: values, top: top };
  }

  var stage = $(".stage"), canvas = null;
  if (stage && data && data.boxes) {
    var image = stage.querySelector("img");
    image.src = stage.dataset.picture;
    canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    stage.appendChild(canvas);
    stage.classList.add("live");
    $('[data-controls="look"]').hidden = false;
    $("#opacity").addEventListener("input", paint);
    $("#smooth").addEventListener("change", paint);
    all('[name="whose"]').forEach(function (radio) {
      radio.addEventListener("change", function () { state.whose = radio.value; changed(); });
      if (!attention[radio.value]) $(".choice").hidden = true;
    });
    watchers.push(paint);
  }

  function paint() {
    var weights = state.latent !== null ? maps[state.latent] : looking();
    var found = field(weights), strength = Number($("#opacity").value) / 100;
    canvas.width = found.columns; canvas.height = found.rows;
    canvas.classList.toggle("smooth", $("#smooth").checked);
    stage.classList.toggle("off", strength === 0);
    var ink = canvas.getContext("2d"), pixels = ink.createImageData(found.columns, found.rows);
    // The picture is the same by day and by night, and so is what is laid over it.
    var hue = window.VSP_COLOURS.light[state.latent !== null ? "heat" : "after"];
    var rgb = [1, 3, 5].map(function (at) { return parseInt(hue.slice(at, at + 2), 16); });
    found.values.forEach(function (value, i) {
      pixels.data.set(rgb, 4 * i);
      pixels.data[4 * i + 3] = found.top ? 255 * strength * value / found.top : 0;
    });
    ink.putImageData(pixels, 0, 0);
    var word = data.tokens[state.token], said;
    if (state.latent !== null) {
      said = "Where latent " + name(state.latent) + " is active: the more colour, the more; at most " +
        digits(data.latents[state.latent][2]) + ".";
    } else {
      var when = state.whose === "predicting" ? "says" : "reads";
      said = hasRow() ? "Where the model looks as it " + when + " “" + word +
        "”: the more colour, the more attention; scaled to the patch that it looks at most." :
        "Nothing was recorded of where the model looks as it " + when + " “" + word + "”.";
    }
    $("#look-caption").textContent = said;
    stage.querySelector("img").alt = said;
  }
  function name(latent) { return (data.latents[latent][0] + " " + data.latents[latent][1]).trim(); }

  // --- the words -------------------------------------------------------------------------------------------------

  var strip = $("[data-strip]"), tokens = [];
  if (strip && data) {
    strip.setAttribute("role", "radiogroup");
    tokens = all("[data-strip] .token").map(function (span) {
      var button = document.createElement("button");
      button.type = "button";
      button.className = span.className;
      button.textContent = span.textContent;
      button.title = span.title;
      button.setAttribute("role", "radio");
      span.replaceWith(button);
      return button;
    });
    tokens.forEach(function (button, place) { button.addEventListener("click", function () { choose(place); }); });
    strip.addEventListener("keydown", function (event) {
      var step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      var to = event.key === "Home" ? 0 : event.key === "End" ? tokens.length - 1 :
        step ? (state.token + step + tokens.length) % tokens.length : null;
      if (to === null) return;
      event.preventDefault();
      choose(to);
      tokens[to].focus();
    });
    watchers.push(function () {
      var shades = totals[state.whose], top = Math.max.apply(null, shades) || 1;
      tokens.forEach(function (button, place) {
        var on = place === state.token;
        button.className = button.className.replace(/\ba\d\b/, "a" + Math.round(9 * shades[place] / top));
        button.classList.toggle("on", on);
        button.setAttribute("aria-checked", String(on));
        button.tabIndex = on ? 0 : -1;
      });
    });
  }
  function choose(token) { state.token = token; state.latent = null; changed(); }

  // --- the latents where it looks --------------------------------------------------------------------------------

  var list = $("[data-latents]"), about = $("[data-latent-card]"), TOP = 12;
  if (list && maps.length) {
    $('[data-controls="bars"]').hidden = false;
    $("#weighted").addEventListener("change", bars);
    $("#frequency").addEventListener("input", bars);
    if (!data.latents.some(function (one) { return one[3] !== null; })) $("#frequency").parentNode.hidden = true;
    watchers.push(bars);
  }
  function bars() {
    var weighted = $("#weighted").checked, most = Number($("#frequency").value) / 100, row = looking();
    $("#frequency-out").textContent = Math.round(100 * most) + " %";
    var values = maps.map(function (map, l) {
      var one = data.latents[l];
      if (one[5] || (one[3] !== null && one[3] > most)) return 0;
      var sum = 0;
      for (var p = 0; p < map.length; p++) sum += map[p] * (weighted ? row[p] : 1);
      return sum;
    });
    var order = values.map(function (_, l) { return l; }).filter(function (l) { return values[l] > 0; })
      .sort(function (a, b) { return values[b] - values[a] || a - b; }).slice(0, TOP);
    // A latent that was chosen elsewhere is listed too.
    if (state.latent !== null && order.indexOf(state.latent) < 0) order.push(state.latent);
    var top = order.length ? values[order[0]] : 1, focused = document.activeElement && document.activeElement.dataset.place;
    list.textContent = "";
    order.forEach(function (l) {
      var item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.dataset.place = l;
      button.setAttribute("aria-pressed", String(state.latent === l));
      button.append(element("span", "name", element("span", "no", data.latents[l][0]), " " + data.latents[l][1]),
        drawn(100 * values[l] / (top || 1)), element("span", "num", digits(values[l])));
      button.addEventListener("click", function () { state.latent = state.latent === l ? null : l; changed(); });
      item.append(button);
      list.append(item);
      if (focused === String(l)) button.focus();
    });
    if (!order.length) list.append(element("li", "hint", "No latent shown here is active where it looks."));
    card();
  }
  function element(tag, kind) {
    var made = document.createElement(tag);
    made.className = kind;
    made.append.apply(made, Array.prototype.slice.call(arguments, 2).map(function (part) {
      return part instanceof Node ? part : String(part);
    }));
    return made;
  }
  function drawn(length) {
    var space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
    var bar = document.createElementNS(space, "rect");
    svg.setAttribute("viewBox", "0 0 100 8"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("aria-hidden", "true");
    bar.setAttribute("width", Math.max(0, Math.min(100, length)).toFixed(1)); bar.setAttribute("height", "8");
    svg.append(bar);
    return svg;
  }
  function card() {
    about.hidden = state.latent === null;
    about.textContent = "";
    if (state.latent === null) return;
    var one = data.latents[state.latent], said = ["strongest here " + digits(one[2])];
    if (one[3] !== null) said.push("active in " + digits(100 * one[3]) + " % of the survey's pictures");
    if (one[4] !== null) said.push("mean activation " + digits(one[4]));
    if (one[6].length) said.push("strongest of all on " + one[6].map(function (seen) { return seen[0]; }).join(", "));
    about.append(element("b", "", "Latent " + name(state.latent)), ": " + said.join("; ") + ". The picture shows where it is active.");
  }

  // --- charts ----------------------------------------------------------------------------------------------------

  function coloured(value) {
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      var copy = {};
      Object.keys(value).forEach(function (key) { copy[key] = coloured(value[key]); });
      return copy;
    }
    return typeof value === "string" && exchange[value] || value;
  }
  var exchange = {};
  function exchanged() {
    exchange = {};
    if (dark.matches) Object.keys(VSP_COLOURS.light).forEach(function (key) { exchange[VSP_COLOURS.light[key]] = VSP_COLOURS.dark[key]; });
  }

  function narrowed(spec, room) {
    // Charts are drawn for 440 px; on a phone the words keep their size and the rest gives way.
    (spec.vconcat || []).forEach(function (part) { narrowed(part, room); });
    if (typeof spec.width === "number") spec.width = Math.min(spec.width, Math.max(150, room));
    return spec;
  }

  var views = {};
  function embed(id) {
    var place = $('[data-figure="' + id + '"]'), spec = coloured(window.VSP_FIGURES[id]);
    if (id === "heatmap") spec = retabled(spec);
    else spec = narrowed(spec, place.clientWidth - (id === "classes" ? 190 : 70));
    var target = document.createElement("div");
    return window.vegaEmbed(target, spec, {
      mode: "vega-lite", ast: true, actions: false, defaultStyle: false, renderer: "svg",
      tooltip: { disableDefaultStyle: true, theme: "site" }
    }).then(function (made) {
      if (views[id]) views[id].finalize();
      views[id] = made.view;
      place.replaceChildren(target);
      if (id === "heatmap") { made.view.addEventListener("click", picked); mark(); }
      place.dataset.live = "yes";
    }, function (error) { console.error("The chart " + id + " stays a picture:", error); });
  }
  function embedAll() { exchanged(); Object.keys(views).forEach(embed); }

  if (window.vegaEmbed && window.VSP_FIGURES) {
    exchanged();
    dark.addEventListener("change", embedAll);
    var near = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) {
        if (entry.isIntersecting) { near.unobserve(entry.target); embed(entry.target.dataset.figure); }
      });
    }, { rootMargin: "300px" });
    all("[data-figure]").forEach(function (place) { if (VSP_FIGURES[place.dataset.figure]) near.observe(place); });
  }

  // --- the heatmap -------------------------------------------------------------------------------------------------

  var heat = data && data.heatmap, asked = null;
  if (heat && $('[data-controls="heatmap"]') && window.vegaEmbed) {
    asked = { normalize: heat.normalize, clustering: 0, whose: heat.row, top: heat.top };
    heat.clusterings.forEach(function (one, i) {
      var option = document.createElement("option");
      option.value = i; option.textContent = one.cluster + ", " + one.distance;
      $("#clustering").append(option);
    });
    $("#normalize").value = heat.normalize;
    $("#top").value = heat.top; $("#top").max = heat.top;
    $("#whose-heatmap").value = heat.row;
    if (!maps.length || !attention.predicting || !attention.own) $("#whose-heatmap").parentNode.hidden = true;
    ["normalize", "clustering", "whose-heatmap", "top"].forEach(function (control) {
      $("#" + control).addEventListener("change", function (event) {
        var value = event.target.value, id = control === "whose-heatmap" ? "whose" : control;
        asked[id] = id === "clustering" ? Number(value) : id === "top" ? Math.max(1, Number(value) || heat.top) : value;
        embed("heatmap");
      });
    });
    $('[data-controls="heatmap"]').hidden = false;
    watchers.push(mark);
  }

  function weighted() {
    if (asked.whose === heat.row) return heat.values;
    return heat.rows.map(function (t) {
      return heat.columns.map(function (l) {
        return maps[l].reduce(function (sum, value, p) { return sum + value * attention[asked.whose][t][p]; }, 0);
      });
    });
  }

  function stepOf(columns) { return Math.min(24, Math.max(11, Math.round(720 / Math.max(columns, 1)))); }

  function tables() {
    var values = weighted(), clustering = heat.clusterings[asked.clustering];
    var kept = {};
    values.forEach(function (row) {
      row.map(function (_, c) { return c; }).sort(function (a, b) { return row[b] - row[a] || a - b; })
        .slice(0, asked.top).forEach(function (c) { if (row[c] > 0) kept[c] = true; });
    });
    // As many as were recorded: all of them, whatever brought them in.
    var order = clustering.order.filter(function (c) { return asked.top >= heat.top || kept[c]; });
    var largest = function (list) { return list.reduce(function (a, b) { return Math.max(a, b); }, 0); };
    var whole = largest(values.map(largest)), rowTop = values.map(largest);
    var columnTop = heat.columns.map(function (_, c) { return largest(values.map(function (row) { return row[c]; })); });
    var x = 0, previous = null, clusters = [], places = {};
    order.forEach(function (c) {
      var cluster = clustering.clusters[c];
      if (cluster !== previous) {
        x += previous === null ? 0 : 0.5;
        clusters.push({ x: x, x2: x, name: (cluster + " " + (clustering.names[cluster] || "")).trim() });
        previous = cluster;
      }
      places[c] = x; x += 1; clusters[clusters.length - 1].x2 = x;
    });
    var step = stepOf(order.length), cells = [];
    clusters.forEach(function (one) { if (one.name.length * 6 > (one.x2 - one.x) * step) one.name = one.name.split(" ")[0]; });
    values.forEach(function (row, r) {
      order.forEach(function (c) {
        var over = { none: whole, row: rowTop[r], column: columnTop[c] }[asked.normalize];
        cells.push({ x: places[c] + 0.06, x2: places[c] + 0.94, y: r + 0.06, y2: r + 0.94, token: data.tokens[heat.rows[r]],
          latent: name(heat.columns[c]), value: row[c], shade: over ? row[c] / over : 0, row: r, column: c });
      });
    });
    return { cells: cells, clusters: clusters, last: x,
      columns: order.map(function (c) {
        var one = data.latents[heat.columns[c]];
        return { x: places[c] + 0.5, name: one[1].slice(0, 14) || String(one[0]), column: c, on: false };
      }),
      rows: heat.rows.map(function (t, r) { return { y: r + 0.5, token: data.tokens[t].slice(0, 24), row: r, on: false }; }) };
  }

  function retabled(spec) {
    if (!asked) return spec;
    var found = tables(), step = stepOf(found.columns.length);
    var seen = spec.datasets || {};
    spec.layer.forEach(function (layer) {
      var named = layer.data && layer.data.name;
      if (named && found[named]) { layer.data = { name: named, values: found[named] }; delete seen[named]; }
      var across = layer.encoding && layer.encoding.x;
      if (across && across.scale) across.scale.domain = [0, found.last || 1];
    });
    spec.width = Math.round((found.last || 1) * step);
    return spec;
  }

  // Selecting marks a row and a column of the chart that is there.
  function mark() {
    var view = views.heatmap;
    if (!view || !heat) return;
    var row = heat.rows.indexOf(state.token), found = tables();
    view.data("rows", found.rows.map(function (one) { one.on = one.row === row; return one; }));
    view.data("columns", found.columns.map(function (one) { one.on = heat.columns[one.column] === state.latent; return one; }));
    view.runAsync();
  }
  function picked(event, item) {
    var datum = item && item.datum;
    if (!datum || (datum.row === undefined && datum.column === undefined)) return;
    if (datum.row !== undefined) state.token = heat.rows[datum.row];
    state.latent = datum.column !== undefined ? heat.columns[datum.column] : null;
    changed();
  }

  if (data) changed();
})();
