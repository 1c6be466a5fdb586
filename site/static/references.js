/* References: the pictures that activate a latent most, under a veil wherever it is silent. For an atlas, which shows
   those of every latent, and for a case, which shows those of the one that is chosen. A classic script, because a page
   that was opened from a folder runs no other and may read no file; what is known of a latent is a script too, loaded
   when it is asked for.

   VSP_REFERENCES(atlas, at, masks): `atlas` is what overview.js says, `at` the atlas's folder from this page, `masks`
   {on, threshold}, read at each painting. */
window.VSP_REFERENCES = function (A, at, masks) {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)"), files = {}, waiting = {}, sheets = {}, VEIL = 0.76;
  // What a latent's file says, by place; and what it says of a reference.
  var AT = { frequency: 0, patches: 1, mean: 2, overall: 3, max: 4, entropy: 5, mono: 6, unique: 7, labels: 8, histogram: 9, neighbours: 10, references: 11 };
  var REF = { picture: 0, strength: 1, name: 2, label: 3, rows: 4, columns: 5, grid: 6 };

  // A picture's label, rows and columns are said once in a file; a reference has their number.
  window.VSP_LATENTS = function (n, rows, kinds) {
    rows.forEach(function (row) {
      if (row) row[AT.references].forEach(function (one) { one.splice.apply(one, [REF.label, 1].concat(kinds[one[REF.label]])); });
    });
    files[n] = rows;
    (waiting[n] || []).forEach(function (told) { told(true); });
    delete waiting[n];
  };
  // Latents lie many to a file. Where the file is missing, `then` is told so with null.
  function latent(i, then) {
    var n = Math.floor(i / A.perShard);
    function give(there) { then(there ? files[n][i - n * A.perShard] : null); }
    if (files[n]) return give(true);
    if (waiting[n]) return waiting[n].push(give);
    waiting[n] = [give];
    var script = document.createElement("script");
    script.src = at + "latents/" + ("00" + n).slice(-Math.max(3, String(n).length)) + ".js";
    script.onerror = function () {
      var told = waiting[n] || [];
      delete waiting[n];
      script.remove();
      told.forEach(function (one) { one(false); });
    };
    script.onload = function () { script.remove(); };
    document.head.appendChild(script);
  }

  function sheet(picture) {
    var n = Math.floor(picture / (A.sheets.across * A.sheets.down));
    if (!sheets[n]) {
      sheets[n] = new Image();
      sheets[n].onerror = function () { delete sheets[n]; };
      sheets[n].src = at + A.sheets.folder + A.sheets.files[n];
    }
    return sheets[n];
  }
  // Read all that it will show, before it is asked to be shown.
  function prepare(i) {
    latent(i, function (record) {
      if (record && A.sheets.files.length) record[AT.references].forEach(function (one) { sheet(one[REF.picture]); });
    });
  }
  function grid(reference) {
    var text = atob(reference[REF.grid]), found = new Float32Array(reference[REF.rows] * reference[REF.columns]);
    for (var i = 0, wide = A.gridBytes; i < text.length; i += wide) {
      var patch = text.charCodeAt(i);
      if (wide === 3) patch = patch * 256 + text.charCodeAt(i + 1);
      found[patch] = text.charCodeAt(i + wide - 1) / 255;
    }
    return found;
  }
  function digits(value) { return Number(value.toPrecision(3)).toString().replace("-", "−"); }
  // A small picture, under a veil wherever the latent is less active than the threshold.
  function thumb(picture, reference, side) {
    var canvas = document.createElement("canvas"), values = reference ? grid(reference) : null;
    var columns = reference ? reference[REF.columns] : 1, rows = reference ? reference[REF.rows] : 1;
    var width = Math.round(2 * side * Math.min(1, columns / rows)), height = Math.round(2 * side * Math.min(1, rows / columns));
    canvas.className = "thumb";
    canvas.width = width; canvas.height = height;
    canvas.paint = function () {
      var image = sheet(picture), ink = canvas.getContext("2d"), colours = window.VSP_COLOURS[dark.matches ? "dark" : "light"];
      if (!image.complete || !image.naturalWidth) {
        if (!image.complete) image.addEventListener("load", canvas.paint, { once: true });
        ink.fillStyle = colours.wash; ink.fillRect(0, 0, width, height);
      } else {
        var cell = picture % (A.sheets.across * A.sheets.down), px = A.sheets.cell;
        ink.imageSmoothingQuality = "high";
        ink.drawImage(image, cell % A.sheets.across * px, Math.floor(cell / A.sheets.across) * px, px, px, 0, 0, width, height);
        canvas.dataset.drawn = "";
      }
      if (!values || !masks.on) return;
      ink.fillStyle = colours.paper; ink.globalAlpha = VEIL;
      for (var p = 0; p < values.length; p++) {
        if (values[p] >= masks.threshold && values[p] > 0) continue;
        var x0 = Math.round(p % columns * width / columns), x1 = Math.round((p % columns + 1) * width / columns);
        var y0 = Math.round(Math.floor(p / columns) * height / rows), y1 = Math.round((Math.floor(p / columns) + 1) * height / rows);
        ink.fillRect(x0, y0, x1 - x0, y1 - y0);
      }
      ink.globalAlpha = 1;
    };
    canvas.paint();
    if (reference) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", A.prefix + reference[REF.name] + ", activation " + digits(reference[REF.strength]));
    } else canvas.setAttribute("aria-hidden", "true");
    return canvas;
  }
  return { AT: AT, REF: REF, latent: latent, prepare: prepare, thumb: thumb };
};
