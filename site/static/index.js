/* Index: search and filters over the cards, with their state behind the # of the address. */
(function () {
  "use strict";
  var form = document.querySelector("[data-filters]");
  if (!form) return;
  var cards = Array.prototype.slice.call(document.querySelectorAll("[data-cards] > li"));
  var texts = cards.map(function (card) { return card.textContent.toLowerCase(); });
  var count = form.querySelector("[data-count]");
  var names = Array.prototype.map.call(form.querySelectorAll("select"), function (select) { return select.name; });

  function asked() {
    var found = {};
    new FormData(form).forEach(function (value, name) { if (value) found[name] = String(value); });
    return found;
  }

  function apply(remember) {
    var want = asked();
    var words = (want.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    var shown = 0;
    cards.forEach(function (card, i) {
      var fits = names.every(function (name) {
        if (!want[name]) return true;
        var has = card.dataset[name] || "";
        return name === "tag" ? has.split(" ").indexOf(want[name]) >= 0 : has === want[name];
      }) && words.every(function (word) { return texts[i].indexOf(word) >= 0; });
      card.hidden = !fits;
      if (fits) shown += 1;
    });
    count.textContent = shown === cards.length ? cards.length + " cases" : shown + " of " + cards.length + " cases";
    if (remember) history.replaceState(null, "", "#" + new URLSearchParams(want).toString());
  }

  function restore() {
    var given = new URLSearchParams(location.hash.slice(1));
    form.elements.q.value = given.get("q") || "";
    names.forEach(function (name) {
      var select = form.elements[name];
      select.value = given.get(name) || "";
      if (select.selectedIndex < 0) select.value = "";
    });
    apply(false);
  }

  form.addEventListener("input", function () { apply(true); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  window.addEventListener("hashchange", restore);
  form.hidden = false;
  restore();
})();
