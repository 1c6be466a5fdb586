/* Panel: try something else on a case, and see the model answer. One module for three hosts: a Jupyter notebook, a page
   beside a kernel, and a page alone that plays back what was recorded. It has the form that anywidget asks for,
   `render({ model, el })`; a page loads it as a classic script, because one that was opened from a folder runs no other.

   What a host gives is a model with `get`, `on`, `off` and `send`; `spec` says what there is. A round is one message,
   `{type: "run", seq, prompt, edits, mode, look, controls}`, and comes back as events: `queued`, `started`, `token`…,
   `answered`, `odds`, `looked`, `controls`, `done`; or `cancelled`, `failed`, `not-recorded`. Events of an older seq are
   not listened to. Every text is set as text: nothing that a model or a case says becomes markup.

   A page also gives an `address`, from which a state is read and to which it is written. A notebook's address is its
   host's, and is left alone: there a state is copied as the command that opens it. Latents are handed over by the event
   "vsp:latents" on the document, {latents, name, strength}; "vsp:edited" on the panel tells which ones are edited. */
// @ts-check
(function (root) {
  "use strict";

  /**
   * @typedef {{box?: number[], boxes?: number[][]}} Where
   * @typedef {{top: number, by: string, supports?: string, where?: Where}} Ranked
   * @typedef {number[] | "all" | Ranked | {but: number[]}} Latents
   * @typedef {"set" | "scale" | "add"} Op
   * @typedef {{latents: Latents, op: Op, value: number, where: Where | null, name: string}} Row
   * @typedef {{latents: Latents, set?: number, scale?: number, add?: number, where?: Where}} Edit  as a case writes it
   * @typedef {{top: (number | null)[], bytes: string}} Packed
   * @typedef {[text: string, logProb: number | null]} Piece
   * @typedef {{tokens: [text: string, kind: string][], attention: Packed, latents: number[], maps: Packed}} Looked
   * @typedef {{p_right: number | null, p_wrong: number | null}} Odds
   * @typedef {{text: string, ended: boolean, margin: number | null, change: number | null, tokens: Piece[],
   *   classes?: [name: string, p: number][]} & Partial<Odds>} Answered
   * @typedef {{changes: number[], p: number | null, flips: number | null, why?: string}} Controls
   * @typedef {{number: number, label: string, total: number, predicted: number | null}} Offered
   * @typedef {{name: string, about: string, latents: number[]}} Group
   * @typedef {{name: string, mode: string, edits: Edit[]}} Steering
   * @typedef {{label: string, prompt: string, mode: string, edits: Edit[]}} Recorded
   * @typedef {{case: {id: string, prompt: string, contrast: [right: string, wrong: string] | null}, model: string,
   *   active_bits?: string, d_sae?: number, picture: {src: string, width: number, height: number, alt: string}, boxes: (number[] | null)[], latents: Offered[],
   *   groups: Group[], steerings: Steering[], clean: Answered | null, looked?: Looked, recorded?: Recorded[],
   *   live: boolean, can: {upload?: boolean, controls?: boolean, save?: boolean}}} Spec
   *
   * @typedef {{type: "queued", ahead: number} | {type: "started"} | {type: "token", text: string, log_prob: number | null}
   *   | ({type: "answered"} & Answered) | ({type: "odds"} & Odds) | ({type: "looked"} & Looked)
   *   | ({type: "controls"} & Controls) | {type: "done", ms?: number} | {type: "cancelled"}
   *   | {type: "failed", message: string, anew?: boolean} | {type: "not-recorded", command: string}
   *   | {type: "saved", name: string, text: string, file: string | null, picture: string | null}} Told
   * @typedef {Told & {seq: number, source?: string}} Event
   * @typedef {{kind: "starting" | "ready" | "lost", message: string}} State
   * @typedef {(told: any) => void} Hear  of whatever a host tells
   * @typedef {{get: (key: string) => any, on: (event: string, hear: Hear) => void, off: (event: string, hear: Hear) => void,
   *   send: (content: object) => void, restart?: (anew: boolean) => void, widget_manager?: any}} Model
   * @typedef {{read: () => URLSearchParams, write: (state: string) => string,
   *   watch?: (moved: () => void) => () => void}} Address  `write` gives the whole link
   * @typedef {{latents: number[], name?: string, strength?: number}} Handed
   * @typedef {{prompt: string, rows: Row[], mode: string, tokens: Piece[], answered: Answered | null, odds: Odds | null,
   *   looked: Looked | null, controls: Controls | null, source: string, ended: string}} Round
   */

  /** @type {Op[]} */
  var OPS = ["set", "scale", "add"];
  var DEAF_MS = 8000;
  var SILENT_MS = 20000;
  var SLOW_MS = 30000;
  var MOST_ROWS = 32;
  var RERUN = "Run the cells of this notebook again.";

  // --- small things --------------------------------------------------------------------------------------------------

  /**
   * @template {keyof HTMLElementTagNameMap} T
   * @param {T} tag @param {Record<string, any>} has @param {(Node | string | number | null | undefined)[]} inside
   * @returns {HTMLElementTagNameMap[T]}
   */
  function h(tag, has, ...inside) {
    var made = document.createElement(tag);
    Object.entries(has).forEach(function (pair) {
      var key = pair[0], value = pair[1];
      if (key.slice(0, 2) === "on") made.addEventListener(key.slice(2), value);
      else if (key in made && key !== "list") Object.assign(made, { [key]: value });
      else made.setAttribute(key, String(value));
    });
    inside.forEach(function (part) {
      if (part !== null && part !== undefined) made.append(part instanceof Node ? part : String(part));
    });
    return made;
  }
  /** @param {string} tag @param {Record<string, any>} has */
  function s(tag, has) {
    var made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(has).forEach(function (pair) { made.setAttribute(pair[0], String(pair[1])); });
    return made;
  }
  /** @param {number | null | undefined} value */
  function signed(value) {
    if (value === null || value === undefined) return "–";
    var text = Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2);
    return (value > 0 ? "+" : "") + text.replace("-", "−");
  }
  /** @param {number | null | undefined} p */
  function share(p) {
    if (p === null || p === undefined) return "–";
    if (p > 0 && p < 0.001) return "< 0.1 %";
    return (p < 0.1 && p > 0 ? (100 * p).toFixed(1) : Math.round(100 * p)) + " %";
  }
  /** @param {Packed} packed @returns {Float64Array[]} */
  function unpacked(packed) {
    var text = atob(packed.bytes), width = packed.top.length ? text.length / packed.top.length : 0;
    return packed.top.map(function (top, row) {
      var values = new Float64Array(width);
      for (var i = 0; i < width; i++) values[i] = ((text.charCodeAt(row * width + i) << 24) >> 24) / 127 * (top || 0);
      return values;
    });
  }
  /** Numbers separated by anything. @param {string} text */
  function numbers(text) {
    return (text.match(/\d+(\.\d+)?/g) || []).map(Number);
  }
  /** @param {object} value */
  function packedLink(value) {
    var bytes = new TextEncoder().encode(JSON.stringify(value)), text = "";
    bytes.forEach(function (byte) { text += String.fromCharCode(byte); });
    return btoa(text).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  }
  /** What a link says, which may be anything. @param {string} text @returns {any} */
  function unpackedLink(text) {
    try {
      var raw = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
      return JSON.parse(new TextDecoder().decode(Uint8Array.from(raw, function (c) { return c.charCodeAt(0); })));
    } catch (error) { return null; }
  }

  // --- what is edited, in words and for the host ---------------------------------------------------------------------

  /** @param {Latents} latents */
  function named(latents) {
    if (latents === "all") return "all latents";
    if (Array.isArray(latents)) {
      return (latents.length === 1 ? "latent " : latents.length + " latents: ") + latents.slice(0, 6).join(", ") +
        (latents.length > 6 ? ", …" : "");
    }
    if ("but" in latents) return "all active but " + latents.but.slice(0, 6).join(", ") + (latents.but.length > 6 ? ", …" : "");
    return "top " + latents.top + " by " + latents.by + (latents.supports ? " for the " + latents.supports + " answer" : "") +
      (latents.where ? " in the region" : "");
  }
  /** @param {Row} row */
  function does(row) {
    if (row.op === "set") return row.value === 0 ? "ablate" : "set to " + row.value;
    return row.op === "scale" ? "times " + row.value : (row.value < 0 ? "subtract " : "add ") + Math.abs(row.value);
  }
  /** As a case writes it. @param {Row} row @returns {Edit} */
  function written(row) {
    /** @type {Edit} */
    var edit = { latents: row.latents };
    edit[row.op] = row.value;
    if (row.where) edit.where = row.where;
    return edit;
  }
  /** @param {Edit} edit @returns {Row | null} */
  function readEdit(edit) {
    var op = OPS.find(function (one) { return typeof edit[one] === "number" && isFinite(edit[one]); });
    if (!op || !(edit.latents === "all" || (edit.latents && typeof edit.latents === "object"))) return null;
    return { latents: edit.latents, op: op, value: Number(edit[op]), where: edit.where || null, name: named(edit.latents) };
  }
  /** @param {Row[]} rows */
  function inWords(rows) {
    return rows.length ? rows.map(function (row) { return does(row) + " " + row.name; }).join("; ") : "nothing edited";
  }

  // --- the panel -----------------------------------------------------------------------------------------------------

  /** @param {{model: Model, el: HTMLElement, address?: Address}} given @returns {() => void} */
  function render(given) {
    var model = given.model, el = given.el, address = given.address;
    var seq = 0, busy = false, anew = false, silent = 0, slow = 0;
    // `shut` until another case is open; `gone` when the kernel of a notebook is.
    var shut = false, gone = false, own = false, left = "";
    /** @type {Handed[]} */
    var pending = [];
    /** @type {Uint8Array | null} */
    var active = null;
    // There is none until the first one comes, and nothing can be pressed until then.
    var spec = /** @type {Spec} */ (/** @type {unknown} */ (null));
    /** @type {Row[]} */
    var rows = [];
    var mode = "delta";
    /** @type {Round[]} */
    var history = [];
    var at = -1;
    /** @type {Round | null} */
    var running = null;
    /** @type {{what: "token" | "latent", place: number} | null} */
    var over = null;
    /** @type {number[] | null} */
    var region = null;
    var drawing = false;

    // -- what is there ------------------------------------------------------------------------------

    var status = h("p", { className: "vsp-status", role: "status", "aria-live": "polite" });
    var again = h("button", { type: "button", className: "vsp-again", hidden: true, onclick: recover }, "Start again");
    var source = h("span", { className: "vsp-source" });
    var picture = h("img", { alt: "" });
    var canvas = h("canvas", { "aria-hidden": "true" });
    var frame = h("div", { className: "vsp-frame", hidden: true });
    var stage = h("div", { className: "vsp-stage" }, picture, canvas, frame);
    var caption = h("p", { className: "vsp-hint" });
    var words = h("p", { className: "vsp-words", role: "group", "aria-label": "Words: choose one to see where it looked" });
    var bars = h("ol", { className: "vsp-bars" });
    var regionButton = h("button", { type: "button", "aria-pressed": "false", onclick: toggleDrawing }, "Draw a region");
    var regionField = h("input", { type: "text", size: 18, placeholder: "x0 y0 x1 y1", "aria-label": "Region in pixels: x0 y0 x1 y1",
      onchange: function () { setRegion(numbers(regionField.value)); } });
    var upload = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp,image/gif,image/bmp", hidden: true, onchange: sendPicture });
    var uploadButton = h("button", { type: "button", onclick: function () { upload.click(); } }, "Another picture …");
    var prompt = h("textarea", { rows: 2, maxLength: 2000, "aria-label": "Question" });
    var list = h("ol", { className: "vsp-rows", "aria-label": "What is edited" });
    var preset = h("select", { "aria-label": "Add latents", onchange: addPreset });
    var byNumber = h("input", { type: "text", inputMode: "numeric", placeholder: "numbers", size: 10, "aria-label": "Latents by number",
      onkeydown: /** @param {KeyboardEvent} event */ function (event) { if (event.key === "Enter") { event.preventDefault(); addNumbers(); } } });
    var allButButton = h("button", { type: "button", title: "Ablate every active latent but those listed", onclick: allBut }, "Ablate all but these");
    var compare = h("input", { type: "checkbox" });
    var askButton = h("button", { type: "submit", className: "vsp-ask" }, "Ask");
    var cancelButton = h("button", { type: "button", className: "vsp-cancel", disabled: true, onclick: cancel }, "Cancel");
    var answer = h("div", { className: "vsp-answer", "aria-live": "polite" });
    var margin = h("div", { className: "vsp-margin" });
    var compared = h("div", { className: "vsp-compared" });
    var rounds = h("ol", { className: "vsp-rounds" });
    var back = h("button", { type: "button", "aria-label": "The round before", onclick: function () { step(-1); } }, "←");
    var forth = h("button", { type: "button", "aria-label": "The round after", onclick: function () { step(1); } }, "→");
    var past = h("section", { className: "vsp-past", hidden: true, "aria-label": "Rounds" },
      h("div", { className: "vsp-line" }, h("b", {}, "Rounds"), back, forth), rounds);
    var name = h("input", { type: "text", placeholder: "name-of-the-case", size: 18, "aria-label": "Name of the case" });
    var title = h("input", { type: "text", placeholder: "Title", size: 22, "aria-label": "Title of the case" });
    var saveText = h("button", { type: "button", onclick: function () { save("text"); } }, "Download");
    var saveFile = h("button", { type: "button", onclick: function () { save("cases"); } }, "Into cases/");
    var saving = h("details", { className: "vsp-save", hidden: true }, h("summary", {}, "Save as a case"),
      h("div", { className: "vsp-line" }, name, title, saveText, saveFile));
    var link = h("button", { type: "button", onclick: copyLink }, address ? "Copy a link to this" : "Copy a command for this");
    if (!address) link.title = "It opens this case in a browser, beside a kernel, as it is set here";
    var offered = h("div", { className: "vsp-recorded", hidden: true });
    var question = h("label", { className: "vsp-label" }, "Question", prompt);
    var comparing = h("label", { className: "vsp-check" }, compare, " compare with controls");
    var form = h("form", { className: "vsp-form", onsubmit: /** @param {SubmitEvent} event */ function (event) { event.preventDefault(); ask(); } },
      question,
      h("div", { className: "vsp-label" }, "Edits", list),
      offered,
      h("div", { className: "vsp-line" }, preset, byNumber,
        h("button", { type: "button", onclick: addNumbers }, "Add"),
        allButButton),
      h("div", { className: "vsp-line" }, askButton, cancelButton, comparing, source));
    var see = h("div", { className: "vsp-see" }, stage, caption, words, bars,
      h("div", { className: "vsp-line vsp-tools" }, regionButton, regionField, uploadButton, upload));
    var linking = h("div", { className: "vsp-line" }, link);
    el.classList.add("vsp-panel");
    el.replaceChildren(
      h("div", { className: "vsp-grid" }, see,
        h("div", { className: "vsp-do" }, form, h("div", { className: "vsp-line" }, status, again), answer, margin, compared, past,
          saving, linking)));

    // -- the spec -----------------------------------------------------------------------------------

    function take() {
      var found = /** @type {Spec | null} */ (model.get("spec"));
      if (!found || !found.case) {
        shut = Boolean(spec);
        said();
        lock();
        return;
      }
      var other = !spec || spec.picture.src !== found.picture.src || spec.live !== found.live;
      var first = !spec, elsewhere = Boolean(spec) && spec.case.id !== found.case.id;
      shut = false;
      spec = found;
      active = bits(spec.active_bits);
      if (elsewhere) leaveCase();
      picture.src = spec.picture.src;
      picture.alt = spec.picture.alt || "The picture";
      if (first || !prompt.value) prompt.value = spec.case.prompt;
      prompt.disabled = !spec.live && !(spec.recorded || []).some(function (one) { return one.prompt !== spec.case.prompt; });
      question.hidden = !spec.case.prompt;
      uploadButton.hidden = !(spec.can && spec.can.upload);
      regionButton.hidden = regionField.hidden = allButButton.hidden = !spec.live;
      comparing.hidden = !(spec.can && spec.can.controls);
      saving.hidden = !spec.live;
      saveFile.hidden = !(spec.can && spec.can.save);
      fillPreset();
      fillRecorded();
      if (first) restore();
      pending.splice(0).forEach(handed);
      showRows();
      if (other || !history.length) showRound(at >= 0 ? history[at] : cleanRound());
      said();
      lock();
    }
    /** Another case: latents stay to be tried on it; what belonged to the picture before does not. */
    function leaveCase() {
      var held = rows.filter(function (row) { return !row.where && !(typeof row.latents === "object" && "where" in row.latents && row.latents.where); });
      left = held.length < rows.length ? "Ready. Edits in a region belonged to the picture before, and are left out." : "";
      rows = held;
      history = [];
      at = -1;
      own = false;
      prompt.value = spec.case.prompt;
      compared.replaceChildren();
      showPast();
      setRegion([]);
    }
    /** Whether each latent is active in the picture, where the host says so. @param {string | undefined} text */
    function bits(text) {
      return text ? Uint8Array.from(atob(text), function (c) { return c.charCodeAt(0); }) : null;
    }
    /** @param {number} k */
    function isSilent(k) {
      return Boolean(active && spec && k < (spec.d_sae || 0) && !((active[k >> 3] >> (k & 7)) & 1));
    }
    /** What an edit cannot do: there is nothing to scale where nothing is. @param {Row} row */
    function unmoved(row) {
      if (!Array.isArray(row.latents)) return "";
      var quiet = row.latents.filter(isSilent).length, every = quiet === row.latents.length;
      if (!quiet) return "";
      var does = row.op === "scale" ? "scaling" : row.op === "set" && row.value === 0 ? "ablating" : "";
      var remedy = row.op === "scale" ? "set or add" : "set to another value, or add";
      if (!every) return quiet + " of " + row.latents.length + " are not active in this picture" + (does ? ": " + does + " those does nothing." : ".");
      return (quiet === 1 ? "not active in this picture" : "none is active in this picture") + (does ? ": " + does + " does nothing, " + remedy + "." : ".");
    }

    /** @returns {Round} */
    function cleanRound() {
      return { prompt: spec.case.prompt, rows: [], mode: "delta", tokens: spec.clean ? spec.clean.tokens : [], answered: spec.clean,
        odds: null, looked: spec.looked || null, controls: null, source: "", ended: "done" };
    }

    function fillPreset() {
      preset.replaceChildren(h("option", { value: "" }, "Add latents …"));
      /** @param {string} label @param {{value: string, text: string}[]} options */
      function group(label, options) {
        if (!options.length) return;
        var made = h("optgroup", { label: label });
        options.forEach(function (one) { made.append(h("option", { value: one.value }, one.text)); });
        preset.append(made);
      }
      group("As in this case", (spec.steerings || []).map(function (one, i) { return { value: "steering " + i, text: one.name }; }));
      if (spec.live) {
        var ranked = [{ value: "top activation", text: "the ten most active" }];
        if (spec.case.contrast) {
          ranked.unshift({ value: "top wrong", text: "ten that speak for “" + spec.case.contrast[1] + "”" },
            { value: "top right", text: "ten that speak for “" + spec.case.contrast[0] + "”" });
        }
        group("Found anew", ranked);
        group("In the region", region ? [{ value: "region activation", text: "the ten most active there" }].concat(
          spec.case.contrast ? [{ value: "region wrong", text: "ten there that speak for “" + spec.case.contrast[1] + "”" },
            { value: "region right", text: "ten there that speak for “" + spec.case.contrast[0] + "”" }] : []).concat(
          [{ value: "region all", text: "all latents, there only" }]) : []);
      }
      group("Clusters of the heatmap", (spec.groups || []).map(function (one, i) {
        return { value: "group " + i, text: one.name + " (" + one.latents.length + ") " + (one.about || "") };
      }));
      group("Latents", (spec.latents || []).map(function (one) {
        return { value: "latent " + one.number, text: one.number + " " + one.label +
          (one.predicted === null || one.predicted === undefined ? "" : " (" + signed(one.predicted) + " if ablated)") };
      }));
    }

    function fillRecorded() {
      var recorded = spec.live ? [] : spec.recorded || [];
      offered.hidden = !recorded.length;
      offered.replaceChildren(h("span", { className: "vsp-hint" }, "Recorded: "));
      recorded.forEach(function (one) {
        offered.append(h("button", { type: "button", className: "vsp-chip", onclick: function () {
          set(one.prompt, one.edits, one.mode, one.label);
          ask();
        } }, one.label));
      });
    }

    // -- rows ---------------------------------------------------------------------------------------

    function addPreset() {
      var parts = preset.value.split(" "), kind = parts[0], what = parts[1];
      preset.value = "";
      if (kind === "steering") {
        var one = spec.steerings[Number(what)];
        set(prompt.value, one.edits, one.mode, one.name);
      } else if (kind === "group") {
        var group = spec.groups[Number(what)];
        add(group.latents.slice(), group.name);
      } else if (kind === "latent") add([Number(what)]);
      else if (kind === "top" || kind === "region") {
        /** @type {Ranked} */
        var ranked = { top: 10, by: what === "activation" ? "activation" : "attribution" };
        if (what === "wrong" || what === "right") ranked.supports = what;
        if (kind === "region" && region) {
          if (what === "all") return add("all", "all latents in the region", { box: region });
          ranked.where = { box: region };
        }
        add(ranked);
      }
    }
    function addNumbers() {
      var found = Array.from(new Set(numbers(byNumber.value).filter(Number.isInteger)));
      if (!found.length) return say("Write numbers of latents, such as 12, 405.");
      byNumber.value = "";
      add(found);
    }
    function allBut() {
      var kept = new Set(numbers(byNumber.value).filter(Number.isInteger));
      rows.forEach(function (row) { if (Array.isArray(row.latents)) row.latents.forEach(function (k) { kept.add(k); }); });
      if (!kept.size) return say("Name the latents to keep: list them, or write their numbers.");
      byNumber.value = "";
      rows = [];
      add({ but: Array.from(kept) });
    }
    /** @param {Latents} latents @param {string} [called] @param {Where | null} [where] @param {number} [value] */
    function add(latents, called, where, value) {
      if (rows.length >= MOST_ROWS) return say("There are " + MOST_ROWS + " edits already. Take some away, or add latents as a group.", true);
      rows.push({ latents: latents, op: "set", value: value || 0, where: where || null, name: called || named(latents) });
      showRows();
    }
    /** @param {string} asked @param {Edit[]} edits @param {string} [how] @param {string} [called] */
    function set(asked, edits, how, called) {
      prompt.value = asked;
      mode = how === "reconstruct" ? "reconstruct" : "delta";
      rows = edits.flatMap(function (edit) { return readEdit(edit) || []; });
      if (called && edits.length === 1 && rows.length) rows[0].name = called;
      showRows();
    }
    function showRows() {
      var edited = rows.concat(/** @type {any} */ (pending)).flatMap(function (row) { return Array.isArray(row.latents) ? row.latents : []; });
      el.dispatchEvent(new CustomEvent("vsp:edited", { detail: { latents: Array.from(new Set(edited)) }, bubbles: true }));
      list.replaceChildren();
      if (!rows.length) list.append(h("li", { className: "vsp-hint" }, "Nothing: the model as it is."));
      rows.forEach(function (row, i) {
        var number = h("input", { type: "number", step: "any", value: row.value, "aria-label": "Value for " + row.name });
        var slider = h("input", { type: "range", min: row.op === "scale" ? -2 : -20, max: row.op === "scale" ? 6 : 20, step: 0.5, value: row.value,
          "aria-label": "Strength for " + row.name });
        var op = h("select", { "aria-label": "What is done to " + row.name });
        OPS.forEach(function (one) { op.append(h("option", { value: one, selected: one === row.op }, { set: "set to", scale: "times", add: "add" }[one])); });
        op.value = row.op;
        op.addEventListener("change", function () {
          row.op = /** @type {Op} */ (op.value);
          row.value = row.op === "scale" ? 2 : row.op === "add" ? 5 : 0;
          showRows();
        });
        /** @param {string} text */
        function value(text) {
          var read = Number(text);
          row.value = text.trim() !== "" && isFinite(read) ? read : 0;
          note.textContent = unmoved(row);
        }
        var note = h("span", { className: "vsp-note", role: "note" }, unmoved(row));
        slider.addEventListener("input", function () { value(slider.value); number.value = slider.value; });
        number.addEventListener("input", function () { value(number.value); slider.value = number.value; });
        var only = h("button", { type: "button", className: "vsp-small", hidden: !region && !row.where,
          "aria-pressed": String(Boolean(row.where)), title: "Edit only in the region that is drawn", onclick: function () {
            row.where = row.where || !region ? null : { box: region };
            showRows();
          } }, row.where ? "in the region" : "everywhere");
        list.append(h("li", {}, h("span", { className: "vsp-name", title: Array.isArray(row.latents) ? row.latents.join(", ") : "" }, row.name),
          op, slider, number, only,
          h("button", { type: "button", className: "vsp-small", "aria-label": "Leave " + row.name + " alone", onclick: function () {
            rows.splice(i, 1);
            showRows();
          } }, "×"), note));
      });
    }

    // -- a region -----------------------------------------------------------------------------------

    function toggleDrawing() {
      drawing = !drawing;
      regionButton.setAttribute("aria-pressed", String(drawing));
      stage.classList.toggle("vsp-drawing", drawing);
      if (drawing) say("Draw on the picture, or write the region as x0 y0 x1 y1.");
    }
    /** @param {number[]} box */
    function setRegion(box) {
      var w = spec.picture.width, t = spec.picture.height;
      if (box.length === 4) {
        box = [Math.min(box[0], box[2]), Math.min(box[1], box[3]), Math.max(box[0], box[2]), Math.max(box[1], box[3])]
          .map(function (v, i) { return Math.round(Math.max(0, Math.min(i % 2 ? t : w, v))); });
      }
      region = box.length === 4 && box[2] > box[0] && box[3] > box[1] ? box : null;
      regionField.value = region ? region.join(" ") : "";
      frame.hidden = !region;
      if (region) {
        Object.assign(frame.style, { left: 100 * region[0] / w + "%", top: 100 * region[1] / t + "%",
          width: 100 * (region[2] - region[0]) / w + "%", height: 100 * (region[3] - region[1]) / t + "%" });
      }
      fillPreset();
      showRows();
    }
    /** @param {PointerEvent} event */
    function place(event) {
      var box = stage.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * spec.picture.width, (event.clientY - box.top) / box.height * spec.picture.height];
    }
    /** @type {number[] | null} */
    var from = null;
    stage.addEventListener("pointerdown", function (event) {
      if (!drawing || !spec) return;
      from = place(event);
      stage.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    stage.addEventListener("pointermove", function (event) { if (from) setRegion(from.concat(place(event))); });
    stage.addEventListener("pointerup", function (event) {
      if (!from) return;
      setRegion(from.concat(place(event)));
      from = null;
      toggleDrawing();
      if (region) say("The region can be chosen from “Add latents …”, and edits can be held to it.");
    });

    // -- asking -------------------------------------------------------------------------------------

    function request() {
      return { type: "run", seq: seq, prompt: prompt.value.trim() || spec.case.prompt, edits: rows.map(written), mode: mode, look: true,
        controls: compare.checked && rows.length ? 100 : 0 };
    }
    function ask() {
      if (closed() || busy) return;
      seq += 1;
      busy = true;
      left = "";
      running = { prompt: prompt.value.trim() || spec.case.prompt, rows: rows.map(function (row) { return Object.assign({}, row); }), mode: mode,
        tokens: [], answered: null, odds: null, looked: null, controls: null, source: "", ended: "" };
      answer.replaceChildren();
      compared.replaceChildren();
      say("Asked.");
      lock();
      listen(false);
      model.send(request());
    }
    function cancel() {
      if (busy) { say("Cancelling …"); model.send({ type: "cancel", seq: seq }); }
    }
    /** Until the next word. A model may think for long, but whether it was heard is said at once. @param {boolean} heard */
    function listen(heard) {
      clearTimeout(silent);
      silent = window.setTimeout(function () {
        if (!heard) return fail("Nothing answers. " + (model.restart ? "Start again." : RERUN), true);
        say("Nothing was heard for " + SILENT_MS / 1000 + " s. The model may be at work, this machine may have slept, or the kernel is gone: wait, or start again.", true);
        again.hidden = false;
      }, heard ? SILENT_MS : DEAF_MS);
    }
    /** What runs is given up; what was found is kept. */
    function recover() {
      var empty = anew;
      if (busy) model.send({ type: "cancel", seq: seq });
      fail("Given up. If nothing answers, run the cells of this notebook again.");
      if (model.restart) {
        say("Starting again …");
        model.restart(empty);
      }
    }
    /** @param {string} message @param {boolean} [lost] */
    function fail(message, lost) {
      busy = uploading = anew = false;
      running = null;
      clearTimeout(silent);
      if (spec) showRound(at >= 0 ? history[at] : cleanRound());
      say(message, true);
      again.hidden = !(lost && model.restart);
      lock();
    }
    function closed() { return !spec || shut || gone; }
    function lock() {
      askButton.disabled = busy || closed();
      cancelButton.disabled = !busy;
      see.hidden = form.hidden = linking.hidden = !spec;
      el.classList.toggle("vsp-shut", shut);
      el.classList.toggle("vsp-busy", busy);
    }
    /** @param {string} message @param {boolean} [bad] */
    function say(message, bad) {
      status.textContent = message;
      status.classList.toggle("vsp-bad", Boolean(bad));
    }
    function said() {
      var state = /** @type {State | undefined} */ (model.get("state"));
      clearTimeout(slow);
      if (state && state.kind === "lost") return fail(state.message, true);
      if (state && state.kind === "starting") {
        say(state.message);
        slow = window.setTimeout(function () {
          say("The kernel is still starting. A large model takes its time: wait, or start again.");
          again.hidden = !model.restart;
        }, SLOW_MS);
        return;
      }
      if (gone) return;
      again.hidden = true;
      if (!spec) return say("The model is being loaded …");
      source.textContent = spec.live ? "live, on " + spec.model : "recorded";
      if (!busy) say(spec.live ? left || "Ready." : "Plays back what was recorded.");
    }

    /** @param {Event} event */
    function hear(event) {
      if (!event || event.seq !== seq || !running) return saved(event);
      var round = running;
      round.source = event.source || "kernel";
      if (!again.hidden) say("It goes on.");
      again.hidden = true;
      listen(true);
      switch (event.type) {
        case "queued": say(event.ahead ? "Waiting: " + event.ahead + " before this." : "Asked."); break;
        case "started": say("The model is asked …"); break;
        case "token":
          round.tokens.push([event.text, event.log_prob]);
          showAnswer(round, true);
          break;
        case "answered":
          round.answered = event;
          round.tokens = event.tokens;
          showAnswer(round, false);
          showMargin(round);
          break;
        case "odds": round.odds = event; showMargin(round); break;
        case "looked": round.looked = event; showLook(round); break;
        case "controls": round.controls = event; showControls(round); break;
        case "done":
          round.ended = "done";
          finish(round, event.ms === undefined ? "As recorded." : "Answered in " + (event.ms / 1000).toFixed(1) + " s.");
          break;
        case "cancelled":
          round.ended = "cancelled";
          if (round.answered || round.tokens.length) finish(round, "Cancelled.");
          else fail("Cancelled.");
          break;
        case "failed": fail(event.message, event.anew); anew = Boolean(event.anew); break;
        case "not-recorded":
          fail("This was not recorded, and nothing is made up. A kernel answers it: ");
          status.append(h("code", {}, event.command));
          break;
      }
    }
    /** @param {Round} round @param {string} message */
    function finish(round, message) {
      busy = anew = false;
      running = null;
      again.hidden = true;
      clearTimeout(silent);
      history.push(round);
      at = history.length - 1;
      showPast();
      showRound(round);
      say(message);
      lock();
    }

    // -- showing ------------------------------------------------------------------------------------

    /** @param {Round} round */
    function showRound(round) {
      showAnswer(round, false);
      showMargin(round);
      showLook(round);
      showControls(round);
    }
    /** @param {string} text */
    function side(text) {
      if (!spec.case.contrast) return "";
      var said = text.trim().toLowerCase();
      return said === spec.case.contrast[0].toLowerCase() ? "right" : said === spec.case.contrast[1].toLowerCase() ? "wrong" : "";
    }
    /** @param {Round} round @param {boolean} open */
    function showAnswer(round, open) {
      var line = h("p", { className: "vsp-said " + (round.answered ? side(round.answered.text) : "") });
      round.tokens.forEach(function (token) {
        var p = token[1] === null || token[1] === undefined ? null : Math.exp(token[1]);
        var piece = h("span", { className: "vsp-token", title: p === null ? "" : "probability " + share(p) }, token[0]);
        if (p !== null) piece.append(h("small", {}, share(p)));
        line.append(piece);
      });
      if (!round.tokens.length && round.answered) line.append(round.answered.text || "(nothing)");
      if (open) line.append(h("span", { className: "vsp-cursor", "aria-hidden": "true" }, "▍"));
      else if (round.answered && !round.answered.ended) line.append(" …");
      answer.replaceChildren(h("p", { className: "vsp-hint" }, inWords(round.rows) + (round.prompt !== spec.case.prompt ? " · “" + round.prompt + "”" : "")), line);
      if (round.answered && round.answered.classes && round.answered.classes.length) {
        var chosen = round.answered.classes.slice().sort(function (a, b) { return b[1] - a[1]; }).slice(0, 6);
        answer.append(h("p", { className: "vsp-hint" }, chosen.map(function (one) { return one[0] + " " + share(one[1]); }).join(", ")));
      }
    }
    /** @param {Round} round */
    function showMargin(round) {
      margin.replaceChildren();
      var was = spec.clean ? spec.clean.margin : null, is = round.answered ? round.answered.margin : null;
      if (!spec.case.contrast || is === null || is === undefined) return;
      var from = " as it is, ";
      if (round.prompt !== spec.case.prompt && round.answered && round.answered.change !== null) {
        was = is - round.answered.change;
        if (round.mode === "reconstruct") from = " reconstructed, ";
      }
      var scale = Math.max(Math.abs(was || 0), Math.abs(is), 1) * 1.1;
      var svg = s("svg", { viewBox: "-100 0 200 26", class: "vsp-bar", role: "img", preserveAspectRatio: "none" });
      /** @param {number | null} value @param {number} y @param {string} kind */
      function bar(value, y, kind) {
        if (value === null) return;
        var length = 100 * value / scale;
        svg.append(s("rect", { x: Math.min(0, length), y: y, width: Math.abs(length), height: 10, class: kind }));
      }
      bar(was, 1, "vsp-before");
      bar(is, 14, is > 0 ? "vsp-right" : "vsp-wrong");
      svg.append(s("path", { d: "M0 0V26", class: "vsp-zero" }));
      var pair = spec.case.contrast;
      var text = "Log-odds of “" + pair[0] + "” against “" + pair[1] + "”: " + (was === null ? "" : signed(was) + from) + signed(is) + " now";
      var odds = round.odds || (round.answered && round.answered.p_right !== undefined ? round.answered : null);
      if (odds && odds.p_right !== null) text += "; “" + pair[0] + "” " + share(odds.p_right) + ", “" + pair[1] + "” " + share(odds.p_wrong);
      svg.setAttribute("aria-label", text);
      margin.append(svg, h("p", { className: "vsp-hint" }, text + "."));
    }
    /** @param {Round} round */
    function showControls(round) {
      compared.replaceChildren();
      var found = round.controls;
      if (!found || !round.answered) return;
      if (!found.changes.length) {
        // Without a contrast there are no log-odds to move: it was looked whether controls are answered in other words.
        var worded = found.flips === null ? "No controls could be drawn." : "Of matched sets of other latents, " + share(found.flips) + " change the answer.";
        compared.append(h("p", { className: "vsp-hint" }, found.why || worded));
        return;
      }
      var change = round.answered.change || 0;
      var low = Math.min(change, 0, Math.min.apply(null, found.changes)), high = Math.max(change, 0, Math.max.apply(null, found.changes));
      var span = high - low || 1;
      var svg = s("svg", { viewBox: "0 0 200 24", class: "vsp-bar", preserveAspectRatio: "none", role: "img" });
      found.changes.forEach(function (one, i) {
        svg.append(s("rect", { x: 198 * (one - low) / span, y: 3 + i % 3 * 6, width: 1, height: 5, class: "vsp-control" }));
      });
      svg.append(s("rect", { x: 198 * (change - low) / span, y: 0, width: 2, height: 24, class: "vsp-mine" }));
      var text = "Change " + signed(change) + "; " + found.changes.length + " matched sets of other latents change it by " +
        signed(Math.min.apply(null, found.changes)) + " to " + signed(Math.max.apply(null, found.changes)) +
        (found.p === null ? "" : ", p = " + found.p.toPrecision(2)) + (found.flips === null ? "" : "; " + share(found.flips) + " of them take the log-odds to the other side of zero");
      svg.setAttribute("aria-label", text);
      compared.append(svg, h("p", { className: "vsp-hint" }, text + "."));
    }
    function showPast() {
      past.hidden = history.length < 1;
      back.disabled = at <= 0;
      forth.disabled = at >= history.length - 1;
      rounds.replaceChildren();
      history.forEach(function (round, i) {
        var text = round.answered ? round.answered.text : round.tokens.map(function (one) { return one[0]; }).join("") + " …";
        rounds.append(h("li", {}, h("button", { type: "button", "aria-current": String(i === at), onclick: function () { go(i); } },
          h("span", { className: "vsp-does" }, inWords(round.rows)), " → ", h("i", { className: round.answered ? side(round.answered.text) : "" }, text),
          round.answered && round.answered.margin !== null ? " " + signed(round.answered.margin) : "")));
      });
    }
    /** @param {number} by */
    function step(by) { go(Math.max(0, Math.min(history.length - 1, at + by))); }
    /** @param {number} to */
    function go(to) {
      if (busy) return;
      at = to;
      var round = history[at];
      rows = round.rows.map(function (row) { return Object.assign({}, row); });
      mode = round.mode;
      prompt.value = round.prompt;
      showRows();
      showPast();
      showRound(round);
    }

    // -- looking ------------------------------------------------------------------------------------

    /** @type {{looked: Looked, attention: Float64Array[], maps: Float64Array[]} | null} */
    var seen = null;
    /** @param {Round} round */
    function showLook(round) {
      words.replaceChildren();
      bars.replaceChildren();
      seen = null;
      over = null;
      if (round.looked) {
        var looked = round.looked;
        seen = { looked: looked, attention: unpacked(looked.attention), maps: unpacked(looked.maps) };
        var last = -1;
        looked.tokens.forEach(function (token, t) {
          if (looked.attention.top[t] === null || token[1] === "template") return;
          if (token[1] === "answer" && (last < 0 || looked.tokens[last][1] !== "answer")) last = t;
          words.append(h("button", { type: "button", className: "vsp-word " + token[1], "data-place": t, onclick: function () {
            over = { what: "token", place: t };
            paint();
          } }, token[0].trim() || "␣"));
        });
        if (last >= 0) over = { what: "token", place: last };
      }
      paint();
    }
    function paint() {
      words.querySelectorAll("button").forEach(function (word) {
        word.setAttribute("aria-pressed", String(Boolean(over && over.what === "token" && Number(word.dataset.place) === over.place)));
      });
      showBars();
      canvas.width = 0;
      if (!seen || !over || !spec.boxes.length) {
        caption.textContent = history.length && at >= 0 && !seen ? "Where this answer looked was not recorded." : "";
        return;
      }
      var weights = over.what === "latent" ? seen.maps[over.place] : seen.attention[over.place];
      var wide = 320, scale = wide / spec.picture.width;
      canvas.width = wide;
      canvas.height = Math.max(1, Math.round(spec.picture.height * scale));
      var top = weights.reduce(function (a, b) { return Math.max(a, Math.abs(b)); }, 0) || 1;
      var ink = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
      var style = getComputedStyle(el);
      ink.fillStyle = style.getPropertyValue(over.what === "latent" ? "--vsp-heat" : "--vsp-accent").trim() || "#1f5fae";
      spec.boxes.forEach(function (box, p) {
        if (!box || !(Math.abs(weights[p]) > 0)) return;
        ink.globalAlpha = 0.8 * Math.abs(weights[p]) / top;
        ink.fillRect(box[0] * scale, box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
      });
      caption.textContent = over.what === "latent" ? "Where latent " + seen.looked.latents[over.place] + " is active now." :
        "Where the model looks as it says “" + seen.looked.tokens[over.place][0].trim() + "”.";
    }
    function showBars() {
      bars.replaceChildren();
      if (!seen) return;
      var look = seen, row = over && over.what === "token" ? look.attention[over.place] : null;
      var labels = new Map((spec.latents || []).map(function (one) { return [one.number, one.label]; }));
      var values = look.maps.map(function (map) {
        return map.reduce(function (sum, value, p) { return sum + value * (row ? row[p] : 1); }, 0);
      });
      var order = values.map(function (_, i) { return i; }).sort(function (a, b) { return Math.abs(values[b]) - Math.abs(values[a]) || a - b; })
        .filter(function (i) { return values[i] !== 0; }).slice(0, 8);
      var top = order.length ? Math.abs(values[order[0]]) : 1;
      order.forEach(function (i) {
        var number = look.looked.latents[i], svg = s("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
        svg.append(s("rect", { width: 100 * Math.abs(values[i]) / top, height: 8, class: values[i] < 0 ? "vsp-wrong" : "vsp-heat" }));
        bars.append(h("li", {}, h("button", { type: "button", className: "vsp-latent", "aria-pressed": String(Boolean(over && over.what === "latent" && over.place === i)),
          onclick: function () {
            over = over && over.what === "latent" && over.place === i ? null : { what: "latent", place: i };
            paint();
          } }, h("span", {}, number + " " + (labels.get(number) || "")), svg),
        h("button", { type: "button", className: "vsp-small", "aria-label": "Edit latent " + number, onclick: function () { add([number]); } }, "+")));
      });
    }

    // -- keeping ------------------------------------------------------------------------------------

    /** @param {"text" | "cases"} to */
    function save(to) {
      if (busy || closed()) return;
      seq += 1;
      model.send({ type: "save", seq: seq, name: name.value.trim(), title: title.value.trim() || name.value.trim(), to: to,
        run: Object.assign(request(), { seq: seq }) });
      say("Saving …");
      listen(false);
    }
    /** @param {Event} event */
    function saved(event) {
      if (!event || event.seq !== seq) return;
      again.hidden = true;
      listen(true);
      if (event.type === "saved" || event.type === "done" || event.type === "failed" || event.type === "cancelled") clearTimeout(silent);
      if (event.type === "failed") { fail(event.message, event.anew); anew = Boolean(event.anew); }
      else if (event.type === "saved" && event.file) say("Written: " + event.file + ". It is checked and run like any other.");
      else if (event.type === "saved") {
        var address = URL.createObjectURL(new Blob([event.text], { type: "application/yaml" }));
        var anchor = h("a", { href: address, download: event.name });
        anchor.click();
        setTimeout(function () { URL.revokeObjectURL(address); }, 10000);
        say("Saved as " + event.name + (event.picture ? "; put the picture beside it, at " + event.picture + "." : "."));
        el.dispatchEvent(new CustomEvent("vsp:saved", { detail: event, bubbles: true }));
      } else if (event.type === "cancelled" && uploading) { busy = uploading = false; say("Cancelled."); lock(); }
      else if (event.type === "done" && uploading) { uploading = false; busy = false; own = true; say("The question is now about your picture."); lock(); }
    }
    var uploading = false;
    function sendPicture() {
      var file = upload.files && upload.files[0], called = file ? file.name.slice(0, 200) : "";
      upload.value = "";
      if (!file || busy || closed()) return;
      if (file.size > 8 * 1024 * 1024) return say("The picture is over 8 MiB. Make it smaller.", true);
      var reader = new FileReader();
      reader.addEventListener("load", function () {
        seq += 1;
        busy = uploading = true;
        history = []; at = -1; showPast(); setRegion([]);
        rows = []; showRows();
        say("The picture is looked at …");
        lock();
        listen(false);
        model.send({ type: "picture", seq: seq, name: called, data: String(reader.result).split(",")[1] || "" });
      });
      reader.readAsDataURL(file);
    }
    function copyLink() {
      if (!spec) return;
      var state = packedLink({ prompt: prompt.value, edits: rows.map(written), mode: mode });
      var text = address ? address.write(state) : 'vsp-report live "' + spec.case.id + "#try=" + state + '"';
      var done = "The " + (address ? "link" : "command") + " is copied." + (own ? " Your picture does not go with it." : "");
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(function () { say(done); }, function () { say(text); });
      else say(text);
    }
    function restore() {
      if (!address) return;
      var asked = address.read(), state = asked.get("try") && unpackedLink(asked.get("try") || "");
      var latents = asked.get("latents") || asked.get("latent") || "";
      if (state && typeof state.prompt === "string" && Array.isArray(state.edits)) {
        set(state.prompt, state.edits.slice(0, MOST_ROWS).filter(/** @param {unknown} one */ function (one) { return one && typeof one === "object"; }), state.mode);
        say("As the link says. Ask, to see the answer.");
      } else if (/^\d{1,8}(,\d{1,8})*$/.test(latents)) {
        add(Array.from(new Set(latents.split(",").map(Number))), (asked.get("name") || "").slice(0, 60) || undefined);
      }
      showRows();
    }
    /** @param {globalThis.Event} event */
    function offeredLatents(event) {
      var detail = event instanceof CustomEvent && event.detail || {}, found = (detail.latents || []).filter(Number.isInteger);
      if (!found.length) return;
      var one = { latents: found, name: detail.name ? String(detail.name).slice(0, 60) : undefined, strength: Number(detail.strength) || undefined };
      if (spec && !shut) return handed(one);
      pending.push(one);
      showRows();
    }
    /** A latent that is silent here is set to what it is elsewhere: there is nothing to take away. @param {Handed} one */
    function handed(one) {
      var same = rows.find(function (row) { return !row.where && String(row.latents) === String(one.latents); });
      if (same) return say("Among the edits already: " + same.name + ".");
      add(one.latents, one.name, null, one.latents.length === 1 && isSilent(one.latents[0]) ? one.strength : 0);
    }
    function moved() { if (spec && address && /(^|&)(try|latents?)=/.test(address.read().toString())) restore(); }
    /** A notebook's host knows at once that its kernel died. @param {unknown} _ @param {string} kind */
    function heardOfKernel(_, kind) {
      if (gone || !/^(restarting|autorestarting|dead)$/.test(kind)) return;
      gone = true;
      fail("The kernel died or was started again. " + RERUN);
    }

    // -- listening ----------------------------------------------------------------------------------

    model.on("msg:custom", hear);
    model.on("change:spec", take);
    model.on("change:state", said);
    document.addEventListener("vsp:latents", offeredLatents);
    var unwatch = address && address.watch ? address.watch(moved) : null;
    var kernel = model.widget_manager && model.widget_manager.kernel;
    if (kernel && kernel.statusChanged) kernel.statusChanged.connect(heardOfKernel);
    showRows();
    take();
    return function () {
      clearTimeout(silent);
      clearTimeout(slow);
      model.off("msg:custom", hear);
      model.off("change:spec", take);
      model.off("change:state", said);
      document.removeEventListener("vsp:latents", offeredLatents);
      if (unwatch) unwatch();
      if (kernel && kernel.statusChanged) kernel.statusChanged.disconnect(heardOfKernel);
    };
  }

  root.VspPanel = { render: render };
})(/** @type {{VspPanel?: object}} */ (globalThis));
