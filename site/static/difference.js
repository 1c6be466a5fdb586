/* Difference: two pictures lie over each other, and a slider uncovers the one or the other. */
(function () {
  "use strict";
  document.querySelectorAll("[data-slider]").forEach(function (figure) {
    var label = figure.querySelector("label"), panes = figure.querySelectorAll(".pane");
    if (!label || panes.length < 2) return;
    var range = label.querySelector("input"), over = panes[1], stage = panes[1].parentNode;
    function slide() {
      // What is right of the handle is the second; its name goes when it is hardly seen.
      over.style.setProperty("clip-path", "inset(0 0 0 " + range.value + "%)");
      stage.style.setProperty("--at", range.value + "%");
      panes[0].querySelector(".tag").hidden = range.value < 20;
      over.querySelector(".tag").hidden = range.value > 80;
    }
    figure.classList.add("live");
    label.hidden = false;
    range.addEventListener("input", slide);
    slide();
  });
})();
