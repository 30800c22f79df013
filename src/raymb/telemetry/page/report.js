// Values under the pointer. The curves are read back from the paths that are drawn.
for (const plot of document.querySelectorAll(".plot")) {
  const [x0, x1] = plot.dataset.x.split(" ").map(Number), [y0, y1] = plot.dataset.y.split(" ").map(Number);
  const log = "log" in plot.dataset;
  const value = (y) => log ? Math.exp(Math.log(y0) + y * Math.log(y1 / y0)) : y0 + y * (y1 - y0);
  const time = (s) => s < 60 ? `${s.toFixed(1)} s` : s < 3600 ? `${(s / 60).toFixed(1)} min` : `${(s / 3600).toFixed(2)} h`;
  const where = (x) => ({ step: `step ${Math.round(x).toLocaleString("en")}`, tokens: `${Math.round(x).toLocaleString("en")} tokens`, seconds: time(x) })[plot.dataset.by];
  const show = (v) => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(Number(v.toPrecision(4)));
  let lines, cursor, tip;

  function begin() {
    lines = [...plot.querySelectorAll("path[data-label]")].map((path) => ({
      path,
      label: path.dataset.label,
      points: [...path.getAttribute("d").matchAll(/[ML](\S+?) ([^LMh]+)/g)].map((m) => [m[1] / 1000, 1 - m[2] / 1000]),
    }));
    [cursor, tip] = ["cursor", "tip"].map((name) => Object.assign(document.createElement("span"), { className: name }));
    plot.append(cursor, tip);
  }

  function move(event) {
    if (!lines) begin();
    const box = plot.getBoundingClientRect();
    const at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const near = lines.filter((line) => line.points.length && getComputedStyle(line.path).display !== "none").map((line) => ({
      label: line.label,
      point: line.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a),
    }));
    if (!near.length) return;
    const x = near.reduce((a, b) => Math.abs(b.point[0] - at) < Math.abs(a.point[0] - at) ? b : a).point[0];
    const rows = near.filter((one) => Math.abs(one.point[0] - x) < 0.02);
    tip.textContent = [where(x0 + x * (x1 - x0)), ...rows.map((one) => `${one.label}  ${show(value(one.point[1]))}`)].join("\n");
    cursor.style.left = `${100 * x}%`;
    tip.style.left = x < 0.5 ? `calc(${100 * x}% + 8px)` : "auto";
    tip.style.right = x < 0.5 ? "auto" : `calc(${100 - 100 * x}% + 8px)`;
    cursor.hidden = tip.hidden = false;
  }

  plot.addEventListener("pointermove", move);
  plot.addEventListener("pointerdown", move);
  plot.addEventListener("pointerleave", () => { if (tip) cursor.hidden = tip.hidden = true; });
}
