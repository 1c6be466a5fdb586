/* Live: what stands behind the panel of a page. Beside a kernel, when the page came from `vsp-report live`; alone, over
   what was recorded, anywhere else. Both give the panel the same model: `get`, `on`, `off`, `send`. */
// @ts-check
(function () {
  "use strict";
  var PROTOCOL = "v1.kernel.websocket.jupyter.org", TARGET = "vsp.panel";

  /** Who is told of what. */
  function Told() {
    /** @type {Map<string, Set<Function>>} */
    this.heard = new Map();
    /** @type {Record<string, any>} */
    this.state = {};
  }
  Told.prototype.get = function (key) { return this.state[key]; };
  Told.prototype.on = function (event, hear) {
    if (!this.heard.has(event)) this.heard.set(event, new Set());
    this.heard.get(event).add(hear);
  };
  Told.prototype.off = function (event, hear) { if (this.heard.has(event)) this.heard.get(event).delete(hear); };
  Told.prototype.fire = function (event, value) { (this.heard.get(event) || []).forEach(function (hear) { hear(value); }); };
  Told.prototype.put = function (key, value) { this.state[key] = value; this.fire("change:" + key, value); };

  // --- what was recorded ---------------------------------------------------------------------------------------------

  /** A round by what is asked, whatever order its parts came in. */
  function keyOf(asked) {
    var edits = (asked.edits || []).map(function (edit) {
      var where = edit.where ? edit.where.boxes || [edit.where.box] : [];
      var op = ["set", "scale", "add"].find(function (one) { return edit[one] !== undefined; });
      var latents = Array.isArray(edit.latents) ? edit.latents.slice().sort(function (a, b) { return a - b; }) : edit.latents;
      return [latents, op, Number(edit[op]), where];
    });
    return JSON.stringify([asked.prompt, edits.length ? asked.mode || "delta" : "", edits]);
  }

  /** @constructor */
  function RecordedModel(replay) {
    Told.call(this);
    var rounds = (this.rounds = new Map());
    replay.rounds.forEach(function (one) { if (!rounds.has(keyOf(one))) rounds.set(keyOf(one), one); });
    var spec = Object.assign({}, replay, { recorded: replay.rounds.map(function (one) {
      return { label: one.label, prompt: one.prompt, edits: one.edits, mode: one.mode };
    }) });
    delete spec.rounds;
    this.state.spec = spec;
    this.playing = 0;
  }
  RecordedModel.prototype = Object.create(Told.prototype);
  RecordedModel.prototype.send = function (asked) {
    var model = this, mine = ++this.playing;
    function tell(event) { model.fire("msg:custom", Object.assign({ source: "recorded" }, event, { seq: asked.seq })); }
    if (asked.type === "cancel") { setTimeout(tell, 0, { type: "cancelled" }); return; }
    if (asked.type !== "run") { setTimeout(tell, 0, { type: "failed", message: "That takes a kernel: " + this.state.spec.command }); return; }
    var found = this.rounds.get(keyOf(asked));
    if (!found) { setTimeout(tell, 0, { type: "not-recorded", command: this.state.spec.command }); return; }
    var events = [{ type: "queued", ahead: 0 }, { type: "started", prompt: found.prompt, edits: found.edits, mode: found.mode }]
      .concat(found.events.filter(function (event) { return event.type !== "controls" || asked.controls; }), [{ type: "done" }]);
    (function next() {
      if (model.playing !== mine) return;
      tell(events.shift());
      if (events.length) setTimeout(next, 12);
    })();
  };

  // --- a kernel ------------------------------------------------------------------------------------------------------

  var encoder = new TextEncoder(), decoder = new TextDecoder();
  function packed(channel, type, content, session) {
    var header = { msg_id: crypto.randomUUID(), session: session, username: "", date: new Date().toISOString(), msg_type: type, version: "5.4" };
    var parts = [channel].concat([header, {}, {}, content].map(function (one) { return JSON.stringify(one); }))
      .map(function (text) { return encoder.encode(text); });
    var places = [8 * (parts.length + 2)];
    parts.forEach(function (part) { places.push(places[places.length - 1] + part.length); });
    var buffer = new Uint8Array(places[places.length - 1]), view = new DataView(buffer.buffer);
    view.setBigUint64(0, BigInt(places.length), true);
    places.forEach(function (place, i) { view.setBigUint64(8 * (i + 1), BigInt(place), true); });
    parts.forEach(function (part, i) { buffer.set(part, places[i]); });
    return buffer;
  }
  function unpacked(buffer) {
    var view = new DataView(buffer), places = [];
    for (var i = 0; i < Number(view.getBigUint64(0, true)); i++) places.push(Number(view.getBigUint64(8 * (i + 1), true)));
    function part(n) { return JSON.parse(decoder.decode(new Uint8Array(buffer, places[n], places[n + 1] - places[n]))); }
    return { type: part(1).msg_type, content: part(4) };
  }

  /** @constructor */
  function KernelModel(base, caseId, replay) {
    Told.call(this);
    this.base = base;
    this.caseId = caseId;
    this.recorded = replay ? new RecordedModel(replay) : null;
    this.ready = false;
    this.deaf = false;
    if (this.recorded) {
      var model = this;
      this.state.spec = this.recorded.state.spec;
      this.recorded.on("msg:custom", function (event) {
        model.fire("msg:custom", event.type === "not-recorded" || event.type === "failed" ?
          { type: "failed", seq: event.seq, message: "The kernel is still starting. Ask again in a moment." } : event);
      });
    }
    window.addEventListener("pagehide", this.leave.bind(this));
    this.connect("kernel");
  }
  KernelModel.prototype = Object.create(Told.prototype);
  KernelModel.prototype.connect = function (how) {
    var model = this;
    this.ready = this.deaf = false;
    this.put("state", { kind: "starting", message: "The kernel is starting …" });
    fetch(this.base + how, { method: "POST", credentials: "same-origin" }).then(function (answer) {
      if (!answer.ok) throw new Error(answer.status === 403 ? "This address is from an earlier start of `vsp-report live`." : "The kernel does not start.");
      return answer.json();
    }).then(function (found) { model.listen(found.kernel); }).catch(function (error) {
      model.lost(error instanceof TypeError ? "The server does not answer. Is `vsp-report live` still running?" : error.message);
    });
  };
  KernelModel.prototype.listen = function (kernel) {
    var model = this, session = (this.session = crypto.randomUUID()), comm = (this.comm = crypto.randomUUID());
    var address = new URL("/api/kernels/" + kernel + "/channels?session_id=" + session, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    var socket = (this.socket = new WebSocket(address, [PROTOCOL]));
    socket.binaryType = "arraybuffer";
    socket.onopen = function () {
      if (socket.protocol !== PROTOCOL) { socket.close(); return; }
      model.post("comm_open", { comm_id: comm, target_name: TARGET, data: {} });
      model.say({ type: "open", seq: 0, case: model.caseId });
    };
    socket.onclose = function () {
      if (model.socket === socket) model.lost("The connection to the kernel was lost.");
    };
    socket.onmessage = function (event) {
      if (model.socket !== socket || !(event.data instanceof ArrayBuffer)) return;
      var message = unpacked(event.data), content = message.content;
      if (message.type === "status" && /^(restarting|autorestarting|dead)$/.test(content.execution_state)) {
        model.lost("The kernel died; the model may have been too large for the memory that is free.");
      } else if (message.type === "comm_close" && content.comm_id === comm) {
        model.lost("The kernel let this panel go.");
      } else if (message.type === "comm_msg" && content.comm_id === comm) model.hear(content.data);
    };
  };
  KernelModel.prototype.hear = function (data) {
    if (data.method === "update") {
      this.ready = true;
      this.put("spec", data.state.spec);
      this.put("state", { kind: "ready", message: "" });
    } else if (data.method === "custom") {
      if (data.content.seq === 0 && data.content.type === "failed") this.lost(data.content.message);
      else this.fire("msg:custom", data.content);
    }
  };
  KernelModel.prototype.lost = function (message) {
    var socket = this.socket;
    this.ready = false;
    this.socket = null;
    if (socket) socket.close();
    this.put("state", { kind: "lost", message: message });
  };
  /** By one click: a connection again, or a kernel again where this one is silent. */
  KernelModel.prototype.restart = function () {
    var silent = Boolean(this.socket);
    if (this.socket) { var socket = this.socket; this.socket = null; socket.close(); }
    this.connect(silent ? "restart" : "kernel");
  };
  KernelModel.prototype.send = function (content) {
    if (!this.ready && this.recorded) this.recorded.send(content);
    else this.say(content);
  };
  KernelModel.prototype.say = function (content) {
    this.post("comm_msg", { comm_id: this.comm, data: { method: "custom", content: content } });
  };
  KernelModel.prototype.post = function (type, content) {
    if (this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(packed("shell", type, content, this.session));
  };
  KernelModel.prototype.leave = function () {
    this.post("comm_close", { comm_id: this.comm, data: {} });
    var socket = this.socket;
    this.socket = null;
    if (socket) socket.close();
  };

  // --- this page -----------------------------------------------------------------------------------------------------

  var mark = /** @type {HTMLMetaElement | null} */ (document.querySelector('meta[name="vsp-live"]'));
  var replay = /** @type {any} */ (window).VSP_REPLAY, shown = /** @type {any} */ (document.querySelector("[data-picture]"));
  // Where the page has its picture, wherever that is.
  if (replay && shown) replay.picture.src = shown.dataset.picture;
  Array.prototype.forEach.call(document.querySelectorAll("[data-panel]"), function (place) {
    var model = mark ? new KernelModel(mark.content, place.dataset.recording, replay) : replay ? new RecordedModel(replay) : null;
    if (!model) return;
    // What stood there for want of scripts is still to be had.
    var rest = document.createElement("details"), summary = document.createElement("summary"), el = document.createElement("div");
    rest.className = "more";
    summary.textContent = "Every setting that was recorded";
    rest.append(summary);
    rest.append.apply(rest, Array.prototype.slice.call(place.childNodes));
    place.append(el, rest);
    /** @type {any} */ (window).VspPanel.render({ model: model, el: el });
    place.dataset.host = mark ? "kernel" : "recorded";
    /** @type {any} */ (place).model = model;
  });
})();
