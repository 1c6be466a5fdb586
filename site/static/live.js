/* Live: what stands behind the panel of a page. Beside a kernel, when the page came from `vsp-report live`; alone, over
   what was recorded, anywhere else. Both give the panel the same model: `get`, `on`, `off`, `send`.
   A page whose panel waits until it is asked for, as an atlas's does, takes the kernel from `VspLive`. */
// @ts-check
(function () {
  "use strict";
  var PROTOCOL = "v1.kernel.websocket.jupyter.org", TARGET = "vsp.panel";
  var ANSWERS_MS = 30000, HUNG_MS = 8000;

  /**
   * @typedef {(told: any) => void} Hear
   * @typedef {{latents: number[] | string | object, where?: {box?: number[], boxes?: number[][]}, set?: number,
   *   scale?: number, add?: number}} Edit
   * @typedef {{prompt: string, mode?: string, edits?: Edit[]}} Asked
   * @typedef {{type: string, [key: string]: unknown}} Told  an event; what it holds is the panel's to know
   * @typedef {Asked & {label: string, edits: Edit[], events: Told[]}} Round
   * @typedef {{rounds: Round[], picture: {src: string}, command: string}} Replay
   * @typedef {{type: string, seq: number, controls?: number} & Partial<Asked>} Message
   * @typedef {{type: string, content: {[key: string]: any}}} Received
   */

  /** Who is told of what. */
  class Teller {
    constructor() {
      /** @type {Map<string, Set<Hear>>} */
      this.heard = new Map();
      /** @type {Record<string, any>} */
      this.state = {};
    }
    /** @param {string} key */
    get(key) { return this.state[key]; }
    /** @param {string} event @param {Hear} hear */
    on(event, hear) { this.heard.set(event, (this.heard.get(event) || new Set()).add(hear)); }
    /** @param {string} event @param {Hear} hear */
    off(event, hear) { this.heard.get(event)?.delete(hear); }
    /** @param {string} event @param {unknown} value */
    fire(event, value) { this.heard.get(event)?.forEach(function (hear) { hear(value); }); }
    /** @param {string} key @param {unknown} value */
    put(key, value) { this.state[key] = value; this.fire("change:" + key, value); }
  }

  // --- what was recorded ---------------------------------------------------------------------------------------------

  /** A round by what is asked, whatever order its parts came in. @param {Partial<Asked>} asked */
  function keyOf(asked) {
    var edits = (asked.edits || []).map(function (edit) {
      var where = edit.where ? edit.where.boxes || [edit.where.box] : [];
      var op = /** @type {const} */ (["set", "scale", "add"]).find(function (one) { return edit[one] !== undefined; });
      var latents = Array.isArray(edit.latents) ? edit.latents.slice().sort(function (a, b) { return a - b; }) : edit.latents;
      return [latents, op, Number(op && edit[op]), where];
    });
    return JSON.stringify([asked.prompt, edits.length ? asked.mode || "delta" : "", edits]);
  }

  class RecordedModel extends Teller {
    /** @param {Replay} replay */
    constructor(replay) {
      super();
      /** @type {Map<string, Round>} */
      this.rounds = new Map();
      replay.rounds.forEach((one) => { if (!this.rounds.has(keyOf(one))) this.rounds.set(keyOf(one), one); });
      var { rounds, ...spec } = replay;
      this.command = replay.command;
      this.state.spec = Object.assign(spec, { recorded: rounds.map(function (one) {
        return { label: one.label, prompt: one.prompt, edits: one.edits, mode: one.mode };
      }) });
      this.playing = 0;
    }
    /** @param {Message} asked */
    send(asked) {
      var mine = ++this.playing;
      /** @param {Told} event */
      var tell = (event) => this.fire("msg:custom", Object.assign({ source: "recorded" }, event, { seq: asked.seq }));
      if (asked.type === "cancel") { setTimeout(tell, 0, { type: "cancelled" }); return; }
      if (asked.type !== "run") { setTimeout(tell, 0, { type: "failed", message: "That takes a kernel: " + this.command }); return; }
      var found = this.rounds.get(keyOf(asked));
      if (!found) { setTimeout(tell, 0, { type: "not-recorded", command: this.command }); return; }
      /** @type {Told[]} */
      var events = [{ type: "queued", ahead: 0 }, { type: "started", prompt: found.prompt, edits: found.edits, mode: found.mode },
        ...found.events.filter(function (event) { return event.type !== "controls" || asked.controls; }), { type: "done" }];
      var next = () => {
        var event = events.shift();
        if (this.playing !== mine || !event) return;
        tell(event);
        setTimeout(next, 12);
      };
      next();
    }
  }

  // --- a kernel ------------------------------------------------------------------------------------------------------

  var encoder = new TextEncoder(), decoder = new TextDecoder();
  /** @param {string} channel @param {string} type @param {object} content @param {string} session */
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
  /** @param {ArrayBuffer} buffer @returns {Received} */
  function unpacked(buffer) {
    var view = new DataView(buffer);
    /** @type {number[]} */
    var places = [];
    for (var i = 0; i < Number(view.getBigUint64(0, true)); i++) places.push(Number(view.getBigUint64(8 * (i + 1), true)));
    /** @param {number} n */
    function part(n) { return JSON.parse(decoder.decode(new Uint8Array(buffer, places[n], places[n + 1] - places[n]))); }
    return { type: part(1).msg_type, content: part(4) };
  }

  class KernelModel extends Teller {
    /** @param {string} base @param {string} caseId @param {Replay | undefined} replay */
    constructor(base, caseId, replay) {
      super();
      this.base = base;
      this.caseId = caseId;
      this.kernel = this.comm = this.session = "";
      this.ready = false;
      this.hung = this.tries = this.opening = 0;
      /** @type {WebSocket | null} */
      this.socket = null;
      this.recorded = replay ? new RecordedModel(replay) : null;
      if (this.recorded) {
        this.state.spec = this.recorded.state.spec;
        this.recorded.on("msg:custom", (event) => {
          this.fire("msg:custom", event.type === "not-recorded" || event.type === "failed" ?
            { type: "failed", seq: event.seq, message: "The kernel is still starting. Ask again in a moment." } : event);
        });
      }
      window.addEventListener("pagehide", () => this.leave());
      this.connect("kernel");
    }
    /** @param {"kernel" | "restart"} how @param {string} [doubted] the kernel that was silent before */
    connect(how, doubted) {
      var mine = ++this.tries;
      this.ready = false;
      this.put("state", { kind: "starting", message: "The kernel is starting …" });
      fetch(this.base + how, { method: "POST", credentials: "same-origin", signal: AbortSignal.timeout(ANSWERS_MS) }).then(function (answer) {
        if (!answer.ok) throw new Error(answer.status === 403 ? "This address is from an earlier start of `vsp-report live`." : "The kernel does not start.");
        return answer.json();
      }).then((found) => { if (this.tries === mine) this.listen(found.kernel, doubted); }).catch((error) => {
        if (this.tries !== mine) return;
        var away = error instanceof TypeError || error.name === "TimeoutError";
        this.lost(away ? "The server does not answer. Is `vsp-report live` still running?" : error.message);
      });
    }
    /** @param {string} kernel @param {string} [doubted] */
    listen(kernel, doubted) {
      var session = (this.session = crypto.randomUUID()), comm = (this.comm = crypto.randomUUID());
      this.kernel = kernel;
      var address = new URL("/api/kernels/" + kernel + "/channels?session_id=" + session, location.href);
      address.protocol = address.protocol.replace("http", "ws");
      var socket = (this.socket = new WebSocket(address, [PROTOCOL]));
      socket.binaryType = "arraybuffer";
      socket.onopen = () => {
        if (socket.protocol !== PROTOCOL) { socket.close(); return; }
        this.post("comm_open", { comm_id: comm, target_name: TARGET, data: {} });
        this.opening = 0;
        this.takeUp();
      };
      socket.onclose = () => {
        if (this.socket === socket) this.lost("The connection to the kernel was lost.");
      };
      socket.onmessage = (event) => {
        if (this.socket !== socket || !(event.data instanceof ArrayBuffer)) return;
        var message = unpacked(event.data), content = message.content;
        if (message.type === "status" && /^(restarting|autorestarting|dead)$/.test(content.execution_state)) {
          this.lost("The kernel died; the model may have been too large for the memory that is free.");
        } else if (message.type === "comm_close" && content.comm_id === comm) {
          this.lost("The kernel let this panel go.");
        } else if (message.type === "comm_msg" && content.comm_id === comm) this.hear(content.data);
      };
      // A kernel hears while it works. One that was silent before and is again hears nothing any more.
      clearTimeout(this.hung);
      if (kernel === doubted) {
        this.hung = window.setTimeout(() => {
          if (this.socket === socket) { this.drop(); this.connect("restart"); }
        }, HUNG_MS);
      }
    }
    /** @param {{method: string, state: any, content: any}} data */
    hear(data) {
      clearTimeout(this.hung);
      if (data.method === "update") {
        // Another case may have been chosen since this one was asked for.
        if (data.state.spec.case.id !== this.caseId) return;
        this.ready = true;
        this.put("spec", data.state.spec);
        this.put("state", { kind: "ready", message: "" });
      } else if (data.method === "custom") {
        var told = data.content;
        if (told.seq === 0 && /^(done|failed|cancelled)$/.test(told.type)) this.opening = Math.max(0, this.opening - 1);
        if (told.seq !== 0) this.fire("msg:custom", told);
        else if (told.type === "failed" && this.opening <= 0) this.lost(told.message);
      }
    }
    takeUp() {
      this.opening += 1;
      this.say({ type: "open", seq: 0, case: this.caseId });
    }
    /** Another case, on the same kernel. What is asked of the one before is given up. @param {string} caseId */
    open(caseId) {
      this.caseId = caseId;
      this.ready = false;
      this.put("spec", null);
      if (this.socket && this.socket.readyState === WebSocket.OPEN) {
        this.put("state", { kind: "starting", message: "The case is being opened …" });
        this.say({ type: "cancel", seq: 0 });
        this.takeUp();
      } else if (!this.socket) this.connect("kernel");
    }
    /** @param {string} message */
    lost(message) {
      this.drop();
      this.put("state", { kind: "lost", message: message });
    }
    drop() {
      var socket = this.socket;
      clearTimeout(this.hung);
      this.ready = false;
      this.socket = null;
      if (socket) socket.close();
    }
    /** By one click: a connection again, and a kernel again where this one is dead or stays silent. @param {boolean} anew */
    restart(anew) {
      var doubted = this.socket ? this.kernel : undefined;
      this.leave();
      this.connect(anew ? "restart" : "kernel", doubted);
    }
    /** @param {Message} content */
    send(content) {
      if (!this.ready && this.recorded) this.recorded.send(content);
      else this.say(content);
    }
    /** @param {object} content */
    say(content) {
      this.post("comm_msg", { comm_id: this.comm, data: { method: "custom", content: content } });
    }
    /** @param {string} type @param {object} content */
    post(type, content) {
      if (this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(packed("shell", type, content, this.session));
    }
    leave() {
      this.post("comm_close", { comm_id: this.comm, data: {} });
      this.drop();
    }
  }

  // --- this page -----------------------------------------------------------------------------------------------------

  var page = /** @type {{VSP_REPLAY?: Replay, VspLive: object, VspPanel: {render: (given: {model: object, el: HTMLElement, address: object}) => void}}} */ (
    /** @type {unknown} */ (window));
  page.VspLive = { KernelModel: KernelModel };
  /** The state of a panel, behind the sign of the page's address. */
  var address = {
    read: function () { return new URLSearchParams(location.hash.slice(1)); },
    /** @param {string} state */
    write: function (state) {
      // What is seen above the panel stands in the address too.
      var seen = new URLSearchParams(/=/.test(location.hash) ? location.hash.slice(1) : "");
      ["try", "latent", "latents", "name"].forEach(function (key) { seen.delete(key); });
      var said = "#try=" + state + (seen.toString() && "&" + seen.toString());
      try { history.replaceState(null, "", said); } catch (error) { /* a page from a folder may not */ }
      return location.href.replace(/#.*$/, "") + said;
    },
    /** @param {() => void} moved */
    watch: function (moved) {
      window.addEventListener("hashchange", moved);
      return function () { window.removeEventListener("hashchange", moved); };
    },
  };
  var mark = /** @type {HTMLMetaElement | null} */ (document.querySelector('meta[name="vsp-live"]'));
  var replay = page.VSP_REPLAY, shown = /** @type {HTMLElement | null} */ (document.querySelector("[data-picture]"));
  // Where the page has its picture, wherever that is.
  if (replay && shown) replay.picture.src = shown.dataset.picture || "";
  /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-panel]")).forEach(function (place) {
    var model = mark ? new KernelModel(mark.content, place.dataset.recording || "", replay) : replay ? new RecordedModel(replay) : null;
    if (!model) return;
    // What stood there for want of scripts is still to be had.
    var rest = document.createElement("details"), summary = document.createElement("summary"), el = document.createElement("div");
    rest.className = "more";
    summary.textContent = "Every setting that was recorded";
    rest.append(summary, ...place.childNodes);
    place.append(el, rest);
    page.VspPanel.render({ model: model, el: el, address: address });
    place.dataset.host = mark ? "kernel" : "recorded";
    Object.assign(place, { model: model });
  });
})();
