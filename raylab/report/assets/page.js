"use strict";
(() => {
  const { tones, figures } = JSON.parse(document.getElementById("content").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 860px)");
  const hidden = new Set();
  const config = { responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  // Colours are named by tones; a light and a dark page give them other values.
  function paint(plot) {
    const tone = tones[dark.matches ? "dark" : "light"];
    for (const trace of plot.data) {
      const colour = tone[trace.meta.tone];
      if (trace.line) trace.line.color = colour;
      if (trace.marker && trace.meta.outline) trace.marker.line.color = colour;
      else if (trace.marker) trace.marker.color = colour;
      trace.visible = !hidden.has(trace.meta.run);
    }
    const layout = plot.layout;
    layout.font.color = tone.text;
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: tone.card, bordercolor: tone.axis,
      font: { ...layout.hoverlabel.font, color: tone.text } };
    for (const axis of [layout.xaxis, layout.yaxis]) {
      axis.gridcolor = tone.grid;
      axis.linecolor = axis.tickcolor = axis.dividercolor = tone.axis;
    }
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: tone.muted, activecolor: tone.text };
    layout.margin = { ...layout.margin, l: narrow.matches ? 44 : 56, r: narrow.matches ? 4 : 12 };
    return plot;
  }

  const drawn = figures.map(({ name, windows, plot }) => {
    const place = document.getElementById(`plot-${name}`);
    paint(plot);
    // When the window changes, a plot takes the size of its place.
    place.style.height = `${plot.layout.height}px`;
    Plotly.newPlot(place, plot.data, plot.layout, config);
    for (const button of place.closest("figure").querySelectorAll("[data-zoom]")) {
      const [, first, last] = windows[button.dataset.zoom];
      button.addEventListener("click", () => Plotly.relayout(place, { "xaxis.range": [first, last] }));
    }
    return place;
  });

  const repaint = () => drawn.forEach((place) => {
    paint(place);
    Plotly.react(place, place.data, place.layout, config);
  });
  dark.addEventListener("change", repaint);
  narrow.addEventListener("change", repaint);

  for (const chip of document.querySelectorAll("[data-toggle]")) {
    chip.addEventListener("click", () => {
      const run = Number(chip.dataset.toggle);
      const shown = hidden.delete(run);
      if (!shown) hidden.add(run);
      chip.setAttribute("aria-pressed", String(shown));
      for (const part of document.querySelectorAll(`[data-run="${run}"]`)) part.hidden = !shown;
      for (const place of drawn) {
        const traces = place.data.flatMap((trace, i) => (trace.meta.run === run ? [i] : []));
        if (traces.length) Plotly.restyle(place, { visible: shown }, traces);
        // A plot that was drawn while its card was hidden has not had a size yet.
        else if (shown && place.closest(`[data-run="${run}"]`)) Plotly.Plots.resize(place);
      }
    });
  }

  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), body = button.closest("table").tBodies[0];
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[button.dataset.sort].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        // What has no value stands last, either way.
        if (!x || !y) return !x - !y;
        return (down ? -1 : 1) * (x - y || x.localeCompare(y, "en", { numeric: true }));
      });
      body.append(...rows);
    });
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy);
      getSelection().selectAllChildren(text);
      try {
        await navigator.clipboard.writeText(text.textContent);
      } catch {
        // Not allowed, say in a frame: what is selected is copied the old way.
        if (!document.execCommand("copy")) return;
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  const only = document.getElementById("only-differences");
  only?.addEventListener("change", () =>
    document.getElementById("config").classList.toggle("only-differences", only.checked));
})();
