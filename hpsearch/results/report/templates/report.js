"use strict";

(function drawPlots() {
  const figures = JSON.parse(document.getElementById("plots").textContent);
  const plots = Array.from(document.querySelectorAll("[data-plot]"));
  for (const plot of plots) {
    const figure = figures[plot.dataset.plot];
    Plotly.newPlot(plot, figure.data, figure.layout, {
      responsive: true,
      displaylogo: false,
      plotlyServerURL: "",
      // By name: plotly's own choice has a button that would send the figure to a server.
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: { filename: plot.dataset.plot, scale: 2 },
    });
  }
  // Paper is narrower than the window.
  const resize = () => plots.forEach((plot) => Plotly.Plots.resize(plot));
  window.addEventListener("beforeprint", resize);
  window.addEventListener("afterprint", resize);
})();
