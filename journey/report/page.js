// Shows one generated image at one step, for the whole image or one of its regions. Texts enter as text alone.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const SLOTS = 6; // images pinned at most: as many line styles as can be told apart
  const PERIOD = 700; // milliseconds per step while playing
  const FRAME = 52; // pixels of a picture of the film at most
  const last = data.timesteps.length - 1;
  const state = { query: 0, step: Math.floor((last + 1) / 2), scope: 0, pins: [], tab: "training" }; // pins: an id or null per line style
  let sources = {};
  let moves = [];
  let timer = 0;
  let writing = 0;

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const number = (value) => {
    const size = Math.abs(value);
    const text = size >= 1e-3 && size < 999.5 ? size.toPrecision(3) : size.toExponential(1).replace("e+", "e");
    return (value < 0 ? "−" : "+") + text.replace("e-", "e−");
  };
  const caption = (id) => data.training[id][1];
  const nameOf = (id) => (caption(id) ? `training image ${id}, ${caption(id)}` : `training image ${id}`);
  const titleOf = (query) => data.queries[query].caption || `Generated image ${query + 1}`;
  const scope = () => data.queries[state.query].scopes[state.scope];

  // Every sheet is decoded once, into a canvas that stays in memory.
  const load = async () => {
    const open = async (uri) => {
      const image = new Image();
      await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject, src: uri }));
      const sheet = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
      sheet.getContext("2d").drawImage(image, 0, 0);
      return sheet;
    };
    for (const [kind, sheets] of Object.entries(data.sheets)) {
      sources[kind] = await Promise.all(sheets.uris.map(open));
    }
  };
  const put = (context, kind, tile, x, y) => {
    const { width, height, columns, perSheet } = data.sheets[kind];
    const place = tile % perSheet;
    const [left, top] = [(place % columns) * width, Math.floor(place / columns) * height];
    context.drawImage(sources[kind][Math.floor(tile / perSheet)], left, top, width, height, x, y, width, height);
  };
  const draw = (canvas, kind, tile, words) => {
    const { width, height, sharp } = data.sheets[kind];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.classList.toggle("sharp", sharp);
    put(canvas.getContext("2d"), kind, tile, 0, 0);
    if (words) canvas.setAttribute("aria-label", words);
    return canvas;
  };

  // A training image as a button that pins it. Made once per place and filled again at every step.
  const makeCard = (side) => {
    const card = { id: -1 };
    card.canvas = make("canvas");
    card.canvas.setAttribute("aria-hidden", "true");
    card.name = make("span", { className: "id" });
    card.words = make("bdi");
    card.value = make("span", { className: "value" });
    card.line = make("i");
    card.bar = make("span", { className: "bar" }, make("span"), card.line);
    card.button = make("button", { type: "button" }, card.canvas, card.bar, card.name, card.words, card.value);
    card.button.addEventListener("click", () => togglePin(card.id));
    card.node = make("li", { className: side }, card.button);
    return card;
  };
  // The score is somewhere on the line: two standard errors to either side.
  const showMargin = (line, from, to) => {
    const [left, right] = [from, to].map((share) => Math.min(Math.max(100 * share, 0), 100));
    Object.assign(line.style, { left: `${left}%`, width: `${right - left}%` });
  };
  const fillCard = (card, [id, value, margin], strongest) => {
    card.id = id;
    const size = Math.abs(value);
    card.line.hidden = margin === null;
    if (margin !== null) showMargin(card.line, (size - margin) / strongest, (size + margin) / strongest);
    card.button.classList.toggle("unsure", margin !== null && margin >= size);
    card.value.title = margin === null ? "" : `± ${number(margin).slice(1)}, two standard errors`;
    draw(card.canvas, "training", data.training[id][0]);
    card.name.textContent = card.name.title = `#${id}`;
    card.words.textContent = card.words.title = caption(id);
    card.value.textContent = number(value);
    card.bar.firstChild.style.width = `${(100 * Math.abs(value)) / strongest}%`;
    markPin(card);
    return card.node;
  };
  const markPin = (card) => {
    const slot = state.pins.indexOf(card.id);
    card.button.setAttribute("aria-pressed", String(slot >= 0));
    for (let i = 0; i < SLOTS; i++) card.button.classList.toggle(`pin${i}`, i === slot);
  };
  const cards = { pro: [], opp: [] };
  let quotes = []; // cards below the likelihood curves
  const fillSide = (side) => {
    const list = find(side);
    const [pro, opp] = [scope().pro[state.step], scope().opp[state.step]];
    const entries = side === "pro" ? pro : opp;
    const strongest = Math.max(...[...pro, ...opp].map(([, value, margin]) => Math.abs(value) + margin), 0) || 1;
    while (cards[side].length < entries.length) {
      const card = makeCard(side);
      cards[side].push(card);
      list.append(card.node);
    }
    cards[side].forEach((card, i) => {
      card.node.hidden = i >= entries.length;
      if (!card.node.hidden) fillCard(card, entries[i], strongest);
    });
    list.classList.toggle("empty", entries.length === 0);
    list.dataset.empty = `No training image has a ${side === "pro" ? "positive" : "negative"} score at this step.`;
  };

  // The sums of groups, the highest first; the last may be what is in no group.
  const showGroups = () => {
    if (!data.groups.length) return;
    const rows = scope().groups[state.step].map((row, i) => [row, data.groups[i]]);
    rows.sort(([[a]], [[b]]) => b - a);
    const ends = rows.flatMap(([[sum, margin]]) => [sum - margin, sum + margin]); // an unknown margin is null, here 0
    const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
    const at = (value) => (high > low ? (value - low) / (high - low) : 0);
    const made = rows.map(([[sum, margin, share], [name, count]]) => {
      const side = margin === null || Math.abs(sum) <= margin ? "within" : sum > 0 ? "pro" : "opp";
      const fill = make("span");
      const [from, to] = [Math.min(at(sum), at(0)), Math.max(at(sum), at(0))];
      Object.assign(fill.style, { left: `${100 * from}%`, width: `${100 * (to - from)}%` });
      const [zero, line] = [make("i", { className: "zero" }), make("i", { hidden: margin === null })];
      zero.style.left = `${100 * at(0)}%`;
      showMargin(line, at(sum - margin), at(sum + margin));
      const told = margin === null ? "" : ` ± ${number(margin).slice(1)}`;
      const percent = `${share < 0 ? "−" : "+"}${Math.abs(share).toFixed(1)} %`;
      return make(
        "li",
        {},
        make("span", {}, make("bdi", { textContent: name, title: name }), make("span", { className: "soft", textContent: `${count} image${count === 1 ? "" : "s"}` })),
        make("span", { className: `bar ${side}` }, fill, line, zero),
        make("span", { className: `value ${side}` }, `${number(sum)}${told}`, make("br"), make("span", { className: "soft", textContent: `share ${percent}` })),
      );
    });
    find("bars").replaceChildren(...made);
  };
  const chooseTab = (name) => {
    state.tab = name;
    for (const button of find("tabs").children) button.setAttribute("aria-pressed", String(button.value === name));
    for (const part of ["training", "groups"]) find(part).hidden = part !== name;
    remember();
  };

  const showStep = () => {
    const query = data.queries[state.query];
    const t = data.timesteps[state.step];
    const words = `step ${state.step + 1} of ${last + 1}, t = ${t}`;
    const range = find("step");
    range.value = String(state.step);
    range.setAttribute("aria-valuetext", words);
    find("where").textContent = words;
    draw(find("noisy"), "noisy", query.noisy[state.step], `noisy image at t = ${t}`);
    draw(find("predicted"), "predicted", query.predicted[state.step], `predicted image at t = ${t}`);
    fillSide("pro");
    fillSide("opp");
    showGroups();
    const [best] = scope().pro[state.step];
    find("spoken").textContent = `${words}. ${best ? `Strongest proponent: ${nameOf(best[0])}` : "No proponent"}.`;
    for (const move of moves) move(t);
    markFilm();
  };
  const go = (step) => {
    const wanted = Math.min(Math.max(step, 0), last);
    if (wanted === state.step) return;
    state.step = wanted;
    showStep();
    remember();
  };
  const nearest = (t) => {
    const gaps = data.timesteps.map((time) => Math.abs(time - t));
    return gaps.indexOf(Math.min(...gaps));
  };

  // The film: predicted images below noisy ones, as many as there is room for; a press goes to the nearest step.
  const filmSteps = () => {
    const room = Math.max(2, Math.floor(find("film").clientWidth / 30));
    const count = Math.min(last + 1, room);
    return Array.from({ length: count }, (_, i) => (count === 1 ? 0 : Math.round((i * last) / (count - 1))));
  };
  const drawFilm = () => {
    const film = find("film");
    const { width, height } = data.sheets.predicted;
    const noisy = data.sheets.noisy;
    // Few steps do not fill the page: the film stays on top of it when the rest is scrolled.
    film.style.maxWidth = `${FRAME * (last + 1)}px`;
    const steps = filmSteps();
    const side = Math.max(16, Math.round((film.clientWidth / steps.length) * Math.min(devicePixelRatio, 2)));
    const tall = Math.round((side * height) / width);
    Object.assign(film, { width: side * steps.length, height: 2 * tall });
    film.plain = make("canvas", { width: film.width, height: film.height });
    const context = film.plain.getContext("2d");
    context.imageSmoothingEnabled = !data.sheets.predicted.sharp;
    const stamp = make("canvas");
    steps.forEach((step, i) => {
      draw(stamp, "noisy", data.queries[state.query].noisy[step]);
      context.drawImage(stamp, 0, 0, noisy.width, noisy.height, i * side, 0, side - 2, tall - 2);
      draw(stamp, "predicted", data.queries[state.query].predicted[step]);
      context.drawImage(stamp, 0, 0, width, height, i * side, tall, side - 2, tall - 2);
    });
    markFilm();
  };
  const markFilm = () => {
    const film = find("film");
    if (!film.plain) return;
    const steps = filmSteps();
    const gaps = steps.map((step) => Math.abs(step - state.step));
    const place = gaps.indexOf(Math.min(...gaps));
    const side = film.width / steps.length;
    const context = film.getContext("2d");
    context.clearRect(0, 0, film.width, film.height);
    context.drawImage(film.plain, 0, 0);
    context.strokeStyle = getComputedStyle(film).color;
    context.lineWidth = Math.max(3, side / 16);
    const half = context.lineWidth / 2;
    context.strokeRect(place * side + half, half, side - 2 - 2 * half, film.height - 2 - 2 * half);
  };

  const axis = (onInterval) => {
    const times = data.queries[state.query].features.flatMap((feature) => feature.timesteps).concat(data.timesteps);
    return {
      first: Math.max(...times),
      last: Math.min(...times),
      interval: onInterval,
      onPick: (t) => go(nearest(t)),
    };
  };
  const showCharts = () => {
    const query = data.queries[state.query];
    const pins = state.pins
      .map((id, slot) => ({ id, slot, values: scope().curves[id]}))
      .filter(({ id }) => id !== null);
    const svg = find("curves").querySelector("svg");
    const decided = query.features.find((feature) => feature.interval);
    moves = [charts.scores(svg, axis(decided && decided.interval), data.timesteps, pins)];
    const told = pins.map(({ id, values }) => `${nameOf(id)}: ${values.map((v, i) => `t = ${data.timesteps[i]}: ${v} %`)}`);
    svg.setAttribute("aria-label", told.join(". ") || "No image is pinned.");
    find("pins").replaceChildren(
      ...pins.map(({ id, slot }) => {
        const picture = draw(make("canvas"), "training", data.training[id][0]);
        picture.setAttribute("aria-hidden", "true");
        const button = make("button", { type: "button", className: `pin${slot}` }, picture, `#${id} `, make("bdi", { textContent: caption(id) }), " ×");
        button.setAttribute("aria-label", `Take off ${nameOf(id)}`);
        button.addEventListener("click", () => {
          togglePin(id);
          (find("pins").querySelector("button") || find("pro").querySelector("button")).focus();
        });
        return make("li", {}, button);
      }),
    );
    query.features.forEach((feature, i) => {
      moves.push(charts.likelihood(find(`feature${i}`), axis(feature.interval), feature));
    });
    for (const move of moves) move(data.timesteps[state.step]);
  };
  const togglePin = (id) => {
    const slot = state.pins.indexOf(id);
    const free = state.pins.indexOf(null);
    if (slot >= 0) state.pins[slot] = null;
    else state.pins[free >= 0 ? free : SLOTS - 1] = id;
    for (const card of [...cards.pro, ...cards.opp, ...quotes]) markPin(card);
    showCharts();
  };

  const quote = (heading, entries) => {
    const made = entries.map((entry) => {
      const card = makeCard("pro");
      fillCard(card, entry, Math.abs(entries[0][1]) || 1);
      return card;
    });
    quotes.push(...made);
    const list = make("ol", { className: "cards row" }, ...made.map((card) => card.node));
    return make("div", {}, make("h4", { textContent: heading }), list);
  };
  const showFeatures = () => {
    quotes = [];
    const parts = data.queries[state.query].features.map((feature, i) => {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.id = `feature${i}`;
      svg.setAttribute("role", "img");
      const told = feature.timesteps.map((t, s) => `t = ${t}: ${feature.likelihood[s]} %, ${feature.lower[s]} to ${feature.upper[s]}`);
      svg.setAttribute("aria-label", `Likelihood of “${feature.name}” with its band. ${told.join("; ")}`);
      const about =
        `Share of ${feature.completions} images completed from the noisy image that have it, with its ${feature.confidence} % band` +
        (feature.interval ? "; shaded where it is decided, the dot and its bar are the midpoint and its uncertainty." : ".");
      const section = make(
        "section",
        { className: "chart" },
        make("h3", {}, "When is “", make("bdi", { textContent: feature.name }), "” decided?"),
        make("p", { className: "soft", textContent: about }),
        svg,
      );
      if (feature.inside.length) {
        const [after, before] = feature.interval;
        section.append(quote(`Proponents while it is decided, t = ${before} to ${after}`, feature.inside));
        if (feature.before.length) section.append(quote(`Proponents before, t > ${before}`, feature.before));
      }
      return section;
    });
    find("features").replaceChildren(...parts);
  };

  const chooseScope = (index) => {
    state.scope = index;
    const box = scope().box;
    for (const button of find("boxes").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.scope) === index));
    }
    for (const input of find("scopes").querySelectorAll("input")) input.checked = Number(input.value) === index;
    find("boxes").classList.toggle("chosen", Boolean(box));
    showStep();
    showCharts();
    remember();
  };
  const showScopes = () => {
    const { scopes } = data.queries[state.query];
    const boxes = [];
    const choices = scopes.map(({ name, box }, i) => {
      const words = name || (box ? "the boxed region" : "whole image");
      const input = make("input", { type: "radio", name: "scope", value: String(i), checked: i === state.scope });
      input.addEventListener("change", () => chooseScope(i));
      if (box) {
        const [top, left, bottom, right] = box;
        const button = make("button", { type: "button", title: words });
        button.dataset.scope = String(i);
        button.setAttribute("aria-label", `Attribute ${words}`);
        Object.assign(button.style, { top: `${top}%`, left: `${left}%`, height: `${bottom - top}%`, width: `${right - left}%` });
        button.addEventListener("click", () => chooseScope(state.scope === i ? 0 : i));
        boxes.push(button);
      }
      return make("label", {}, input, make("bdi", { textContent: words }));
    });
    find("scopes").replaceChildren(find("scopes").querySelector("legend"), ...choices);
    find("scopes").hidden = scopes.length < 2;
    find("boxes").replaceChildren(...boxes);
  };

  const chooseQuery = (index) => {
    state.query = index;
    const query = data.queries[index];
    state.scope = Math.min(state.scope, query.scopes.length - 1);
    // Pinned at first: who changes sides, and the strongest of the step shown.
    const best = [query.scopes[0].pro[state.step][0], query.scopes[0].opp[state.step][0]];
    const pins = [...new Set([...query.pins, ...best.filter(Boolean).map(([id]) => id)])];
    state.pins = Array.from({ length: SLOTS }, (_, slot) => pins[slot] ?? null);
    find("name").textContent = titleOf(index);
    find("story").replaceChildren(...query.story.map((sentence) => make("p", { textContent: sentence })));
    for (const button of find("gallery").querySelectorAll("button")) {
      if (Number(button.value) === index) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    draw(find("image"), "predicted", query.image, `final image: ${titleOf(index)}`);
    showScopes();
    showFeatures();
    drawFilm();
    chooseScope(state.scope);
  };
  // The address says what is shown, once it rests: browsers refuse many changes in a row.
  const remember = () => {
    clearTimeout(writing);
    if (embedded) {
      writing = setTimeout(tellParent, 50);
      return;
    }
    const address = `#image-${state.query + 1},t-${data.timesteps[state.step]},region-${state.scope}`;
    writing = setTimeout(() => history.replaceState(null, "", address), 300);
  };
  const fromAddress = () => {
    const found = /^#image-(\d+),t-(\d+),region-(\d+)$/.exec(location.hash);
    if (!found) return;
    const [query, t, region] = found.slice(1).map(Number);
    state.step = nearest(t);
    state.query = Math.min(Math.max(query - 1, 0), data.queries.length - 1);
    state.scope = Math.min(region, data.queries[state.query].scopes.length - 1);
  };

  // Inside another page (journey app), which replaces this one when there is more to show: it keeps the place.
  const embedded = parent !== window;
  document.documentElement.classList.toggle("embedded", embedded);
  const tellParent = () => {
    const place = { t: data.timesteps[state.step], scope: state.scope, tab: state.tab, pins: state.pins };
    parent.postMessage({ journey: "place", place, height: document.body.offsetHeight }, "*");
  };
  const open = ({ t, scope, tab, pins }) => {
    const { scopes } = data.queries[state.query];
    if (Number.isFinite(t)) state.step = nearest(t);
    if (Number.isInteger(scope) && scopes[scope]) state.scope = scope;
    if (Array.isArray(pins)) state.pins = Array.from({ length: SLOTS }, (_, i) => (pins[i] in data.training ? pins[i] : null));
    chooseScope(state.scope);
    if (tab === "training" || (tab === "groups" && data.groups.length)) chooseTab(tab);
  };

  const play = (on) => {
    clearInterval(timer);
    timer = 0;
    const button = find("play");
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Pause" : "Play";
    if (!on) return;
    if (state.step === last) go(0);
    timer = setInterval(() => (state.step < last ? go(state.step + 1) : play(false)), PERIOD);
  };
  const listen = () => {
    find("step").addEventListener("input", () => {
      play(false);
      go(Number(find("step").value));
    });
    find("play").addEventListener("click", () => play(timer === 0));
    find("film").addEventListener("click", (event) => {
      const box = find("film").getBoundingClientRect();
      const steps = filmSteps();
      go(steps[Math.min(steps.length - 1, Math.floor(((event.clientX - box.left) / box.width) * steps.length))]);
    });
    document.addEventListener("keydown", (event) => {
      // Sliders and choices have their own use for the arrow keys.
      if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target instanceof HTMLInputElement) return;
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      play(false);
      go(state.step + (event.key === "ArrowRight" ? 1 : -1));
    });
    addEventListener("hashchange", () => {
      fromAddress();
      chooseQuery(state.query);
    });
    addEventListener("resize", () => {
      drawFilm();
      showCharts();
    });
    for (const button of find("tabs").children) button.addEventListener("click", () => chooseTab(button.value));
    if (embedded) {
      new ResizeObserver(remember).observe(document.body);
      addEventListener("message", (event) => {
        if (event.source === parent && event.data && event.data.journey === "open") open(event.data.place);
      });
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", markFilm);
  };

  const start = async () => {
    await load();
    find("page").hidden = false;
    find("scrubber").hidden = last === 0;
    find("curves").hidden = last === 0;
    find("gallery").replaceChildren(
      ...data.queries.map((query, i) => {
        const picture = draw(make("canvas"), "predicted", query.image);
        picture.setAttribute("aria-hidden", "true");
        const button = make("button", { type: "button", value: String(i) }, picture, make("bdi", { textContent: titleOf(i) }));
        button.addEventListener("click", () => chooseQuery(i));
        return make("li", {}, button);
      }),
    );
    find("noise").hidden = !data.queries.some(({ scopes }) => scopes.some(({ pro }) => pro.some((step) => step.some(([, , margin]) => margin !== null))));
    find("tabs").hidden = data.groups.length === 0;
    find("unnamed").textContent = data.unnamed ? `and ${data.unnamed} more groups, with smaller shares` : "";
    find("gallery").parentNode.hidden = data.queries.length === 1;
    const decided = data.queries[0].features.find((feature) => feature.midpoint);
    if (decided) state.step = nearest(decided.midpoint[2]);
    fromAddress();
    listen();
    chooseQuery(state.query);
    document.documentElement.classList.add("ready");
    if (embedded) parent.postMessage({ journey: "ready" }, "*");
  };
  start();
})();
