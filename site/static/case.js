/* Case: the picture, the words and the latents of one page answer to the hand. Everything is recorded; nothing is
   computed but scale and order. A classic script, because a page that was opened from a folder runs no other.

   window.VSP holds what is chosen: other scripts of the page read it, change it and are told of changes.
   The address says what is seen, as far as the page does not open with it: #token=4&shown=103&opacity=60.
   An event "vsp:latents" on the document offers latents to be steered: {latents: [numbers], name}. */
(function () {
  "use strict";
  var $ = function (selector) { return document.querySelector(selector); };
  var all = function (selector) { return Array.prototype.slice.call(document.querySelectorAll(selector)); };
  var holder = $("#case-data");
  var data = holder ? JSON.parse(holder.textContent) : null;
  var state = { token: data ? data.start : null, latent: null, whose: data ? data.whose : "predicting" };
  var watchers = [];
  function redraw() { watchers.forEach(function (watch) { watch(); }); }
  function changed() { redraw(); note(); }

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

  // --- the address -----------------------------------------------------------------------------------------------
  // Whoever keeps a part of it tells it and recalls it. What the panel below reads is left as it stands, and the panel
  // is not told of it twice: going back among words and latents takes no edit away and brings none.

  var kept = [], PANEL = ["try", "latent", "latents", "name"], stepped = false, waiting = 0;
  function address() {
    // A sign without an equals sign is a place on the page.
    var text = location.hash.slice(1);
    return text && text.indexOf("=") < 0 ? null : new URLSearchParams(text);
  }
  function handed(said) { return PANEL.map(function (key) { return said && said.get(key) || ""; }).join("\n"); }
  var known = handed(address());
  function keep(one) { kept.push(one); }
  function control(id, key) {
    // A control of the page, which opens as it was written there.
    var one = document.getElementById(id), box = one && one.type === "checkbox";
    if (!one) return;
    var first = box ? one.defaultChecked : one.tagName === "SELECT" ? one.options[0].value : one.defaultValue;
    keep({
      tell: function (said) {
        var now = box ? one.checked : one.value;
        if (now !== first) said.set(key, box ? (now ? "yes" : "no") : now);
      },
      recall: function (said) {
        var given = said.get(key);
        if (box) one.checked = given === null ? first : given === "yes";
        else if (one.tagName === "SELECT") one.value = Array.prototype.some.call(one.options, function (option) { return option.value === given; }) ? given : first;
        else one.value = given !== null && /^\d{1,3}$/.test(given) ? given : first;
      }
    });
  }
  function put(way, text) {
    clearTimeout(waiting);
    // Of a file that was opened, what follows the sign may be changed; where even that may not, the page works without.
    try { history[way](null, "", "#" + text); } catch (error) { return; }
  }
  function note() {
    if (!data) return;
    var now = address() || new URLSearchParams(), said = new URLSearchParams();
    PANEL.forEach(function (key) { if (now.has(key)) said.set(key, now.get(key)); });
    kept.forEach(function (one) { one.tell(said); });
    var text = said.toString(), steps = Boolean(window.event && /^(keydown|input)$/.test(window.event.type));
    known = handed(said);
    // A walk with the arrow keys, or a slider's way, is one step back.
    if (text === now.toString()) clearTimeout(waiting);
    else if (steps && stepped) { clearTimeout(waiting); waiting = setTimeout(put, 150, "replaceState", text); }
    else put("pushState", text);
    stepped = steps;
  }
  function recall(said) { kept.forEach(function (one) { one.recall(said); }); }
  window.addEventListener("hashchange", function (event) {
    var said = address();
    if (!said || !data) return;
    if (handed(said) === known) event.stopImmediatePropagation();
    known = handed(said);
    clearTimeout(waiting);
    stepped = false;
    recall(said);
    redraw();
  });
  function placed(number) {
    // Of a latent that is shown on this page; -1 for another.
    return !/^\d{1,8}$/.test(number || "") ? -1 : data.latents.map(function (one) { return one[0]; }).indexOf(Number(number));
  }
  function opening(said) { var at = placed(said.get("latent")); return at < 0 || !maps.length ? null : at; }
  if (data) keep({
    tell: function (said) {
      if (state.token !== data.start) said.set("token", state.token);
      if (state.whose !== data.whose) said.set("row", state.whose);
      if (state.latent !== opening(said)) said.set("shown", state.latent === null ? "none" : data.latents[state.latent][0]);
    },
    recall: function (said) {
      var token = said.get("token"), row = said.get("row"), at = placed(said.get("shown"));
      state.token = data.start !== null && /^\d{1,6}$/.test(token || "") && Number(token) < data.tokens.length ? Number(token) : data.start;
      state.whose = row && attention[row] ? row : data.whose;
      state.latent = at >= 0 && maps.length ? at : said.get("shown") === "none" ? null : opening(said);
      all('[name="whose"]').forEach(function (radio) { radio.checked = radio.value === state.whose; });
    }
  });
  ["opacity", "colours", "smooth", "weighted", "frequency", "mean"].forEach(function (id) { control(id, id); });

  // --- what was recorded ---------------------------------------------------------------------------------------

  function unpacked(packed) {
    var text = atob(packed.bytes), width = packed.top.length ? text.length / packed.top.length : 0;
    return packed.top.map(function (top, row) {
      var values = new Float64Array(width);
      for (var i = 0; i < width; i++) values[i] = text.charCodeAt(row * width + i) / packed.steps * top;
      return values;
    });
  }
  var attention = {}, totals = {};
  Object.keys(data ? data.attention : {}).forEach(function (whose) {
    attention[whose] = unpacked(data.attention[whose]);
    totals[whose] = attention[whose].map(function (row) { return row.reduce(function (a, b) { return a + b; }, 0); });
  });
  var maps = data && data.maps ? unpacked(data.maps) : [];
  // The attention of a token: of the position that said it, or of its own, where it is read. Without tokens, none.
  function looking() { return state.token === null ? null : attention[state.whose][state.token]; }
  function hasRow() { return data.attention[state.whose].top[state.token] !== null; }
  function digits(value) { return value === 0 ? "0" : Number(value.toPrecision(3)).toString(); }
  function scored(latent) { return typeof data.latents[latent][7] === "number" ? data.latents[latent][7].toFixed(2) : ""; }
  function name(latent) { return (data.latents[latent][0] + " " + data.latents[latent][1]).trim(); }
  function percent(value) { return Math.round(100 * value) + " %"; }

  // --- the picture -----------------------------------------------------------------------------------------------

  var RASTER = 192;
  function field(weights) {
    var scale = RASTER / Math.max(data.width, data.height, 1);
    var columns = Math.max(1, Math.round(data.width * scale)), rows = Math.max(1, Math.round(data.height * scale));
    var values = new Float64Array(rows * columns), widest = 1;
    if (weights) data.boxes.forEach(function (box, p) {
      if (!box || !(weights[p] > 0)) return;
      var x0 = Math.min(Math.max(Math.round(box[0] * scale), 0), columns - 1);
      var y0 = Math.min(Math.max(Math.round(box[1] * scale), 0), rows - 1);
      var x1 = Math.min(Math.max(Math.round(box[2] * scale), x0 + 1), columns);
      var y1 = Math.min(Math.max(Math.round(box[3] * scale), y0 + 1), rows);
      var each = weights[p] / ((x1 - x0) * (y1 - y0));
      widest = Math.max(widest, x1 - x0);
      for (var y = y0; y < y1; y++) for (var x = x0; x < x1; x++) values[y * columns + x] += each;
    });
    return { rows: rows, columns: columns, values: values, widest: widest };
  }
  // The mean over a square, once along each side: twice is close to a bell.
  function smoothed(found) {
    var radius = Math.max(1, Math.round(found.widest / 3)), rows = found.rows, columns = found.columns;
    function along(values, lines, length, stride, step) {
      var made = new Float64Array(values.length);
      for (var line = 0; line < lines; line++) {
        var at = line * stride, sum = 0, held = 0, i;
        for (i = 0; i < Math.min(radius, length); i++) { sum += values[at + i * step]; held++; }
        for (i = 0; i < length; i++) {
          if (i + radius < length) { sum += values[at + (i + radius) * step]; held++; }
          if (i - radius - 1 >= 0) { sum -= values[at + (i - radius - 1) * step]; held--; }
          made[at + i * step] = Math.max(0, sum / held);
        }
      }
      return made;
    }
    var values = found.values;
    for (var times = 0; times < 2; times++) {
      values = along(values, rows, columns, columns, 1);
      values = along(values, columns, rows, 1, columns);
    }
    return values;
  }

  // Cividis, at ten of its places: the same order of lightness for every kind of colour vision.
  var SCALE = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
  function rgb(hue) { return [1, 3, 5].map(function (at) { return parseInt(hue.slice(at, at + 2), 16); }); }
  function onScale(value) {
    var at = Math.min(0.9999, Math.max(0, value)) * (SCALE.length - 1), low = Math.floor(at), part = at - low;
    var from = rgb(SCALE[low]), to = rgb(SCALE[low + 1]);
    return from.map(function (one, i) { return Math.round(one + part * (to[i] - one)); });
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
    [["#opacity", "input"], ["#smooth", "change"], ["#colours", "change"]].forEach(function (one) {
      $(one[0]).addEventListener(one[1], function () { paint(); note(); });
    });
    all('[name="whose"]').forEach(function (radio) {
      radio.addEventListener("change", function () { state.whose = radio.value; changed(); });
      if (!attention[radio.value]) $(".choice").hidden = true;
    });
    watchers.push(paint);
  }

  function paint() {
    var weights = state.latent !== null && maps.length ? maps[state.latent] : looking();
    var found = field(weights), strength = Number($("#opacity").value) / 100, hues = $("#colours").value;
    var smooth = $("#smooth").checked, values = smooth ? smoothed(found) : found.values;
    var top = values.reduce(function (a, b) { return Math.max(a, b); }, 0);
    canvas.width = found.columns; canvas.height = found.rows;
    canvas.classList.toggle("smooth", smooth);
    stage.classList.toggle("off", strength === 0 || !weights);
    var ink = canvas.getContext("2d"), pixels = ink.createImageData(found.columns, found.rows);
    // The picture is the same by day and by night, and so is what is laid over it.
    var one = rgb(window.VSP_COLOURS.light[state.latent !== null ? "heat" : "after"]);
    if (weights) values.forEach(function (value, i) {
      var share = top ? value / top : 0;
      pixels.data.set(hues === "scale" ? onScale(share) : one, 4 * i);
      pixels.data[4 * i + 3] = 255 * strength * (hues === "scale" ? 0.8 : share);
    });
    ink.putImageData(pixels, 0, 0);
    var key = $("[data-key]");
    key.hidden = !weights;
    $("[data-ramp]").className = "ramp " + (hues === "scale" ? "scale" : state.latent !== null ? "heat" : "hue");
    var word = state.token === null ? "" : data.tokens[state.token], said;
    if (state.latent !== null) {
      said = "Where latent " + name(state.latent) + " is active: the more colour, the more; at most " +
        digits(data.latents[state.latent][2]) + ".";
    } else if (state.token === null) {
      said = "The picture of this case. Choose a latent to see where it is active.";
    } else {
      var when = state.whose === "predicting" ? "says" : "reads";
      said = hasRow() ? "Where the model looks as it " + when + " “" + word +
        "”: the more colour, the more attention; scaled to the patch that it looks at most." :
        "Nothing was recorded of where the model looks as it " + when + " “" + word + "”.";
    }
    $("#look-caption").textContent = said;
    stage.querySelector("img").alt = said;
  }

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

  // --- what is noise -----------------------------------------------------------------------------------------------
  // Latents that are active in most pictures say little of this one. Where no survey counted, this picture's patches do.

  var often = [], strong = [], surveyed = { often: true, strong: true };
  if (data) {
    ["often", "strong"].forEach(function (kind, i) {
      surveyed[kind] = data.latents.length > 0 && data.latents.every(function (one) { return one[3 + i] !== null; });
    });
    data.latents.forEach(function (one, l) {
      var map = maps[l] || [], active = Array.prototype.filter.call(map, function (value) { return value > 0; });
      often.push(surveyed.often ? one[3] : map.length ? active.length / map.length : 0);
      var sum = active.reduce(function (a, b) { return a + b; }, 0);
      strong.push(surveyed.strong ? one[4] : active.length ? sum / active.length : 0);
    });
  }
  var strongest = Math.max.apply(null, [0].concat(strong)), mostOften = Math.max.apply(null, [0].concat(often));
  function limits() {
    return { often: $("#frequency").value === "100" ? Infinity : mostOften * Number($("#frequency").value) / 100,
      strong: $("#mean").value === "100" ? Infinity : strongest * Number($("#mean").value) / 100 };
  }
  function noise(l) {
    if (!list || !maps.length) return false;
    var most = limits();
    return often[l] > most.often || strong[l] > most.strong;
  }

  // --- the latents where it looks --------------------------------------------------------------------------------

  var list = $("[data-latents]"), about = $("[data-latent-card]"), TOP = 12;
  if (list && maps.length) {
    $('[data-controls="bars"]').hidden = false;
    if ($("#weighted")) $("#weighted").addEventListener("change", function () { bars(); note(); });
    ["#frequency", "#mean"].forEach(function (slider) { $(slider).addEventListener("input", changed); });
    watchers.push(bars);
  }
  function bars() {
    var weighted = $("#weighted") ? $("#weighted").checked : false, row = looking(), most = limits();
    $("#frequency-out").textContent = percent(Math.min(1, most.often)) +
      (surveyed.often ? " of pictures" : " of the patches here");
    $("#mean-out").textContent = most.strong === Infinity ? "any" : digits(most.strong);
    var values = maps.map(function (map, l) {
      if (data.latents[l][5] || noise(l)) return 0;
      var sum = 0;
      for (var p = 0; p < map.length; p++) sum += map[p] * (weighted ? row[p] : 1);
      return sum;
    });
    var order = values.map(function (_, l) { return l; }).filter(function (l) { return values[l] > 0; })
      .sort(function (a, b) { return values[b] - values[a] || a - b; }).slice(0, TOP);
    // A latent that was chosen elsewhere is listed too.
    if (state.latent !== null && order.indexOf(state.latent) < 0) order.push(state.latent);
    // The numbers of a column have the same digits: the largest has three.
    var top = order.length ? values[order[0]] : 1, behind = Math.min(4, Math.max(0, 2 - Math.floor(Math.log10(top || 1)))), focused = document.activeElement && document.activeElement.dataset.place;
    list.textContent = "";
    order.forEach(function (l) {
      var item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.dataset.place = l;
      button.setAttribute("aria-pressed", String(state.latent === l));
      var called = element("span", "name", element("span", "no", data.latents[l][0]), " ",
        element("span", "word" + (data.latents[l][8] ? " poor" : ""), data.latents[l][1]));
      if (scored(l)) called.append(" ", element("span", "score", scored(l)));
      button.append(called,
        drawn(100 * values[l] / (top || 1)), element("span", "num", values[l].toFixed(behind)));
      button.addEventListener("click", function () { state.latent = state.latent === l ? null : l; changed(); });
      item.append(button);
      list.append(item);
      if (focused === String(l)) button.focus();
    });
    if (!order.length) list.append(element("li", "hint", "No latent that is shown here is active where it looks."));
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
  // What activates a latent most of all pictures, in the atlas that the page leads to: loaded when first wanted.
  var contact = $("[data-latent-references]"), atlas = null, SHOWN = 6;
  function withAtlas(then) {
    if (!data.atlas || !window.VSP_REFERENCES || !contact) return;
    if (atlas) return atlas.push ? atlas.push(then) : then(atlas);
    var waiting = atlas = [then], at = data.atlas.replace(/[^\/]*$/, ""), script = document.createElement("script");
    script.src = at + "overview.js";
    script.onload = function () {
      atlas = window.VSP_REFERENCES(window.VSP_ATLAS, at, { on: true, threshold: 0.25 });
      waiting.forEach(function (one) { one(atlas); });
    };
    document.head.append(script);
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () {
    all("canvas.thumb").forEach(function (canvas) { canvas.paint(); });
  });
  function references() {
    var chosen = state.latent;
    if (!contact || contact.dataset.of === String(chosen)) return;
    contact.dataset.of = String(chosen);
    contact.hidden = true;
    contact.textContent = "";
    if (chosen === null) return;
    withAtlas(function (from) {
      from.latent(data.latents[chosen][0], function (record) {
        if (!record || state.latent !== chosen || !window.VSP_ATLAS.sheets.files.length) return;
        var shown = record[from.AT.references].slice(0, SHOWN).map(function (one) {
          return element("li", "", from.thumb(one[from.REF.picture], one, 92), element("span", "num", digits(one[from.REF.strength])));
        });
        contact.replaceChildren.apply(contact, shown);
        contact.hidden = !shown.length;
        card();
      });
    });
  }
  function card() {
    references();
    about.hidden = state.latent === null;
    about.textContent = "";
    if (state.latent === null) return;
    var one = data.latents[state.latent];
    var said = ["strongest here " + digits(one[2]),
      "active in " + percent(often[state.latent]) + (surveyed.often ? " of the survey's pictures" : " of the patches here"),
      "mean activation " + digits(strong[state.latent]) + (surveyed.strong ? "" : " where it is active here")];
    about.append(element("b", "", "Latent " + name(state.latent)), element("p", "", said.join("; ") + "."));
    var labelling = data.labellings[one[9]];
    if (labelling) {
      var worth = scored(state.latent) ? (labelling[2] || "score") + " " + scored(state.latent) : "";
      if (one[8]) worth = "a poor one: " + worth + ", below " + labelling[3];
      about.append(element("p", "", "Its label is " + [labelling[0], worth].filter(Boolean).join("; ") + "."));
    }
    var links = element("p", "links");
    if (data.atlas) {
      var link = element("a", "", "All that is known of it, in the atlas");
      link.href = data.atlas + "#latent=" + one[0];
      links.append(link);
    }
    if ($("#try")) {
      var steer = element("button", "link", "Steer it below");
      steer.type = "button";
      steer.addEventListener("click", function () { offer([state.latent], "latent " + name(state.latent), true); });
      links.append(steer);
    }
    if (links.childNodes.length) about.append(links);
    if (contact && !contact.hidden) {
      about.append(element("p", "", "What activates it most of all pictures, veiled where it is silent:"));
    } else if (!data.atlas && one[6].length) {
      about.append(element("p", "", "Strongest of all on " + one[6].map(function (seen) {
        return seen[0] + " (" + digits(seen[1]) + ")";
      }).join(", ") + "."));
    }
  }

  // --- steering ----------------------------------------------------------------------------------------------------

  function offer(places, named, go) {
    var detail = { latents: places.map(function (l) { return data.latents[l][0]; }), name: named };
    document.dispatchEvent(new CustomEvent("vsp:latents", { detail: detail }));
    var section = $("#try");
    if (!section || !go) return;
    var quiet = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    section.scrollIntoView({ behavior: quiet ? "auto" : "smooth", block: "start" });
  }

  window.VSP = { data: data, state: state, maps: maps, attention: attention, name: name, digits: digits, noise: noise,
    changed: changed, watch: function (watch) { watchers.push(watch); }, offer: offer, element: element,
    address: address, keep: keep, note: note };
  if (data) {
    recall(address() || new URLSearchParams());
    redraw();
  }
})();
