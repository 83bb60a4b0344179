/* A page that says how often it changes is asked for again, and its content put in the place of what is there. It waits while
   nobody looks, and while somebody types, marks text or reads further down. */
(function () {
  "use strict";

  var live = document.getElementById("live"),
    seconds = live ? Number(live.getAttribute("data-refresh")) : 0;

  function isInUse() {
    var at = document.activeElement,
      marked = window.getSelection();
    return document.hidden || (at && /^(INPUT|BUTTON|SELECT)$/.test(at.tagName)) || (marked && !marked.isCollapsed);
  }

  function tell(text, isWell) {
    var dot = live.querySelector("[data-live-dot]"),
      words = live.querySelector("[data-live-text]");
    if (dot && words) {
      dot.classList.toggle("status-dot-live", isWell);
      dot.classList.toggle("status-dot-error", !isWell);
      words.textContent = text;
    }
  }

  function put(html) {
    var fresh = new DOMParser().parseFromString(html, "text/html").getElementById("live");
    if (fresh && !isInUse()) {
      live.replaceChildren.apply(live, Array.prototype.slice.call(fresh.childNodes));
      tell("Updated " + new Date().toLocaleTimeString(), true);
    }
  }

  function refresh() {
    if (isInUse()) {
      return Promise.resolve();
    }
    return fetch(window.location.href, { credentials: "same-origin", cache: "no-store" })
      .then(function (answer) {
        if (!answer.ok) {
          throw new Error(String(answer.status));
        }
        return answer.text();
      })
      .then(put)
      .catch(function () {
        tell("Update failed", false);
      });
  }

  function later() {
    window.setTimeout(function () {
      refresh().then(later, later);
    }, seconds * 1000);
  }

  if (seconds > 0) {
    later();
  }
}());
