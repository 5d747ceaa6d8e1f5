// Shows one step at a time. Without this script every step is on the page and the strips link to them.
(() => {
  "use strict";
  const scrubber = document.querySelector(".scrubber");
  const range = scrubber.querySelector("input[type=range]");
  const all = scrubber.querySelector("input[type=checkbox]");
  const output = scrubber.querySelector("output");
  const panels = [...document.querySelectorAll(".step")];
  const links = [...document.querySelectorAll(".strip a")];
  const names = range.dataset.names.split("|");
  const last = names.length - 1;

  const show = (step) => {
    const current = Math.min(Math.max(step, 0), last);
    range.value = String(current);
    range.setAttribute("aria-valuetext", names[current]);
    output.textContent = names[current];
    for (const panel of panels) panel.hidden = !all.checked && Number(panel.dataset.step) !== current;
    for (const link of links) {
      if (Number(link.dataset.step) === current) link.setAttribute("aria-current", "step");
      else link.removeAttribute("aria-current");
    }
  };
  const fromAddress = () => {
    const panel = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!panel || panel.dataset.step === undefined) return;
    show(Number(panel.dataset.step));
    panel.scrollIntoView();
  };

  for (const link of links) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      show(Number(link.dataset.step));
    });
  }
  range.addEventListener("input", () => show(Number(range.value)));
  all.addEventListener("change", () => show(Number(range.value)));
  addEventListener("hashchange", fromAddress);
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target === range) return;
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    show(Number(range.value) + (event.key === "ArrowRight" ? 1 : -1));
  });

  document.documentElement.classList.add("js");
  scrubber.hidden = false;
  show(Number(range.value));
  fromAddress();
})();
