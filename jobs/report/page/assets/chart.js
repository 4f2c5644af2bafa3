"use strict";
// Draws the charts from the JSON beside them. Colours of text and grid are the style sheet's.
(() => {
  const coarse = matchMedia("(pointer: coarse)").matches;
  const layout = (given, width, height, rows) => {
    const axis = (one) => ({ zeroline: false, fixedrange: coarse, ...one });
    return {
      font: { family: "system-ui, sans-serif", size: width ? 8 : 12 },
      margin: { l: width ? 36 : 54, r: 14, t: 10, b: (width ? 34 : 50) + (width ? 16 : 21) * rows },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 },
      hoverlabel: { bgcolor: "#24292f", bordercolor: "#24292f", font: { color: "#fff" } },
      dragmode: coarse ? false : "zoom",
      ...given,
      xaxis: axis(given.xaxis),
      yaxis: axis(given.yaxis),
      ...(width ? { width, height, autosize: false } : { autosize: true }),
    };
  };
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };

  const draw = (figure, width) => {
    const plot = figure.querySelector(".plot");
    const { data, layout: given, height } = JSON.parse(figure.querySelector("script").textContent);
    const names = data.filter((trace) => trace.showlegend !== false).map((trace) => trace.name ?? "");
    const entry = width ? 40 + 5.5 * Math.max(0, ...names.map((name) => name.length)) : 190; // of the legend, in pixels
    const rows = Math.ceil(names.length / Math.max(1, Math.floor((width || plot.clientWidth) / entry)));
    const tall = width ? 0.52 * height + 16 * rows : height + 21 * rows;
    plot.style.height = `${tall}px`;
    return Plotly.react(plot, data, layout(given, width, tall, rows), config).then(() => {
      document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // what it measures texts with
    });
  };

  const all = (width) => Promise.all([...document.querySelectorAll("figure.chart")].map((figure) => draw(figure, width)));
  robustq.charts = (root) => Promise.all([...root.querySelectorAll("figure.chart")].map((figure) => draw(figure)));
  robustq.charts(document).then(() => { document.documentElement.dataset.ready = "yes"; });

  // Paper has a width of its own, a third of which a chart takes. What is folded away on a screen belongs on it: but not
  // every number twice, not the table of all rows, and not the study, which is a file.
  const paper = 222; // pixels of CSS, of 186 mm between the margins
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("section details:not([open])")]
      .filter((d) => !d.id.startsWith("numbers-") && !["all-rows", "study"].includes(d.id));
    folded.forEach((details) => { details.open = true; });
    all(paper);
  });
  addEventListener("afterprint", () => {
    folded.forEach((details) => { details.open = false; });
    all();
  });
})();
