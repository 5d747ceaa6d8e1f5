// The page of `journey report` in a frame that can run its own script and do nothing else. `props.value` is { page, scope,
// anew }: the page, the part to open it at (null stays where it was), and whether it is of another image.
const frame = element.querySelector("iframe");
let place = null;

const show = () => {
  const { page, anew } = props.value || {};
  frame.hidden = !page;
  element.querySelector(".nothing").hidden = Boolean(page);
  if (!page) return;
  if (anew) place = null;
  frame.srcdoc = page;
};
addEventListener("message", (event) => {
  if (event.source !== frame.contentWindow || !event.data) return;
  const { journey } = event.data;
  if (journey === "ready") {
    const { scope } = props.value;
    const wanted = { ...(place || {}), ...(Number.isInteger(scope) ? { scope } : {}) };
    frame.contentWindow.postMessage({ journey: "open", place: wanted }, "*");
  } else if (journey === "place") {
    place = event.data.place;
    frame.style.height = `${Math.ceil(event.data.height) + 2}px`;
  }
});
watch("value", show);
show();
