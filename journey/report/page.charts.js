// Draws the two kinds of charts, both over timesteps from noise on the left to the image on the right.
const charts = (() => {
  "use strict";
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const HEIGHT = 220;
  const MARGIN = { top: 14, right: 14, bottom: 34, left: 46 };

  const add = (parent, tag, attributes, text) => {
    const node = document.createElementNS(NAMESPACE, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };

  // Timesteps for the labels of the axis: round numbers, as many as there is room for.
  const rounded = (first, last, room) => {
    const least = ((first - last) * 48) / Math.max(room, 60);
    const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least);
    const found = [];
    for (let t = Math.ceil(last / step) * step; t <= first; t += step) found.push(t);
    return found;
  };

  // Empties the svg and draws its axes; returns how to draw on it.
  const frame = (svg, { first, last, low, high, marks, interval, onPick }) => {
    const width = Math.max(svg.clientWidth, 240);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
    const x = (t) => MARGIN.left + (first === last ? 0.5 : (first - t) / (first - last)) * inner.width;
    const y = (v) => MARGIN.top + ((high - v) / (high - low)) * inner.height;
    const base = MARGIN.top + inner.height;
    if (interval) {
      const [after, before] = interval;
      const [left, right] = [Math.max(x(before), MARGIN.left), Math.min(x(after), width - MARGIN.right)];
      add(svg, "rect", { class: "interval", x: left, y: MARGIN.top, width: right - left, height: inner.height });
    }
    for (const [value, words] of marks) {
      add(svg, "path", { class: "rule", d: `M${MARGIN.left} ${y(value)}H${width - MARGIN.right}` });
      add(svg, "text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, words);
    }
    for (const t of rounded(first, last, inner.width)) {
      add(svg, "text", { x: x(t), y: base + 16, "text-anchor": "middle" }, t);
    }
    add(svg, "text", { x: MARGIN.left, y: base + 30 }, "noise");
    add(svg, "text", { x: width - MARGIN.right, y: base + 30, "text-anchor": "end" }, "image");
    add(svg, "text", { x: MARGIN.left + inner.width / 2, y: base + 30, "text-anchor": "middle" }, "timestep t");
    const cursor = add(svg, "path", { class: "cursor" });
    svg.onclick = (event) => {
      const box = svg.getBoundingClientRect();
      const at = (((event.clientX - box.left) / box.width) * width - MARGIN.left) / inner.width;
      onPick(first - at * (first - last));
    };
    return { x, y, move: (t) => cursor.setAttribute("d", `M${x(t)} ${MARGIN.top}V${base}`) };
  };

  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

  // Scores of pinned images: [{ slot, values }], values in percent of the strongest score of each step.
  const scores = (svg, axis, times, pins) => {
    const marks = [[100, "helps"], [0, "0"], [-100, "hurts"]];
    const plane = frame(svg, { ...axis, low: -108, high: 108, marks });
    for (const { slot, values } of pins) {
      const points = values.map((value, i) => [plane.x(times[i]), plane.y(value)]);
      add(svg, "path", { class: `line pin${slot}`, d: path(points) });
      for (const [cx, cy] of points) add(svg, "circle", { class: `dot pin${slot}`, cx, cy, r: times.length > 40 ? 1.5 : 3 });
    }
    return plane.move;
  };

  // The likelihood of a feature with its confidence band, in percent.
  const likelihood = (svg, axis, feature) => {
    const marks = [[100, "100 %"], [50, "50 %"], [0, "0 %"]];
    const plane = frame(svg, { ...axis, low: 0, high: 104, marks });
    const at = (values) => values.map((value, i) => [plane.x(feature.timesteps[i]), plane.y(value)]);
    add(svg, "path", { class: "band", d: `${path([...at(feature.upper), ...at(feature.lower).reverse()])}Z` });
    add(svg, "path", { class: "line", d: path(at(feature.likelihood)) });
    for (const [cx, cy] of at(feature.likelihood)) add(svg, "circle", { class: "dot", cx, cy, r: 3.5 });
    if (feature.midpoint) {
      const [lower, upper, middle] = feature.midpoint;
      const height = plane.y(50);
      add(svg, "path", { class: "middle", d: `M${plane.x(upper)} ${height}H${plane.x(lower)}` });
      add(svg, "circle", { class: "middle", cx: plane.x(middle), cy: height, r: 5 });
    }
    return plane.move;
  };

  return { likelihood, scores };
})();
