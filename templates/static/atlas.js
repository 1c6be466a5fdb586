/* Atlas: every latent of one autoencoder, to be looked through and looked at. A classic script, because a page that
   was opened from a folder runs no other and may read no file; data are scripts, and those of a latent are loaded
   when it is looked at. overview.js has a few figures of every latent (atlas_data.py says how they are packed).

   The address says what is seen: #latent=103 is a latent, #q=cup&cluster=2 is what the list, the scatter, the map and
   the histograms are narrowed to. How a latent is steered with is told by atlas-steer.js. */
(function () {
  "use strict";
  var A = window.VSP_ATLAS, C = window.VSP_CASES || { cases: [], latents: {} };
  var $ = function (selector, of) { return (of || document).querySelector(selector); };
  var all = function (selector, of) { return Array.prototype.slice.call((of || document).querySelectorAll(selector)); };
  if (!A || !$("[data-atlas]")) return;
  var N = A.latents, dark = window.matchMedia("(prefers-color-scheme: dark)");

  // --- figures -----------------------------------------------------------------------------------------------------

  var LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", code = new Uint8Array(128);
  for (var l = 0; l < 64; l++) code[LETTERS.charCodeAt(l)] = l;
  function column(packed) {
    var found = new Float64Array(N);
    for (var i = 0; i < N; i++) {
      var level = 0;
      for (var p = 0; p < packed.planes.length; p++) level = (level << packed.bits) | code[packed.planes[p].charCodeAt(i)];
      var value = packed.low + (level - 1) * packed.step;
      found[i] = level ? (packed.log ? Math.exp(value) : value) : NaN;
    }
    return found;
  }
  var of = {};
  Object.keys(A.columns).forEach(function (name) { of[name] = column(A.columns[name]); });
  function alive(i) { return of.frequency[i] > 0; }
  function word(i) { return of.word[i] >= 0 ? A.words[of.word[i]][0] : ""; }
  // Judged by its score as it was measured, of which the column has a few levels.
  function poor(i) { return (code[A.poor.charCodeAt(Math.floor(i / 6))] >> i % 6 & 1) === 1; }
  function clusterName(c) { return A.clusters[c][0] || "cluster " + c; }
  // Latents that lie beyond the map's frame are drawn on its rim, as rings.
  var RIM = {};
  A.rim.forEach(function (i) { RIM[i] = true; });
  function digits(value, few) {
    if (value === null || value !== value) return "–";
    if (value === 0) return "0";
    return Number(value.toPrecision(few || 3)).toString().replace("-", "−");
  }
  function percent(value, few) { return value !== value || value === null ? "–" : digits(100 * value, few || 2) + " %"; }
  function grouped(count) { return String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f"); }
  function many(count, noun, plural) { return grouped(count) + " " + (count === 1 ? noun : plural || noun + "s"); }
  var living = [];
  for (var i0 = 0; i0 < N; i0++) if (alive(i0)) living.push(i0);

  function element(tag, kind, text) {
    var made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function drawing(tag, attributes, inside) {
    var made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.keys(attributes).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    (inside || []).forEach(function (part) { made.appendChild(part); });
    return made;
  }
  function colours() { return window.VSP_COLOURS[dark.matches ? "dark" : "light"]; }
  function rgb(hue) { return [1, 3, 5].map(function (at) { return parseInt(hue.slice(at, at + 2), 16); }); }
  function mixed(from, to, part) {
    var a = rgb(from), b = rgb(to);
    return "rgb(" + a.map(function (one, i) { return Math.round(one + part * (b[i] - one)); }).join(",") + ")";
  }

  // --- latents and their references ----------------------------------------------------------------------------------

  var masks = { on: true, threshold: 0.25 }, R = window.VSP_REFERENCES(A, "", masks);
  var AT = R.AT, REF = R.REF, withLatent = R.latent, thumb = R.thumb;
  function repaint() { all("canvas.thumb").forEach(function (canvas) { canvas.paint(); }); }
  function labelled(i, record) {
    // Its number, and its label with how good that is.
    var found = document.createDocumentFragment(), text = word(i);
    found.appendChild(element("span", "number", i));
    found.appendChild(document.createTextNode(" "));
    found.appendChild(element("span", "word" + (text && poor(i) ? " poor" : ""), text));
    if (record && record[AT.labels].length && record[AT.labels][0][1] !== null)
      found.appendChild(element("span", "score", " " + record[AT.labels][0][1].toFixed(2) + (poor(i) ? ", poor" : "")));
    return found;
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  var form = $("[data-latent-filters]"), overview = $("[data-overview]"), view = $("[data-latent-view]");
  var NAMES = ["q", "cluster", "map", "frequency-from", "frequency-to", "mean-from", "mean-to", "entropy-to", "cases", "dead"];
  var sort = { by: "overall", down: true }, order = [], kept = new Uint8Array(N);
  function field(name) { return form && form.elements[name]; }
  function number(name, factor) {
    var one = field(name), value = one && one.value.trim() !== "" ? Number(one.value) : NaN;
    return value === value ? value * (factor || 1) : null;
  }
  function part() {
    // Of the map: left, top, right and bottom, from 0 to 1.
    var ends = field("map") ? field("map").value.split(",").map(Number) : [];
    return ends.length === 4 && ends.every(isFinite) ? ends : null;
  }
  function value(by, i) {
    if (by === "overall") return of.frequency[i] * of.mean[i];
    if (by === "word") return word(i).toLowerCase();
    if (by === "cluster") return of.cluster[i] >= 0 ? clusterName(of.cluster[i]).toLowerCase() : "";
    return by === "number" ? i : of[by][i];
  }
  function narrowed() {
    var words = field("q").value.toLowerCase().split(/\s+/).filter(Boolean), cluster = field("cluster") ? field("cluster").value : "";
    var low = number("frequency-from", 0.01), high = number("frequency-to", 0.01), weak = number("mean-from"), strong = number("mean-to");
    var mixed = number("entropy-to"), dead = field("dead") && field("dead").checked, cases = field("cases") && field("cases").checked;
    // Figures of the list have a few levels: a border that was taken from one includes it.
    var more = 1 + 1e-3, inside = part();
    var fits = A.words.map(function (one) {
      var text = one[0].toLowerCase();
      return words.every(function (word) { return text.indexOf(word) >= 0; });
    });
    order = [];
    for (var i = 0; i < N; i++) {
      var there = alive(i), named = words.length === 1 && words[0] === String(i);
      kept[i] = (named || ((there || dead) && (!words.length || (of.word[i] >= 0 && fits[of.word[i]])))) &&
        (cluster === "" || of.cluster[i] === Number(cluster)) && (!cases || C.latents[i]) &&
        (!inside || (there && of.x[i] >= inside[0] && of.y[i] >= inside[1] && of.x[i] <= inside[2] && of.y[i] <= inside[3])) &&
        (low === null || of.frequency[i] * more >= low) && (high === null || of.frequency[i] <= high * more) &&
        (weak === null || of.mean[i] * more >= weak) && (strong === null || of.mean[i] <= strong * more) &&
        (mixed === null || of.entropy[i] <= mixed * more) ? 1 : 0;
      if (kept[i]) order.push(i);
    }
    var keys = {}, by = sort.by, sign = sort.down ? -1 : 1;
    order.forEach(function (i) { keys[i] = value(by, i); });
    order.sort(function (a, b) {
      var x = keys[a], y = keys[b], none = function (v) { return v === "" || v !== v; };
      if (none(x) || none(y)) return none(x) && none(y) ? a - b : none(x) ? 1 : -1;
      return x < y ? -sign : x > y ? sign : a - b;
    });
  }
  function isNarrowed() { return NAMES.some(function (name) { var one = field(name); return one && (one.type === "checkbox" ? one.checked : one.value.trim() !== ""); }); }
  function remembered() {
    var said = new URLSearchParams();
    NAMES.forEach(function (name) {
      var one = field(name);
      if (one && (one.type === "checkbox" ? one.checked : one.value.trim() !== "")) said.set(name, one.type === "checkbox" ? "yes" : one.value.trim());
    });
    if (sort.by !== "overall" || !sort.down) said.set("sort", (sort.down ? "-" : "") + sort.by);
    return said.toString();
  }
  function recall(said) {
    NAMES.forEach(function (name) {
      var one = field(name);
      if (!one) return;
      if (one.type === "checkbox") one.checked = said.has(name); else one.value = said.get(name) || "";
    });
    var by = (said.get("sort") || "-overall").match(/^(-?)(\w+)$/);
    sort = by && (SORTS[by[2]] || by[2] === "overall") ? { by: by[2], down: by[1] === "-" } : { by: "overall", down: true };
  }
  var SORTS = { number: 1, word: 1, score: 1, frequency: 1, mean: 1, entropy: 1, cluster: 1 };
  var address = "";
  function asked() {
    address = remembered();
    // An address of an opened file may be changed in its part after the sign only.
    try { history.replaceState(history.state, "", "#" + address); } catch (error) { location.replace("#" + address); }
    show();
  }
  function show() {
    narrowed();
    $("[data-count]", form).textContent = isNarrowed() ? grouped(order.length) + " of " + many(N, "latent") : many(order.length, "living latent");
    $("button[type=reset]", form).hidden = !isNarrowed();
    S.group(isNarrowed() ? order.filter(alive) : [], field("cluster") && field("cluster").value !== "" ? clusterName(Number(field("cluster").value)) : field("q").value.trim());
    planes.forEach(function (plane) { plane.draw(); });
    histograms.forEach(function (one) { one(); });
    list.fill();
  }

  // --- scatter and map -------------------------------------------------------------------------------------------------

  var planes = [], histograms = [], SHADES = 5, TOP = 0;
  var S = window.VSP_STEER(C, {
    largest: function (i, then) { withLatent(i, function (record) { then(record ? record[AT.max] : 0); }); },
    label: function (i) { return word(i) + (word(i) && poor(i) ? "?" : ""); },
    redraw: function () { planes.forEach(function (plane) { plane.draw(); }); }
  });
  function chosen(i) { if (!S.picks(i)) open(i); }
  living.forEach(function (i) { if (of.entropy[i] > TOP) TOP = of.entropy[i]; });
  function shadeOf(i) { return of.entropy[i] === of.entropy[i] ? Math.min(SHADES - 1, Math.floor(SHADES * of.entropy[i] / (TOP || 1))) : SHADES - 1; }
  // Hues of neighbouring clusters: they tell apart and mean nothing else.
  var HUES = { light: ["#0e6f73", "#9a6a00", "#5b5bb0", "#a8456b", "#4d7a2c", "#8a5a44", "#3a78a8"], dark: ["#43c3c0", "#d9ab4a", "#a3a3ee", "#e58bad", "#98c273", "#c9a08c", "#7fb6dd"] };
  function axis(low, high, start, end) {
    var at = function (v) { return start + (Math.log(v) - Math.log(low)) / ((Math.log(high) - Math.log(low)) || 1) * (end - start); };
    at.back = function (p) { return Math.exp(Math.log(low) + (p - start) / (end - start) * (Math.log(high) - Math.log(low))); };
    at.ticks = [];
    var wide = Math.log10(high / low) > 2;
    for (var d = -7; d < 8; d++) (wide ? [1] : [1, 2, 5]).forEach(function (m) { var t = m * Math.pow(10, d); if (t >= low && t <= high) at.ticks.push(t); });
    return at;
  }
  function reach(name) {
    var low = Infinity, high = -Infinity;
    living.forEach(function (i) { var v = of[name][i]; if (v < low) low = v; if (v > high) high = v; });
    return low < Infinity ? [low, high] : [0.1, 1];
  }

  function Plane(holder, kind) {
    var canvas = element("canvas"), over = element("canvas", "over"), peek = element("div", "peek"), said = element("p", "unseen");
    var box = element("div", "brush"), xs = new Float32Array(N), ys = new Float32Array(N), width = 0, height = 0, at = null, cells = {}, here = -1;
    peek.hidden = box.hidden = true;
    said.setAttribute("aria-live", "polite");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", (kind === "map" ? "Map of the latents" : "Scatter of the latents") +
      ": the arrow keys move from one to the next, Enter opens it");
    over.setAttribute("aria-hidden", "true");
    holder.replaceChildren(canvas, over, box, peek, said);
    holder.classList.add("live");

    function place() {
      width = holder.clientWidth; height = Math.round(width * 5 / 7);
      var ratio = Math.min(2, window.devicePixelRatio || 1);
      [canvas, over].forEach(function (one) {
        one.width = width * ratio; one.height = height * ratio;
        one.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
      });
      if (kind === "map") living.forEach(function (i) { xs[i] = 8 + of.x[i] * (width - 16); ys[i] = 8 + of.y[i] * (height - 16); });
      else {
        var f = reach("frequency"), m = reach("mean");
        at = { x: axis(f[0] / 1.15, f[1] * 1.15, 46, width - 8), y: axis(m[0] / 1.15, m[1] * 1.15, height - 40, 8) };
        living.forEach(function (i) { xs[i] = at.x(of.frequency[i]); ys[i] = at.y(of.mean[i]); });
      }
      cells = {};
      living.forEach(function (i) { var key = (xs[i] >> 4) * 4096 + (ys[i] >> 4); (cells[key] = cells[key] || []).push(i); });
    }
    function draw() {
      if (!width) return;
      var ink = canvas.getContext("2d"), hue = colours(), narrow = isNarrowed(), size = living.length > 8000 ? 2 : living.length > 2000 ? 2.6 : 3.4;
      ink.clearRect(0, 0, width, height);
      var groups = {};
      living.forEach(function (i) {
        var key = narrow && !kept[i] ? "out" : kind === "map" ? (of.cluster[i] >= 0 ? of.cluster[i] % 7 : "loose") : shadeOf(i);
        (groups[key] = groups[key] || []).push(i);
      });
      function dots(key, colour, alpha) {
        ink.fillStyle = ink.strokeStyle = colour; ink.globalAlpha = alpha; ink.lineWidth = 1.3;
        (groups[key] || []).forEach(function (i) {
          if (kind === "map" && RIM[i]) { ink.beginPath(); ink.arc(xs[i], ys[i], 3, 0, 7); ink.stroke(); }
          else if (size < 3) ink.fillRect(xs[i] - size / 2, ys[i] - size / 2, size, size);
          else { ink.beginPath(); ink.arc(xs[i], ys[i], size / 2, 0, 7); ink.fill(); }
        });
        ink.globalAlpha = 1;
      }
      if (kind === "map" && A.inset) {
        var left = 8 + A.inset / 2 * (width - 16), top = 8 + A.inset / 2 * (height - 16);
        ink.strokeStyle = hue.soft; ink.lineWidth = 1; ink.setLineDash([2, 4]);
        ink.strokeRect(left, top, width - 2 * left, height - 2 * top);
        ink.setLineDash([]);
      }
      dots("out", hue.line, 1);
      dots("loose", hue.control, 1);
      if (kind === "map") HUES[dark.matches ? "dark" : "light"].forEach(function (one, h) { dots(h, one, 0.8); });
      else for (var s = SHADES - 1; s >= 0; s--) dots(s, mixed(hue.heat, hue.control, s / (SHADES - 1)), 0.9);
      ink.strokeStyle = hue.after; ink.lineWidth = 1.5;
      S.edited.forEach(function (i) { if (alive(i)) { ink.beginPath(); ink.arc(xs[i], ys[i], 5, 0, 7); ink.stroke(); } });
      var seen = kind === "map" && part();
      if (seen) {
        ink.lineWidth = 1;
        ink.strokeRect(8 + seen[0] * (width - 16), 8 + seen[1] * (height - 16), (seen[2] - seen[0]) * (width - 16), (seen[3] - seen[1]) * (height - 16));
      }
      ink.font = "12px " + getComputedStyle(document.documentElement).getPropertyValue("--small");
      if (kind === "map") names(ink, hue); else axes(ink, hue);
    }
    function axes(ink, hue) {
      ink.strokeStyle = hue.line; ink.fillStyle = hue.soft; ink.lineWidth = 1; ink.textAlign = "center";
      ink.beginPath();
      ink.moveTo(46, 8); ink.lineTo(46, height - 40); ink.lineTo(width - 8, height - 40);
      at.x.ticks.forEach(function (t) { ink.moveTo(at.x(t), height - 40); ink.lineTo(at.x(t), height - 36); ink.fillText(digits(100 * t) + " %", Math.min(at.x(t), width - 20), height - 23); });
      ink.fillText("share of pictures that activate it", (46 + width) / 2, height - 5);
      ink.textAlign = "right";
      at.y.ticks.forEach(function (t) { ink.moveTo(46, at.y(t)); ink.lineTo(42, at.y(t)); ink.fillText(digits(t), 39, at.y(t) + 4); });
      ink.stroke();
      ink.save(); ink.translate(11, (height - 40) / 2); ink.rotate(-Math.PI / 2); ink.textAlign = "center";
      ink.fillText("mean activation there", 0, 0); ink.restore();
    }
    function names(ink, hue) {
      var taken = [], chosen = field("cluster") && field("cluster").value;
      ink.textAlign = "center"; ink.lineJoin = "round";
      A.clusters.map(function (one, c) { return c; }).sort(function (a, b) {
        return (String(b) === chosen) - (String(a) === chosen) || A.clusters[b][1] - A.clusters[a][1];
      }).forEach(function (c) {
        var text = A.clusters[c][0].split(", ")[0];
        if (!text) return;
        ink.font = (String(c) === chosen ? "bold " : "") + "12px " + getComputedStyle(document.documentElement).getPropertyValue("--small");
        var half = ink.measureText(text).width / 2, y = 8 + A.clusters[c][3] * (height - 16) + 4;
        var x = Math.min(Math.max(8 + A.clusters[c][2] * (width - 16), half + 3), width - half - 3);
        if (taken.some(function (one) { return Math.abs(one[0] - x) < one[2] + half + 4 && Math.abs(one[1] - y) < 14; })) return;
        taken.push([x, y, half]);
        ink.strokeStyle = hue.paper; ink.lineWidth = 4; ink.strokeText(text, x, y);
        ink.fillStyle = hue.ink; ink.fillText(text, x, y);
      });
    }
    function nearest(x, y, within) {
      var best = -1, far = within * within;
      for (var cx = (x - within) >> 4; cx <= (x + within) >> 4; cx++) for (var cy = (y - within) >> 4; cy <= (y + within) >> 4; cy++)
        (cells[cx * 4096 + cy] || []).forEach(function (i) {
          if (isNarrowed() && !kept[i]) return;
          var d = (xs[i] - x) * (xs[i] - x) + (ys[i] - y) * (ys[i] - y);
          if (d < far) { far = d; best = i; }
        });
      return best;
    }
    function onward(dx, dy) {
      // The nearest in this direction; sideways counts double.
      var best = -1, least = Infinity;
      living.forEach(function (i) {
        if (i === here || (isNarrowed() && !kept[i])) return;
        var x = xs[i] - xs[here], y = ys[i] - ys[here], along = x * dx + y * dy, across = Math.abs(x * dy) + Math.abs(y * dx);
        if (along > 0 && across <= along && along + 2 * across < least) { least = along + 2 * across; best = i; }
      });
      return best;
    }
    function point(i) {
      here = i;
      var ink = over.getContext("2d");
      ink.clearRect(0, 0, width, height);
      peek.hidden = i < 0;
      if (i < 0) return;
      ink.strokeStyle = colours().after; ink.lineWidth = 2;
      ink.beginPath(); ink.arc(xs[i], ys[i], 6, 0, 7); ink.stroke();
      canvas.dataset.latent = i;
      peek.replaceChildren(element("p"));
      peek.firstChild.appendChild(labelled(i));
      var row = element("div", "thumbs");
      peek.appendChild(row);
      peek.appendChild(element("p", "note", ["active in " + percent(of.frequency[i]) + ", mean " + digits(of.mean[i], 2), kind === "map" && RIM[i] ? "beyond the frame" : "", S.hint()].filter(Boolean).join("; ")));
      function settle() {
        peek.style.left = Math.max(0, Math.min(width - peek.offsetWidth, xs[i] - peek.offsetWidth / 2)) + "px";
        peek.style.top = (ys[i] > peek.offsetHeight + 14 ? ys[i] - peek.offsetHeight - 12 : ys[i] + 14) + "px";
      }
      settle();
      withLatent(i, function (record) {
        if (here !== i || !record || !A.sheets.files.length) return;
        record[AT.references].slice(0, 4).forEach(function (one) { row.appendChild(thumb(one[REF.picture], one, 48)); });
        settle();
      });
    }
    var from = null, dragged = false, soon = 0;
    function spot(event) { var r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; }
    canvas.addEventListener("pointermove", function (event) {
      var p = spot(event);
      if (from) {
        dragged = dragged || Math.abs(p[0] - from[0]) + Math.abs(p[1] - from[1]) > 6;
        if (dragged) {
          point(-1);
          box.hidden = false;
          box.style.left = Math.min(p[0], from[0]) + "px"; box.style.top = Math.min(p[1], from[1]) + "px";
          box.style.width = Math.abs(p[0] - from[0]) + "px"; box.style.height = Math.abs(p[1] - from[1]) + "px";
          return;
        }
      }
      clearTimeout(soon);
      soon = setTimeout(function () { var i = nearest(p[0], p[1], 12); if (i !== here) point(i); canvas.classList.toggle("on", i >= 0); }, 15);
    });
    canvas.addEventListener("pointerleave", function () { clearTimeout(soon); if (document.activeElement !== canvas) point(-1); });
    canvas.addEventListener("pointerdown", function (event) {
      if (event.button) return;
      from = spot(event); dragged = false;
      if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointercancel", function () { from = null; dragged = false; box.hidden = true; });
    canvas.addEventListener("pointerup", function (event) {
      var p = spot(event), start = from;
      from = null; box.hidden = true;
      if (!start) return;
      if (dragged && kind === "map") {
        field("map").value = [[Math.min, 0, width], [Math.min, 1, height], [Math.max, 0, width], [Math.max, 1, height]].map(function (end) {
          return Number(Math.max(0, Math.min(1, (end[0](start[end[1]], p[end[1]]) - 8) / (end[2] - 16))).toFixed(3));
        }).join();
        asked();
      } else if (dragged) {
        function within(name, factor, low, high) {
          field(name + "-from").value = digits(factor * Math.min(low, high), 2); field(name + "-to").value = digits(factor * Math.max(low, high), 2);
        }
        within("frequency", 100, at.x.back(start[0]), at.x.back(p[0]));
        within("mean", 1, at.y.back(start[1]), at.y.back(p[1]));
        asked();
      } else {
        var i = nearest(p[0], p[1], 12);
        if (i >= 0 && (event.pointerType === "mouse" || i === here)) chosen(i); else point(i);
      }
      dragged = false;
    });
    canvas.addEventListener("keydown", function (event) {
      var step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], i;
      if (step) {
        i = here >= 0 ? onward(step[0], step[1]) : order.filter(alive)[0];
        if (i >= 0) { point(i); said.textContent = "Latent " + i + " " + word(i) + ", active in " + percent(of.frequency[i]); }
      } else if (event.key === "Enter" && here >= 0) chosen(here);
      else if (event.key === "Escape") point(-1);
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("blur", function () { point(-1); });
    this.draw = draw;
    this.place = function () { if (holder.clientWidth && holder.clientWidth !== width) { place(); point(-1); draw(); } };
    this.recolour = function () { if (width) draw(); };
  }

  function Histogram(holder) {
    var name = holder.dataset.histogram, log = name !== "entropy", W = 300, H = 150, floor = H - 38, BINS = 30;
    var title = { frequency: "share of pictures", mean: "mean activation", entropy: "label entropy, nats" }[name];
    var ends = reach(name), low = log ? Math.log(ends[0]) : 0, high = log ? Math.log(ends[1]) : ends[1];
    var step = (high - low) / BINS || 1;
    function counts(some) {
      var found = new Array(BINS).fill(0);
      some.forEach(function (i) {
        var v = of[name][i];
        if (v === v) found[Math.max(0, Math.min(BINS - 1, Math.floor(((log ? Math.log(v) : v) - low) / step)))]++;
      });
      return found;
    }
    var every = counts(living), most = Math.max.apply(null, every) || 1, wide = (W - 20) / BINS;
    function bars(found, kind) {
      return drawing("path", { "class": kind, d: found.map(function (n, b) {
        return n ? "M" + (10 + b * wide + 0.5).toFixed(1) + " " + floor + "v" + (-n / most * (floor - 6)).toFixed(1) + "h" + (wide - 1).toFixed(1) + "V" + floor + "z" : "";
      }).join("") });
    }
    return function () {
      var parts = [bars(every, "every")];
      if (isNarrowed()) parts.push(bars(counts(order), "these"));
      var ticks = [];
      if (log) axis(ends[0], ends[1], 10, W - 10).ticks.forEach(function (t) { ticks.push([10 + (Math.log(t) - low) / step * wide, name === "frequency" ? digits(100 * t) + " %" : digits(t)]); });
      else for (var t = 0; t <= high; t += high > 3 ? 1 : 0.5) ticks.push([10 + (t - low) / step * wide, digits(t)]);
      parts.push(drawing("path", { "class": "axis", d: "M10 " + floor + "H" + (W - 10) + ticks.map(function (one) { return "M" + one[0].toFixed(1) + " " + floor + "v4"; }).join("") }));
      ticks.concat([[W / 2, title]]).forEach(function (one, n) {
        var text = drawing("text", { x: Math.max(12, Math.min(W - 18, one[0])).toFixed(1), y: floor + (n === ticks.length ? 33 : 16) });
        text.textContent = one[1];
        parts.push(text);
      });
      var alt = "Histogram of " + many(living.length, "latent") + " by " + title + (isNarrowed() ? ", with the " + grouped(order.length) + " that are shown" : "");
      holder.replaceChildren(drawing("svg", { viewBox: "0 0 " + W + " " + H, role: "img", "aria-label": alt, "class": "bins" }, parts));
    };
  }

  // --- the list --------------------------------------------------------------------------------------------------------

  var list = (function () {
    var holder = $("[data-latent-list]"), ROW = 34, rows, body, heads = {}, made = {};
    var COLUMNS = [["number", "latent"], ["word", "label"], ["score", "score"], ["frequency", "active in"], ["mean", "mean there"], ["entropy", "label entropy"], ["cluster", "cluster"]]
      .filter(function (one) {
        if (one[0] === "word" || one[0] === "score") return A.words.length > 0;
        if (one[0] === "entropy") return TOP > 0;
        return one[0] !== "cluster" || A.clusters.length > 0;
      });
    function build() {
      var table = element("div", "rows");
      table.setAttribute("role", "table");
      table.setAttribute("aria-label", "Latents");
      var head = element("div", "row head"), group = element("div");
      head.setAttribute("role", "row");
      group.setAttribute("role", "rowgroup");
      COLUMNS.forEach(function (one) {
        var cell = element("span", "c-" + one[0]), button = element("button", "link", one[1]);
        button.type = "button";
        cell.setAttribute("role", "columnheader");
        cell.appendChild(button);
        button.addEventListener("click", function () {
          sort = sort.by === one[0] ? { by: one[0], down: !sort.down } : { by: one[0], down: !/number|word|cluster|entropy/.test(one[0]) };
          body.scrollTop = 0;
          asked();
        });
        heads[one[0]] = cell;
        head.appendChild(cell);
      });
      group.appendChild(head);
      body = element("div", "body");
      body.tabIndex = 0;
      body.setAttribute("role", "rowgroup");
      body.setAttribute("aria-label", "Latents, as they are sorted");
      rows = element("div", "tall");
      rows.setAttribute("role", "presentation");
      body.appendChild(rows);
      table.appendChild(group);
      table.appendChild(body);
      holder.replaceChildren(table);
      holder.hidden = false;
      body.addEventListener("scroll", paint, { passive: true });
      body.addEventListener("keydown", function (event) {
        // From link to link, wherever they are in the list.
        var on = document.activeElement && document.activeElement.dataset.row, step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (on === undefined || !step) return;
        event.preventDefault();
        var next = Math.max(0, Math.min(order.length - 1, Number(on) + step));
        if (next * ROW < body.scrollTop) body.scrollTop = next * ROW;
        if ((next + 1) * ROW > body.scrollTop + body.clientHeight) body.scrollTop = (next + 1) * ROW - body.clientHeight;
        paint();
        if (made[next]) made[next].querySelector("a").focus({ preventScroll: true });
      });
    }
    function cell(row, kind, text) { var one = element("span", "c-" + kind, text); one.setAttribute("role", "cell"); row.appendChild(one); return one; }
    function line(n) {
      var i = order[n], row = element("div", "row"), link = element("a", "", i), there = alive(i);
      row.setAttribute("role", "row");
      row.setAttribute("aria-rowindex", n + 2);
      row.style.top = n * ROW + "px";
      link.href = "#latent=" + i;
      link.dataset.row = n;
      COLUMNS.forEach(function (one) {
        var kind = one[0];
        if (kind === "number") { cell(row, kind).appendChild(link); if (C.latents[i]) row.lastChild.appendChild(element("span", "dot", " in a case")); if (there) row.lastChild.append(S.plus(i) || ""); }
        else if (kind === "word") cell(row, kind + (poor(i) ? " poor" : ""), there ? word(i) : "dead");
        else if (kind === "score") {
          var s = of.score[i], place = cell(row, kind);
          if (s !== s) return;
          place.appendChild(drawing("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "class": "found", "aria-hidden": "true" }, [
            drawing("rect", { "class": "ground", width: 100, height: 10 }), drawing("rect", { "class": poor(i) ? "short" : "reached", width: Math.max(0, Math.min(100, 100 * s)), height: 10 })]));
          place.appendChild(element("span", "", s.toFixed(1)));
        } else if (kind === "frequency") cell(row, kind, there ? percent(of.frequency[i]) : "–");
        else if (kind === "mean") cell(row, kind, digits(of.mean[i], 2));
        else if (kind === "entropy") cell(row, kind, of.entropy[i] === of.entropy[i] ? of.entropy[i].toFixed(1) : "–");
        else cell(row, kind, of.cluster[i] >= 0 ? clusterName(of.cluster[i]) : "");
      });
      return row;
    }
    function paint() {
      var first = Math.max(0, Math.floor(body.scrollTop / ROW) - 6), last = Math.min(order.length, Math.ceil((body.scrollTop + body.clientHeight) / ROW) + 6);
      Object.keys(made).forEach(function (n) { if (n < first || n >= last) { made[n].remove(); delete made[n]; } });
      for (var n = first; n < last; n++) if (!made[n]) rows.appendChild(made[n] = line(n));
    }
    return {
      fill: function () {
        if (!body) build();
        rows.replaceChildren();
        made = {};
        rows.style.height = order.length * ROW + "px";
        holder.firstChild.setAttribute("aria-rowcount", order.length + 1);
        Object.keys(heads).forEach(function (by) {
          if (sort.by === by) heads[by].setAttribute("aria-sort", sort.down ? "descending" : "ascending"); else heads[by].removeAttribute("aria-sort");
        });
        if (!order.length) { var none = element("p", "none", "No latent fits."); none.setAttribute("role", "row"); none.setAttribute("aria-label", "No latent fits."); rows.appendChild(none); }
        paint();
      },
      paint: function () { if (body) paint(); }
    };
  })();

  // --- a latent ----------------------------------------------------------------------------------------------------------

  var title = document.title, back = 0, opener = null, shown = false;
  function open(i) { location.hash = "latent=" + i; }
  function heading(text) { return element("h2", "", text); }
  function ranked(name, i) {
    var below = 0;
    living.forEach(function (j) { if (of[name][j] < of[name][i]) below++; });
    return living.length > 1 ? Math.floor(100 * below / (living.length - 1)) : null;
  }
  function steps(i) {
    var nav = element("p", "steps"), at = order.indexOf(i);
    function to(text, target, kind) {
      var link = element("a", kind, text);
      if (target !== null) { link.href = target; nav.appendChild(link); }
    }
    to("All latents", "#" + address, "back");
    if (at > 0) to("Previous: " + order[at - 1], "#latent=" + order[at - 1]);
    if (at >= 0 && at + 1 < order.length) to("Next: " + order[at + 1], "#latent=" + order[at + 1]);
    return nav;
  }
  function latent(i) {
    var head = element("header", "head"), name = element("h1", "", "Latent " + i), text = isWhole(i) && alive(i) ? word(i) : "";
    name.id = "latent-title"; name.tabIndex = -1;
    head.appendChild(steps(i));
    head.appendChild(name);
    view.replaceChildren(head);
    document.title = "Latent " + i + (text ? ", " + text : "") + " · " + title;
    if (!isWhole(i)) {
      name.textContent = "No such latent";
      head.appendChild(element("p", "headline", "This autoencoder's latents are numbered from 0 to " + grouped(N - 1) + "."));
      return;
    }
    if (!alive(i)) {
      head.appendChild(element("p", "headline", "It is dead: none of the " + grouped(A.pictures) + " pictures activates it, so nothing is known of it."));
      inCases(i);
      return;
    }
    var asked = String(i);
    view.dataset.latent = asked;
    withLatent(i, function (record) {
      if (view.dataset.latent !== asked || view.hidden) return;
      if (!record) { head.appendChild(element("p", "headline", "Its file is missing from this site: latents/. Build the site again, or copy all of it.")); return; }
      describe(i, record, head);
      var patience = 12;
      setTimeout(function next() {  // its pictures come first: its neighbours need others
        if (!head.isConnected) return;
        if (patience-- > 0 && $(".contact canvas:not([data-drawn])", view)) return setTimeout(next, 16);
        compare(i, record);
        view.dataset.ready = asked;
      });
    });
  }
  function isWhole(i) { return i >= 0 && i < N && i === Math.floor(i); }

  function describe(i, record, head) {
    head.appendChild(labels(i, record));
    head.append(S.button(i) || "");
    head.appendChild(figures(i, record));
    inCases(i);
    references(i, record);
  }
  function compare(i, record) {
    var pair = element("div", "pair");
    pair.appendChild(activations(i, record));
    if (record[AT.neighbours].length) pair.appendChild(neighbours(i, record));
    view.appendChild(pair);
  }
  function labels(i, record) {
    var found = element("div", "labels");
    if (!record[AT.labels].length) found.appendChild(element("p", "headline unlabelled", "It has no label."));
    record[AT.labels].forEach(function (one, n) {
      var made = A.labellings[one[2]], bad = n ? made[3] !== null && one[1] !== null && one[1] < made[3] : poor(i);
      var line = element("p", n ? "other-label" : "headline"), score = one[1] === null ? "" : (made[2] || "score") + " " + one[1].toFixed(2);
      line.appendChild(element("span", "word" + (bad ? " poor" : ""), one[0]));
      if (one[1] !== null) {
        line.appendChild(drawing("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "class": "found", "aria-hidden": "true" }, [
          drawing("rect", { "class": "ground", width: 100, height: 10 }), drawing("rect", { "class": bad ? "short" : "reached", width: Math.max(0, Math.min(100, 100 * one[1])), height: 10 })]));
      }
      line.appendChild(element("span", "score", [bad ? "a poor label" + (score ? ": " + score + ", below " + made[3] : "") : score, (made[0] === "given" ? "given by hand: " : "") + made[1]].filter(Boolean).join("; ")));
      found.appendChild(line);
    });
    return found;
  }
  function figures(i, record) {
    var found = element("dl", "figures");
    function fact(name, said, more) {
      var box = element("div");
      box.appendChild(element("dt", "", name));
      box.appendChild(element("dd", "", said));
      if (more) box.appendChild(element("dd", "score", more));
      found.appendChild(box);
    }
    var often = ranked("frequency", i), strong = ranked("mean", i);
    fact("active in", percent(record[AT.frequency], 3), "of pictures" + (often === null ? "" : "; more than " + often + " % of latents"));
    fact("on", percent(record[AT.patches], 3), "of all patches");
    fact("mean", digits(record[AT.mean]), "where it is active" + (strong === null ? "" : "; more than " + strong + " % of latents"));
    fact("mean over all", digits(record[AT.overall]), "pictures");
    fact("largest", digits(record[AT.max]));
    if (record[AT.entropy] !== null) fact("label entropy", record[AT.entropy].toFixed(2), "nats; less is purer");
    if (record[AT.mono] !== null) fact("monosemanticity", record[AT.mono].toFixed(2), "likeness of what activates it");
    if (record[AT.unique] !== null) fact("uniqueness", record[AT.unique].toFixed(2), "of its references");
    if (of.cluster[i] >= 0) {
      fact("cluster", "");
      var link = element("a", "", clusterName(of.cluster[i]));
      link.href = "#cluster=" + of.cluster[i];
      found.lastChild.lastChild.appendChild(link);
    }
    return found;
  }
  function inCases(i) {
    var lines = C.latents[i], more = alive(i) ? S.cases(i) : [];
    if (lines || more.length) view.appendChild(heading(lines ? "Where it matters" : "Where it can be tried"));
    if (lines) served(i, lines);
    view.append.apply(view, more);
  }
  function served(i, lines) {
    var found = element("ul", "served");
    lines.forEach(function (one) {
      var item = element("li"), link = element("a", "", C.cases[one[0]][1]);
      link.href = "../../cases/" + encodeURIComponent(C.cases[one[0]][0]) + "/index.html#latent=" + i;  // to be tried there
      item.appendChild(link);
      item.appendChild(element("span", "", " " + one[2]));
      found.appendChild(item);
    });
    view.appendChild(found);
  }
  function references(i, record) {
    var refs = record[AT.references];
    view.appendChild(heading("What activates it most"));
    if (!A.sheets.files.length) view.appendChild(element("p", "hint", "The atlas has no pictures; these are their names."));
    else {
      var controls = element("p", "controls"), on = element("label"), box = element("input"), cut = element("label", "", "veiled below "), range = element("input"), out = element("output");
      box.type = "checkbox"; box.checked = masks.on; box.id = "masks";
      range.type = "range"; range.min = 0; range.max = 100; range.value = 100 * masks.threshold; range.id = "threshold"; range.disabled = !masks.on;
      on.appendChild(box); on.appendChild(document.createTextNode(" veil where it is silent"));
      cut.appendChild(range); cut.appendChild(out);
      function say() { out.textContent = Math.round(100 * masks.threshold) + " % of the largest on the picture"; }
      say();
      box.addEventListener("change", function () { masks.on = box.checked; range.disabled = !masks.on; repaint(); });
      range.addEventListener("input", function () { masks.threshold = range.value / 100; say(); repaint(); });
      controls.appendChild(on); controls.appendChild(cut);
      view.appendChild(controls);
    }
    var sheet = element("ul", "contact");
    refs.forEach(function (one) {
      var item = element("li");
      if (A.sheets.files.length) item.appendChild(thumb(one[REF.picture], one, 132));
      item.appendChild(element("span", "num", digits(one[REF.strength])));
      item.appendChild(element("span", "name", one[REF.label] || A.prefix + one[REF.name]));
      if (one[REF.label]) item.title = A.prefix + one[REF.name];
      sheet.appendChild(item);
    });
    view.appendChild(sheet);
  }
  function activations(i, record) {
    // Bins are the same for every latent; shown are those from its first to its last.
    var first = record[AT.histogram][0], counts = record[AT.histogram].slice(1), edges = A.edges.slice(first, first + counts.length + 1), B = counts.length, figure = element("figure"), W = 440, H = 190, floor = H - 40, wide = (W - 20) / B;
    var most = Math.max.apply(null, counts), up = function (n) { return n ? (Math.log10(n) + 0.3) / (Math.log10(most) + 0.3 || 1) * (floor - 18) : 0; }, parts = [];
    parts.push(drawing("path", { "class": "these", d: counts.map(function (n, b) {
      return n ? "M" + (10 + b * wide + 0.5).toFixed(1) + " " + floor + "v" + (-up(n)).toFixed(1) + "h" + (wide - 1).toFixed(1) + "V" + floor + "z" : ""; }).join("") }));
    var ticks = [], each = Math.ceil(B / 6);
    for (var b = 0; b <= B; b += each) ticks.push([10 + b * wide, digits(edges[b], 2)]);
    parts.push(drawing("path", { "class": "axis", d: "M10 " + floor + "H" + (W - 10) + ticks.map(function (one) { return "M" + one[0].toFixed(1) + " " + floor + "v4"; }).join("") }));
    ticks.concat([[W / 2, "activation of a patch"]]).forEach(function (one, n) {
      var text = drawing("text", { x: Math.max(14, Math.min(W - 14, one[0])).toFixed(1), y: floor + (n === ticks.length ? 34 : 17) });
      text.textContent = one[1];
      parts.push(text);
    });
    var top = counts.indexOf(most), said = drawing("text", { x: Math.max(40, Math.min(W - 40, 10 + (top + 0.5) * wide)).toFixed(1), y: 10 });
    said.textContent = many(most, "patch", "patches");
    parts.push(said);
    figure.appendChild(heading("How strongly"));
    figure.appendChild(drawing("svg", { viewBox: "0 0 " + W + " " + H, "class": "bins", role: "img",
      "aria-label": "Histogram of the activations of latent " + i + ", from " + digits(edges[0], 2) + " to " + digits(record[AT.max]) + "; data below" }, parts));
    figure.appendChild(element("figcaption", "", "Patches by their activation; heights are by logarithm."));
    var more = element("details", "more"), table = element("table", "data"), at = table.createTBody();
    more.appendChild(element("summary", "", "Data of this histogram"));
    table.createCaption().textContent = "Patches by activation";
    counts.forEach(function (n, b) {
      if (!n) return;
      var row = at.insertRow(), head = document.createElement("th");
      head.scope = "row"; head.textContent = digits(edges[b]) + " to " + digits(edges[b + 1]);
      row.appendChild(head);
      var cell = row.insertCell(); cell.className = "num"; cell.textContent = grouped(n);
    });
    more.appendChild(table);
    figure.appendChild(more);
    return figure;
  }
  function neighbours(i, record) {
    var figure = element("section"), by = "cosine", lines = record[AT.neighbours], table = element("table", "plain near"), body = table.createTBody();
    figure.appendChild(heading("Latents like it"));
    var controls = element("p", "controls choice");
    controls.setAttribute("role", "radiogroup");
    controls.setAttribute("aria-label", "Sorted by");
    [["cosine", "by direction"], ["together", "by being active together"]].forEach(function (one) {
      var label = element("label"), radio = element("input");
      radio.type = "radio"; radio.name = "near"; radio.checked = one[0] === by;
      radio.addEventListener("change", function () { by = one[0]; fill(); });
      label.appendChild(radio); label.appendChild(document.createTextNode(" " + one[1]));
      controls.appendChild(label);
    });
    var head = table.createTHead().insertRow();
    ["latent", "cosine", "active together"].forEach(function (text, n) {
      var cell = document.createElement("th");
      cell.scope = "col"; cell.textContent = text; if (n) cell.className = "num";
      head.appendChild(cell);
    });
    function fill() {
      body.replaceChildren();
      lines.slice().sort(function (a, b) { var at = by === "cosine" ? 1 : 2; return b[at] - a[at]; }).forEach(function (one) {
        var row = body.insertRow(), cell = document.createElement("th"), link = element("a");
        cell.scope = "row";
        link.href = "#latent=" + one[0];
        if (one[3] >= 0 && A.sheets.files.length) link.appendChild(thumb(one[3], null, 28));
        link.appendChild(labelled(one[0]));
        cell.appendChild(link); row.appendChild(cell);
        [one[1].toFixed(2), percent(one[2])].forEach(function (text) { var c = row.insertCell(); c.className = "num"; c.textContent = text.replace("-", "−"); });
      });
    }
    fill();
    figure.appendChild(controls);
    figure.appendChild(table);
    figure.appendChild(element("p", "note", "Direction: cosine of the decoder's rows. Active together: pictures that activate both, of those that activate either."));
    return figure;
  }

  // --- the address -------------------------------------------------------------------------------------------------------

  function route() {
    var said = new URLSearchParams(location.hash.slice(1));
    if (said.has("latent")) {
      if (view.hidden) { back = window.scrollY; opener = document.activeElement; }
      overview.hidden = true; view.hidden = false;
      delete view.dataset.ready;
      view.dataset.latent = "";
      latent(/^\d+$/.test(said.get("latent")) ? Number(said.get("latent")) : -1);
      window.scrollTo(0, 0);
      $("#latent-title").focus({ preventScroll: true });
      return;
    }
    var part = location.hash.length > 1 && location.hash.indexOf("=") < 0 ? document.getElementById(location.hash.slice(1)) : null;
    // The way past the navigation leads into what is open.
    if (part && !view.hidden && part.contains(view)) return;
    var was = !view.hidden, same = said.toString() === address;
    view.hidden = true; overview.hidden = false;
    document.title = title;
    planes.forEach(function (plane) { plane.place(); });
    if (!part && form && (!same || !shown)) { shown = true; address = said.toString(); recall(said); show(); }
    else list.paint();
    if (part) part.scrollIntoView();
    else if (was) {
      window.scrollTo(0, same ? back : Math.max(0, form ? form.getBoundingClientRect().top + window.scrollY - 20 : 0));
      if (same && opener && opener.isConnected) opener.focus({ preventScroll: true });
    } else if (form && isNarrowed()) form.scrollIntoView();
  }

  all("[data-js]").forEach(function (part) { part.hidden = false; });
  all("[data-static]").forEach(function (part) { part.hidden = Boolean(form); });
  all("[data-copy]").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var node = document.getElementById(button.dataset.copy);
      function said(text) { button.textContent = text; setTimeout(function () { button.textContent = "Copy"; }, 1600); }
      function select() {
        var range = document.createRange();
        range.selectNodeContents(node);
        getSelection().removeAllRanges(); getSelection().addRange(range);
        said(document.execCommand("copy") ? "Copied" : "Selected");
      }
      if (navigator.clipboard) navigator.clipboard.writeText(node.textContent).then(function () { said("Copied"); }, select); else select();
    });
  });
  if (form) {
    form.hidden = false;
    var typing = 0;
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    form.addEventListener("input", function () { clearTimeout(typing); typing = setTimeout(asked, N > 4000 ? 120 : 0); });
    form.addEventListener("reset", function () { setTimeout(asked); });
    planes = all("[data-plane]").map(function (holder) { return new Plane(holder, holder.dataset.plane); });
    histograms = all("[data-histogram]").map(Histogram);
    narrowed();
    window.addEventListener("resize", function () { planes.forEach(function (plane) { plane.place(); }); list.paint(); });
    dark.addEventListener("change", function () { planes.forEach(function (plane) { plane.recolour(); }); repaint(); });
  }
  // What is pointed at for a moment is likely to be opened.
  var pointed = 0;
  ["pointerover", "focusin"].forEach(function (kind) {
    document.addEventListener(kind, function (event) {
      var link = event.target.closest && event.target.closest('a[href^="#latent="]'), i = link ? Number(link.hash.slice(8)) : -1;
      clearTimeout(pointed);
      // A finger points and opens at once, or scrolls.
      if (isWhole(i) && alive(i) && event.pointerType !== "touch") pointed = setTimeout(R.prepare, 60, i);
    });
  });
  window.addEventListener("hashchange", route);
  route();
})();
