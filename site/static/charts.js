/* Charts: pictures of charts become charts that answer. Comes after case.js, whose window.VSP says what is chosen.

   The heatmap is drawn of the recorded values: another scale, order, grouping or number of latents is another order
   of the same figures. Rows and columns are chosen by mouse or with the arrow keys; a cluster goes to “Try it”. */
(function () {
  "use strict";
  var $ = function (selector) { return document.querySelector(selector); };
  var all = function (selector) { return Array.prototype.slice.call(document.querySelectorAll(selector)); };
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var VSP = window.VSP, data = VSP.data, state = VSP.state, name = VSP.name;
  if (!window.vegaEmbed || !window.VSP_FIGURES) return;

  function coloured(value, exchange) {
    if (Array.isArray(value)) return value.map(function (one) { return coloured(one, exchange); });
    if (value && typeof value === "object") {
      var copy = {};
      Object.keys(value).forEach(function (key) { copy[key] = coloured(value[key], exchange); });
      return copy;
    }
    return typeof value === "string" && exchange[value] || value;
  }
  function exchange() {
    var found = {};
    if (dark.matches) Object.keys(VSP_COLOURS.light).forEach(function (key) { found[VSP_COLOURS.light[key]] = VSP_COLOURS.dark[key]; });
    return found;
  }
  function narrowed(spec, room) {
    // Charts are drawn for 440 px; on a phone the words keep their size and the rest gives way.
    (spec.vconcat || []).forEach(function (part) { narrowed(part, room); });
    if (typeof spec.width === "number") spec.width = Math.min(spec.width, Math.max(150, room));
    return spec;
  }
  function options(renderer) {
    return { mode: "vega-lite", ast: true, actions: false, defaultStyle: false, renderer: renderer,
      tooltip: { disableDefaultStyle: true, theme: "site" } };
  }

  var views = {};
  function embed(id) {
    var place = $('[data-figure="' + id + '"]'), spec = coloured(VSP_FIGURES[id], exchange());
    if (id === "heatmap") spec = retabled(spec);
    else spec = narrowed(spec, place.clientWidth - (id === "classes" ? 190 : id.indexOf("rounds") === 0 ? 210 : 70));
    var target = document.createElement("div");
    return window.vegaEmbed(target, spec, options("svg")).then(function (made) {
      if (views[id]) views[id].finalize();
      views[id] = made.view;
      place.replaceChildren(target);
      if (id === "heatmap") { made.view.addEventListener("click", picked); mark(); }
      place.dataset.live = "yes";
    }, function (error) { console.error("The chart " + id + " stays a picture:", error); });
  }

  dark.addEventListener("change", function () { Object.keys(views).forEach(embed); });
  var near = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (entry.isIntersecting) { near.unobserve(entry.target); embed(entry.target.dataset.figure); }
    });
  }, { rootMargin: "300px" });
  all("[data-figure]").forEach(function (place) { if (VSP_FIGURES[place.dataset.figure]) near.observe(place); });

  // A chart as a picture for slides: with the colours of the day, on paper, twice as fine as the screen.
  all("[data-png]").forEach(function (button) {
    var id = button.dataset.png;
    if (!VSP_FIGURES[id]) return;
    button.hidden = false;
    button.addEventListener("click", function () {
      var spec = coloured(VSP_FIGURES[id], {});
      if (id === "heatmap") spec = retabled(spec);
      spec.background = VSP_COLOURS.light.paper;
      window.vegaEmbed(document.createElement("div"), spec, options("canvas")).then(function (made) {
        return made.view.toImageURL("png", 2).then(function (address) {
          var link = document.createElement("a");
          link.href = address;
          link.download = id + ".png";
          link.click();
          button.dataset.made = String(address.length);
          made.view.finalize();
        });
      });
    });
  });

  // --- the heatmap -------------------------------------------------------------------------------------------------

  var heat = data && data.heatmap, asked = null, group = null, box = $('[data-figure="heatmap"]');
  function option(id, known) {
    Array.prototype.slice.call($(id).options).forEach(function (one) { if (known.indexOf(one.value) < 0) one.remove(); });
  }
  if (heat && box && $('[data-controls="heatmap"]')) {
    var first = heat.clusterings[0];
    asked = { normalize: heat.normalize, cluster: first.cluster, distance: first.distance, whose: heat.row, top: heat.top };
    option("#cluster", heat.clusterings.map(function (one) { return one.cluster; }));
    option("#distance", heat.clusterings.map(function (one) { return one.distance; }));
    $("#normalize").value = heat.normalize;
    $("#cluster").value = first.cluster;
    $("#distance").value = first.distance;
    $("#top").value = heat.top; $("#top").max = heat.top;
    $("#whose-heatmap").value = heat.row;
    if (!VSP.maps.length || !VSP.attention.predicting || !VSP.attention.own) $("#whose-heatmap").parentNode.hidden = true;
    ["normalize", "cluster", "distance", "whose-heatmap", "top"].forEach(function (control) {
      $("#" + control).addEventListener("change", function (event) {
        var value = event.target.value, id = control === "whose-heatmap" ? "whose" : control;
        asked[id] = id === "top" ? bounded(value) : value;
        group = null;
        clusters();
        embed("heatmap");
        VSP.note();
      });
    });
    $('[data-controls="heatmap"]').hidden = false;
    box.setAttribute("aria-label", "Heatmap: arrow keys choose a word and a latent");
    box.addEventListener("keydown", moved);
    VSP.watch(mark);
    var noisy = heat.columns.map(VSP.noise).join();
    VSP.watch(function () {
      var now = heat.columns.map(VSP.noise).join(), same = now === noisy;
      noisy = now;
      if (!same && views.heatmap) { clusters(); embed("heatmap"); }
    });
    var opens = { scale: heat.normalize, clusters: first.cluster, by: first.distance, "while": heat.row, top: String(heat.top) };
    var fields = { scale: "normalize", clusters: "cluster", by: "distance", "while": "whose-heatmap", top: "top" };
    VSP.keep({
      tell: function (said) {
        Object.keys(fields).forEach(function (key) {
          var now = String(asked[{ "while": "whose" }[key] || fields[key]]);
          if (now !== opens[key]) said.set(key, now);
        });
        if (group !== null) said.set("group", group);
      },
      recall: function (said) {
        var before = JSON.stringify(asked);
        recalled(said);
        if (JSON.stringify(asked) !== before) {
          clusters();
          if (views.heatmap) embed("heatmap");
        }
        told("");
      }
    });
    var recalled = function (said) {
      Object.keys(fields).forEach(function (key) {
        var field = $("#" + fields[key]), given = said.get(key);
        if (given === null || (field.options && !Array.prototype.some.call(field.options, function (one) { return one.value === given; }))) given = opens[key];
        if ((key === "while" && field.parentNode.hidden) || (key === "top" && !/^\d{1,4}$/.test(given))) given = opens[key];
        asked[{ "while": "whose" }[key] || fields[key]] = key === "top" ? bounded(given) : given;
        field.value = key === "top" ? bounded(given) : given;
      });
      var chosen = /^\d{1,3}$/.test(said.get("group") || "") ? Number(said.get("group")) : -1;
      group = grouping().clusters.indexOf(chosen) < 0 ? null : chosen;
    };
    var opened = VSP.address() || new URLSearchParams();
    recalled(opened);
    clusters();
    told("");
    // The panel, which comes after, is given the cluster of the link, where the link has no setting of the panel's own.
    if (group !== null && !opened.has("try")) document.addEventListener("DOMContentLoaded", function () { offered(group, false); });
  }

  function bounded(value) { return Math.min(heat.top, Math.max(1, Math.round(Number(value)) || heat.top)); }
  function grouping() {
    return heat.clusterings.filter(function (one) { return one.cluster === asked.cluster && one.distance === asked.distance; })[0] ||
      heat.clusterings[0];
  }
  function weighted() {
    if (asked.whose === heat.row) return heat.values;
    return heat.rows.map(function (t) {
      return heat.columns.map(function (l) {
        return VSP.maps[l].reduce(function (sum, value, p) { return sum + value * VSP.attention[asked.whose][t][p]; }, 0);
      });
    });
  }
  function stepOf(columns) { return Math.min(24, Math.max(11, Math.round(720 / Math.max(columns, 1)))); }
  function largest(list) { return list.reduce(function (a, b) { return Math.max(a, b); }, 0); }

  // The columns from left to right: in the order of their clusters, and among the strongest of some word.
  function columnsOf(values) {
    var kept = {};
    values.forEach(function (row) {
      row.map(function (_, c) { return c; }).sort(function (a, b) { return row[b] - row[a] || a - b; })
        .slice(0, asked.top).forEach(function (c) { if (row[c] > 0) kept[c] = true; });
    });
    // As many as were recorded: all of them, whatever brought them in.
    return grouping().order.filter(function (c) { return (asked.top >= heat.top || kept[c]) && !VSP.noise(heat.columns[c]); });
  }
  function tables() {
    var values = weighted(), chosen = grouping(), order = columnsOf(values);
    var whole = largest(values.map(largest)), rowTop = values.map(largest);
    var columnTop = heat.columns.map(function (_, c) { return largest(values.map(function (row) { return row[c]; })); });
    var x = 0, previous = null, bands = [], places = {};
    order.forEach(function (c) {
      var cluster = chosen.clusters[c];
      if (cluster !== previous) {
        x += previous === null ? 0 : 0.5;
        bands.push({ x: x, x2: x, cluster: cluster, name: named(cluster) });
        previous = cluster;
      }
      places[c] = x; x += 1; bands[bands.length - 1].x2 = x;
    });
    var step = stepOf(order.length), cells = [];
    bands.forEach(function (one) { if (one.name.length * 6 > (one.x2 - one.x) * step) one.name = one.name.split(" ")[0]; });
    values.forEach(function (row, r) {
      order.forEach(function (c) {
        var over = { none: whole, row: rowTop[r], column: columnTop[c] }[asked.normalize];
        cells.push({ x: places[c] + 0.06, x2: places[c] + 0.94, y: r + 0.06, y2: r + 0.94, token: data.tokens[heat.rows[r]],
          latent: name(heat.columns[c]), value: row[c], shade: over ? row[c] / over : 0, row: r, column: c });
      });
    });
    var row = heat.rows.indexOf(state.token), column = heat.columns.indexOf(state.latent);
    return { cells: cells, clusters: bands, last: x, order: order, values: values,
      chosen: row >= 0 && places[column] !== undefined ? [{ x: places[column], x2: places[column] + 1, y: row, y2: row + 1 }] : [],
      columns: order.map(function (c) {
        var one = data.latents[heat.columns[c]];
        return { x: places[c] + 0.5, name: one[1].slice(0, 14) || String(one[0]), column: c, on: heat.columns[c] === state.latent };
      }),
      rows: heat.rows.map(function (t, r) { return { y: r + 0.5, token: data.tokens[t].slice(0, 24), row: r, on: r === row }; }) };
  }
  function named(cluster) { return (cluster + " " + (grouping().names[cluster] || "")).trim(); }

  function retabled(spec) {
    if (!asked) return spec;
    var found = tables(), step = stepOf(found.columns.length);
    var seen = spec.datasets || {};
    spec.layer.forEach(function (layer) {
      var table = layer.data && layer.data.name;
      if (table && found[table]) { layer.data = { name: table, values: found[table] }; delete seen[table]; }
      var across = layer.encoding && layer.encoding.x;
      if (across && across.scale) across.scale.domain = [0, found.last || 1];
    });
    spec.width = Math.round((found.last || 1) * step);
    return spec;
  }

  // Selecting marks a row and a column of the chart that is there, and says the cell where they meet.
  function mark() {
    var view = views.heatmap;
    if (!view || !heat) return;
    var found = tables(), row = heat.rows.indexOf(state.token), column = heat.columns.indexOf(state.latent);
    ["rows", "columns", "chosen"].forEach(function (table) { view.data(table, found[table]); });
    view.runAsync();
    if (row >= 0 && column >= 0) {
      say("“" + data.tokens[state.token] + "” reads latent " + name(state.latent) + ": " +
        VSP.digits(found.values[row][column]) + ", cluster " + named(grouping().clusters[column]) + ".");
    }
  }
  function say(words) { $("[data-heat-said]").textContent = words; }

  function picked(event, item) {
    var datum = item && item.datum;
    if (!datum) return;
    if (datum.cluster !== undefined) return offered(datum.cluster, false);
    if (datum.row === undefined && datum.column === undefined) return;
    group = null;
    if (datum.row !== undefined) state.token = heat.rows[datum.row];
    state.latent = datum.column !== undefined ? heat.columns[datum.column] : null;
    VSP.changed();
  }
  function moved(event) {
    var down = { ArrowDown: 1, ArrowUp: -1 }[event.key], along = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!down && !along) return;
    event.preventDefault();
    var order = columnsOf(weighted()), row = heat.rows.indexOf(state.token), column = order.indexOf(heat.columns.indexOf(state.latent));
    row = row < 0 ? 0 : Math.min(heat.rows.length - 1, Math.max(0, row + (down || 0)));
    column = column < 0 ? 0 : Math.min(order.length - 1, Math.max(0, column + (along || 0)));
    group = null;
    state.token = heat.rows[row];
    state.latent = order.length ? heat.columns[order[column]] : null;
    VSP.changed();
  }

  // --- clusters ----------------------------------------------------------------------------------------------------

  function members(cluster) {
    return columnsOf(weighted()).filter(function (c) { return grouping().clusters[c] === cluster; })
      .map(function (c) { return heat.columns[c]; });
  }
  function offered(cluster, go) {
    var latents = members(cluster);
    VSP.offer(latents, "cluster " + named(cluster), go);
    group = cluster;
    told($("#try") ? " in “Try it” below" : " chosen");
    VSP.note();
  }
  function told(where) {
    if (group === null) return;
    var cluster = group, latents = members(cluster);
    say("Cluster " + named(cluster) + ": " + (where ? "its " + latents.length + (latents.length === 1 ? " latent is" : " latents are") + where :
      latents.map(name).join(", ")) + ".");
  }
  function clusters() {
    var line = $("[data-clusters]"), found = {};
    columnsOf(weighted()).forEach(function (c) { found[grouping().clusters[c]] = true; });
    line.hidden = !$("#try");
    line.replaceChildren("Steer a cluster: ");
    Object.keys(found).map(Number).sort(function (a, b) { return a - b; }).forEach(function (cluster) {
      var button = VSP.element("button", "link", named(cluster));
      button.type = "button";
      button.addEventListener("click", function () { offered(cluster, false); });
      line.append(button, " ");
    });
  }
})();
