// Looks again every few seconds, puts newer parts in the place of older ones, and draws charts from tables.
"use strict";

(() => {
  const EVERY_MS = 5000;
  const SLOWEST_MS = 60000;
  const ALL = "[data-live]";
  const trouble = document.getElementById("trouble");
  const pause = document.getElementById("pause");
  let paused = false;
  let failures = 0;
  let timer = 0;
  let asking = false;

  const parts = (of) => [...of.querySelectorAll(ALL)].map((part) => part.id).join();

  // What holds a table stays: it may have the focus, or be scrolled to the side.
  function put(newer, part) {
    const shown = [...part.children];
    const alike = (each, at) => each.tagName === shown[at].tagName && each.ariaLabel === shown[at].ariaLabel;
    if (newer.length !== shown.length || !newer.every(alike)) return part.replaceChildren(...newer);
    newer.forEach((each, at) => each.innerHTML === shown[at].innerHTML || shown[at].replaceChildren(...each.childNodes));
  }

  function renew(fresh) {
    // A store went away or came back: other parts than before.
    if (parts(fresh) !== parts(document)) return location.reload();
    for (const part of document.querySelectorAll(ALL)) {
      const newer = fresh.getElementById(part.id);
      if (newer !== null && newer.innerHTML !== part.innerHTML) put([...newer.children], part);
    }
    document.dispatchEvent(new Event("renewed"));
  }

  async function look() {
    if (asking) return;
    asking = true;
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(EVERY_MS * 2) });
      if (answer.status === 401) {
        location.reload();
        return;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
      failures = 0;
      trouble.textContent = "";
    } catch {
      failures += 1;
      trouble.textContent = "The server does not answer; the figures are those of the time above.";
    } finally {
      asking = false;
      plan();
    }
  }

  function plan() {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(look, Math.min(SLOWEST_MS, EVERY_MS * 2 ** Math.min(failures, 4)));
  }

  // The table of days as uPlot takes it, oldest first: seconds, dollars spent, dollars saved.
  function figures(name) {
    const rows = [...document.querySelectorAll(`#${CSS.escape(name)} tbody tr`)].reverse();
    const amount = (row, at) => Number(row.querySelectorAll("data")[at].value);
    return [
      rows.map((row) => Date.parse(row.querySelector("time").dateTime) / 1000),
      rows.map((row) => amount(row, 0)),
      rows.map((row) => amount(row, 1)),
    ];
  }

  function options(place) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const bars = (name, align) => ({ stroke: colour(name), fill: colour(name), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.4, 24], align }) });
    const dollars = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumSignificantDigits: 3 });
    const day = new Intl.DateTimeFormat("en-CA", { timeZone: "UTC", month: "2-digit", day: "2-digit" });
    return {
      width: place.clientWidth,
      height: place.clientHeight,
      padding: [12, 16, 0, 8],
      cursor: { show: false },
      legend: { show: false },
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
      scales: { x: { range: (_, first, last) => [first - 57600, last + 57600] }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.05 : 1] } },
      axes: [
        { ...axis, values: (_, seconds) => seconds.map((each) => day.format(new Date(each * 1e3))), incrs: [1, 2, 5, 7, 10].map((each) => each * 86400), space: 56, size: 28 },
        { ...axis, values: (_, all) => all.map((each) => dollars.format(each)), size: 72, space: 32 },
      ],
      series: [{}, bars("--accent", -1), bars("--saved", 1)],
    };
  }

  function chart(place) {
    place.closest("figure").hidden = false;
    let drawn = null;
    const draw = () => {
      if (drawn !== null) drawn.destroy();
      drawn = new uPlot(options(place), figures(place.dataset.chart), place);
    };
    draw();
    document.addEventListener("renewed", () => drawn.setData(figures(place.dataset.chart)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    new ResizeObserver(() => {
      if (place.clientWidth !== drawn.width) drawn.setSize({ width: place.clientWidth, height: place.clientHeight });
    }).observe(place);
    const figuresShown = document.getElementById(place.dataset.chart).closest("details");
    if (figuresShown !== null) figuresShown.open = false;
  }

  if (pause !== null) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      if (paused) clearTimeout(timer);
      else look();
    });
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : paused || look()));
  for (const place of document.querySelectorAll("[data-chart]")) chart(place);
  plan();
})();
