/* Rows: search and filters over the rows of a data set, with their state behind the # of the address. */
(function () {
  "use strict";
  var form = document.querySelector("[data-rows-filters]");
  if (!form) return;
  var rows = Array.prototype.slice.call(document.querySelectorAll("[data-rows] > tbody > tr"));
  var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
  var count = form.querySelector("[data-rows-count]");
  var names = Array.prototype.map.call(form.querySelectorAll("select"), function (select) { return select.name; });

  function apply(remember) {
    var want = {};
    new FormData(form).forEach(function (value, name) { if (value) want[name] = String(value); });
    var words = (want.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    var shown = 0;
    rows.forEach(function (row, i) {
      var fits = names.every(function (name) {
        var has = row.dataset[name] || "";
        return !want[name] || (name === "group" ? has.split(" ").indexOf(want[name]) >= 0 : has === want[name]);
      }) && words.every(function (word) { return texts[i].indexOf(word) >= 0; });
      row.hidden = !fits;
      if (fits) shown += 1;
    });
    count.textContent = shown === rows.length ? rows.length + " rows" : shown + " of " + rows.length + " rows";
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
