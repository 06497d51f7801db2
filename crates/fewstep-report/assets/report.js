// Draws the charts of a report from the JSON in it, and keeps an open page up to date. The charting library is in front of this.
"use strict";
(() => {
  const charts = new Map();
  let data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colours = () => [0, 1, 2, 3, 4, 5, 6, 7].map((n) => css("--c" + n));
  const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => "&#" + c.charCodeAt(0) + ";");
  const short = (v) => {
    if (v === null || v === undefined) return "-";
    if (typeof v !== "number") return String(v);
    if (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6)) return v.toExponential(2);
    return String(Number(v.toPrecision(5)));
  };
  // A logarithmic axis of less than a decade has too few marks to read: it becomes a linear one.
  const spread = (a, values) => {
    const seen = values.filter((v) => v !== null && v > 0);
    return { ...a, log: a.log && seen.length > 0 && Math.max(...seen) > 8 * Math.min(...seen) };
  };
  const visible = (axis, v) => v !== null && (!axis.log || v > 0);
  const lettered = { C: "computed", ".": "reused", 1: "forecast, order 1", 2: "forecast, order 2", 3: "forecast, order 3" };

  const axis = (a) => ({
    type: a.log ? "log" : "value", name: a.label, nameLocation: "middle", nameTextStyle: { color: css("--soft") }, scale: true,
    axisLabel: { color: css("--soft"), formatter: short, hideOverlap: true }, axisLine: { lineStyle: { color: css("--line") } }, splitLine: { lineStyle: { color: css("--line"), opacity: 0.6 } },
  });
  const names = (label, all) => ({
    type: "category", data: all, name: label, nameLocation: "middle", nameTextStyle: { color: css("--soft") },
    axisLabel: { color: css("--soft"), hideOverlap: true }, axisLine: { lineStyle: { color: css("--line") } },
  });
  const box = () => ({ backgroundColor: css("--paper"), borderColor: css("--line"), textStyle: { color: css("--ink") }, confine: true });
  const base = (entries) => ({
    color: colours(), animation: false, textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    legend: entries > 1 ? { type: "scroll", top: 0, textStyle: { color: css("--ink") }, pageTextStyle: { color: css("--ink") }, pageIconColor: css("--link") } : undefined,
    grid: { left: 62, right: 18, top: entries > 1 ? 36 : 14, bottom: 46 },
  });

  // What the library is asked to draw, for each kind of plot (see `Plot` in page.rs).
  const kinds = {
    lines: (p) => ({
      ...base(p.series.length),
      tooltip: { ...box(), trigger: "axis", valueFormatter: short },
      dataZoom: [{ type: "inside", zoomOnMouseWheel: "shift" }],
      xAxis: { ...axis(p.x), nameGap: 28, min: p.x.log ? undefined : "dataMin", max: p.x.log ? undefined : "dataMax", splitLine: { show: false } }, yAxis: { ...axis(p.y), nameGap: 46 },
      series: p.series.map((s) => ({
        name: s.name, type: "line", data: s.points.filter(([x, y]) => visible(p.x, x) && visible(p.y, y)), showSymbol: s.points.length < 40, symbolSize: 6,
        lineStyle: { width: 2, type: s.dashed ? "dashed" : "solid" },
      })),
    }),
    points: (p) => ({
      ...base(p.families.length),
      tooltip: { ...box(), formatter: (t) => `<b>${escaped(t.seriesName)}</b> ${escaped(t.value[2])}<br>${escaped(p.x.label)}: ${short(t.value[0])}<br>${escaped(p.y.label)}: ${short(t.value[1])}` },
      xAxis: { ...axis(p.x), nameGap: 28 }, yAxis: { ...axis(p.y), nameGap: 46 },
      series: [...p.families.map((f, n) => ({
        name: f.name, type: "scatter", symbol: ["circle", "rect", "triangle", "diamond", "roundRect", "pin"][n % 6], symbolSize: 11,
        data: f.points.map(([x, y], i) => [x, y, f.labels[i]]).filter(([x, y]) => visible(p.x, x) && visible(p.y, y)),
      })), {
        type: "line", data: p.front.filter(([x, y]) => visible(p.x, x) && visible(p.y, y)), showSymbol: false, silent: true, tooltip: { show: false }, z: 1,
        lineStyle: { color: css("--soft"), type: "dashed", width: 1.5 },
      }],
    }),
    bars: (p) => ({
      ...base(p.series.length),
      tooltip: { ...box(), trigger: "axis", axisPointer: { type: "shadow" }, valueFormatter: short },
      xAxis: { ...names(p.x, p.groups), nameGap: 28 }, yAxis: { ...axis(p.y), nameGap: 46, scale: p.dots },
      series: p.series.map((s) => ({
        name: s.name, data: s.values.map((v) => (v !== null && visible(p.y, v) ? v : "-")),
        ...(p.dots ? { type: "line", symbol: "circle", symbolSize: 9, lineStyle: { width: 1, type: "dotted" } } : { type: "bar" }),
      })),
    }),
    heatmap: (p) => {
      const probabilities = p.cells.of === "probabilities";
      const letters = [...new Set(probabilities ? [] : p.cells.rows.join(""))].sort((a, b) => "C.123".indexOf(a) - "C.123".indexOf(b));
      const cells = [];
      p.rows.forEach((_, r) => p.columns.forEach((_, c) => cells.push([c, r, probabilities ? p.cells.values[r][c] : letters.indexOf(p.cells.rows[r][c])])));
      const shade = { C: css("--h1"), ".": css("--h0"), 1: css("--c4"), 2: css("--c2"), 3: css("--c3") };
      const said = (v) => probabilities ? `${short(v)}: ${v > p.cells.threshold ? "computed" : "reused"} (threshold ${short(p.cells.threshold)})` : lettered[letters[v]];
      return {
        ...base(1),
        grid: { left: 118, right: 18, top: 10, bottom: 92 },
        tooltip: { ...box(), formatter: (t) => `${escaped(p.x)} ${escaped(p.columns[t.value[0]])}<br>${escaped(p.rows[t.value[1]])}<br><b>${escaped(said(t.value[2]))}</b>` },
        xAxis: { ...names(p.x, p.columns), nameGap: 26, splitArea: { show: false } }, yAxis: { ...names("", p.rows), inverse: true },
        visualMap: {
          orient: "horizontal", left: "center", bottom: 0, textStyle: { color: css("--ink") }, dimension: 2,
          ...(probabilities
            ? { type: "continuous", min: 0, max: 1, calculable: true, precision: 2, text: ["computed", "reused"], inRange: { color: [css("--h0"), css("--h1")] } }
            : { type: "piecewise", pieces: letters.map((l, n) => ({ value: n, label: lettered[l], color: shade[l] })) }),
        },
        series: [{ type: "heatmap", data: cells, itemStyle: { borderColor: css("--panel"), borderWidth: 1 } }],
      };
    },
  };

  // The same numbers as a table.
  const tables = {
    lines: (p) => [["curve", p.x.label, p.y.label], p.series.flatMap((s) => s.points.map(([x, y]) => [s.name, short(x), short(y)]))],
    points: (p) => [["family", "setting", p.x.label, p.y.label], p.families.flatMap((f) => f.points.map(([x, y], n) => [f.name, f.labels[n], short(x), short(y)]))],
    bars: (p) => [[p.x, ...p.series.map((s) => s.name)], p.groups.map((g, n) => [g, ...p.series.map((s) => short(s.values[n]))])],
    heatmap: (p) => [[p.y, ...p.columns], p.rows.map((r, n) => [r, ...(p.cells.of === "probabilities" ? p.cells.values[n].map(short) : [...p.cells.rows[n]])])],
  };
  const fill = (details, plot) => {
    details.querySelector(".table")?.remove();
    const [header, rows] = tables[plot.kind](plot);
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0;
    frame.setAttribute("role", "group");
    frame.setAttribute("aria-label", "The chart's numbers");
    const table = frame.appendChild(document.createElement("table"));
    const line = (parent, cells, tag) => {
      const tr = parent.appendChild(document.createElement("tr"));
      cells.forEach((text, n) => {
        const cell = tr.appendChild(document.createElement(tag === "th" || n === 0 ? "th" : "td"));
        cell.textContent = text;
        if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
      });
    };
    line(table.createTHead(), header, "th");
    const body = table.createTBody();
    rows.forEach((row) => line(body, row, "td"));
    details.append(frame);
  };

  const draw = (figure) => {
    const id = figure.dataset.chart;
    const chart = data[id];
    const place = figure.querySelector(".plot");
    if (!chart || place.clientWidth === 0) return;
    if (chart.plot.kind === "heatmap") place.style.height = Math.max(240, 118 + 17 * chart.plot.rows.length) + "px";
    let drawn = charts.get(id);
    if (!drawn) {
      drawn = echarts.init(place, null, { renderer: "svg" });
      charts.set(id, drawn);
      new ResizeObserver(() => drawn.resize()).observe(place);
    }
    const p = chart.plot;
    // Both may name figures, which change while a run goes on.
    figure.querySelector("h3").textContent = chart.title;
    figure.querySelector("figcaption p").textContent = chart.description;
    place.setAttribute("aria-label", `${chart.title}. ${chart.description}`);
    const values = { lines: () => p.series.flatMap((s) => s.points.map((q) => q[1])), points: () => p.families.flatMap((f) => f.points.map((q) => q[1])), bars: () => p.series.flatMap((s) => s.values) }[p.kind];
    drawn.setOption(kinds[p.kind](values ? { ...p, y: spread(p.y, values()) } : p), true);
    const numbers = figure.querySelector(".numbers");
    if (numbers.open) fill(numbers, chart.plot);
  };
  const drawAll = () => document.querySelectorAll("[data-chart]").forEach(draw);

  const attach = () => {
    document.querySelectorAll(".numbers").forEach((details) => {
      const id = details.closest("[data-chart]").dataset.chart;
      details.addEventListener("toggle", () => details.open && fill(details, data[id].plot));
    });
    document.querySelectorAll(".choice select").forEach((select) => {
      select.addEventListener("change", () => {
        const group = select.closest(".choice");
        group.querySelectorAll("[data-choice]").forEach((one) => (one.hidden = one.dataset.choice !== select.value));
        group.querySelectorAll("[data-choice]:not([hidden]) [data-chart]").forEach(draw);
      });
    });
    document.querySelectorAll(".pictures").forEach((figure) => {
      const stack = figure.querySelector(".stack");
      const [left, right] = [figure.querySelector("select.left"), figure.querySelector("select.right")];
      const show = () => stack.querySelectorAll("img").forEach((img) => {
        const side = img.dataset.n === left.value ? "left" : img.dataset.n === right.value ? "right" : "";
        img.className = side;
        img.hidden = side === "";
      });
      left?.addEventListener("change", show);
      right?.addEventListener("change", show);
      const range = figure.querySelector("input[type=range]");
      range?.addEventListener("input", () => stack.style.setProperty("--cut", range.value + "%"));
    });
    document.querySelectorAll("[data-copy]").forEach((button) => {
      button.addEventListener("click", async () => {
        const code = document.getElementById(button.dataset.copy);
        try {
          await navigator.clipboard.writeText(code.textContent);
          button.textContent = "Copied";
        } catch {
          // Not allowed: select it, so that a key can copy it.
          getSelection().selectAllChildren(code);
          button.textContent = "Selected";
        }
      });
    });
    drawAll();
  };

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    drawAll();
  });
  dark.addEventListener("change", drawAll);
  // Paper is white.
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; drawAll(); });
  addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; drawAll(); });

  attach();

  // A run that goes on.
  if (root.dataset.events) {
    let structure = root.dataset.structure;
    const live = document.getElementById("live");
    const source = new EventSource(root.dataset.events);
    source.onopen = () => (live.textContent = "live");
    source.onerror = () => (live.textContent = "not connected; trying again");
    source.onmessage = async (event) => {
      const update = JSON.parse(event.data);
      if (update.structure !== structure) {
        // Something is there that was not: take the whole page, and stay where the reader is.
        const answer = await fetch(location.href);
        // A file that is being replaced: the next update finds it whole.
        if (!answer.ok) return;
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        charts.forEach((chart) => chart.dispose());
        charts.clear();
        data = JSON.parse(page.getElementById("data").textContent);
        document.getElementById("main").replaceChildren(...page.getElementById("main").childNodes);
        if (typeof echarts === "undefined" && Object.keys(data).length) location.reload();
        else attach();
      } else {
        data = update.charts;
        Object.entries(update.blocks).forEach(([id, html]) => {
          const block = document.getElementById(id);
          if (block && block.innerHTML !== html) block.innerHTML = html;
        });
        drawAll();
      }
      document.getElementById("subtitle").textContent = update.subtitle;
      structure = update.structure;
    };
  }
})();
