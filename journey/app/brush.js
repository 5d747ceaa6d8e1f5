// A brush over the image. `props.value` is { image, mask }: a picture as a data URI, and what was painted on it as a PNG
// of the same size, whose opacity is the weight of each pixel; an empty text where nothing is painted.
const canvas = element.querySelector("canvas");
const size = element.querySelector("input");
const STEP = 0.03; // of the image, that an arrow key moves the brush by
const [picture, mask] = [new Image(), document.createElement("canvas")];
let [last, cursor, focused] = [null, { x: 0.5, y: 0.5 }, false];
let shown = null;

const draw = () => {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!picture.naturalWidth) return;
  context.imageSmoothingEnabled = picture.naturalWidth > 96;
  context.globalAlpha = 1;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 0.55;
  context.drawImage(mask, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  if (!focused) return;
  context.strokeStyle = "#ffffff";
  context.lineWidth = 3;
  context.beginPath();
  context.arc(cursor.x * canvas.width, cursor.y * canvas.height, (size.value / 200) * canvas.width, 0, 7);
  context.stroke();
  context.strokeStyle = "#000000";
  context.lineWidth = 1;
  context.stroke();
};
const clear = () => {
  Object.assign(mask, { width: picture.naturalWidth || 1, height: picture.naturalHeight || 1 });
  draw();
};
const paint = (from, to) => {
  const context = mask.getContext("2d");
  context.strokeStyle = "#ff9a00";
  context.lineCap = "round";
  context.lineWidth = Math.max(1, (size.value / 100) * mask.width);
  context.beginPath();
  context.moveTo(from.x * mask.width, from.y * mask.height);
  context.lineTo(to.x * mask.width + 0.01, to.y * mask.height);
  context.stroke();
  draw();
};
const tell = (painted) => {
  props.value = { ...props.value, mask: painted ? mask.toDataURL("image/png") : "" };
  shown = props.value;
};
const show = () => {
  // What this script wrote itself comes back, too.
  if (!props.value || props.value === shown || (shown && props.value.image === shown.image && props.value.mask === shown.mask)) return;
  const [anew, emptied] = [!shown || props.value.image !== shown.image, !props.value.mask];
  shown = props.value;
  element.querySelector(".brush").hidden = !props.value.image;
  if (!props.value.image) return;
  if (!anew) {
    if (emptied) clear();
    return;
  }
  picture.onload = () => {
    const factor = 512 / Math.max(picture.naturalWidth, picture.naturalHeight);
    canvas.width = Math.round(picture.naturalWidth * factor);
    canvas.height = Math.round(picture.naturalHeight * factor);
    clear();
  };
  picture.src = props.value.image;
};

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
};
canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  last = cursor = place(event);
  paint(last, last);
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const next = place(event);
  paint(last, next);
  last = cursor = next;
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (last) tell(true);
    last = null;
  });
}
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (moves[event.key]) {
    const [x, y] = moves[event.key];
    const inside = (value) => Math.min(Math.max(value, 0), 1);
    cursor = { x: inside(cursor.x + x * STEP), y: inside(cursor.y + y * STEP) };
    draw();
  } else if (event.key === " ") {
    paint(cursor, cursor);
    tell(true);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
    tell(false);
  } else return;
  event.preventDefault();
});
canvas.addEventListener("focus", () => {
  focused = canvas.matches(":focus-visible");
  draw();
});
canvas.addEventListener("blur", () => {
  focused = false;
  draw();
});
size.addEventListener("input", draw);
element.querySelector(".clear").addEventListener("click", () => {
  clear();
  tell(false);
});
watch("value", show);
show();
