"use strict";
(() => {
  // Charts: drawings are in the page already; a chart that comes into view is drawn anew, with hints, links and legends
  // that filter. Expressions are interpreted (`ast`), so that the content security policy needs no evaluation of text.
  let specs = null;
  async function charts() {
    const packed = document.getElementById("charts").textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }
  async function draw(node) {
    specs = specs || charts();
    const spec = (await specs)[Number(node.dataset.chart)];
    const holder = document.createElement("div");
    await vegaEmbed(holder, spec, {
      renderer: "svg", actions: false, ast: true, defaultStyle: false, mode: "vega-lite", loader: { target: "_self" },
      tooltip: { disableDefaultStyle: true, theme: "page" },
    });
    node.replaceChildren(holder.firstElementChild || holder);
    node.dataset.drawn = "yes";
  }
  const nodes = document.querySelectorAll("[data-chart]");
  if (typeof DecompressionStream === "function" && typeof IntersectionObserver === "function") {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        seen.unobserve(entry.target);
        draw(entry.target).catch((error) => console.warn("a chart stays as it was drawn before:", String(error)));
      }
    }, { rootMargin: "200px" });
    nodes.forEach((node) => seen.observe(node));
  }

  // Tables: a click on a heading sorts by it, numbers as numbers.
  const number = (text) => {
    const found = text.replace(/[−–]/g, "-").replace(/,/g, "").match(/^\s*[<>]?\s*(-?\d*\.?\d+)/);
    return found ? Number(found[1]) : null;
  };
  function sort(table, column, heading) {
    const down = heading.getAttribute("aria-sort") === "descending";
    const rows = [...table.tBodies[0].rows].map((row) => [row, row.cells[column].textContent.trim()]);
    const numeric = rows.filter(([, text]) => number(text) !== null).length * 2 > rows.length;
    const sign = down ? 1 : -1;
    const order = (a, b) => {
      if (!numeric) return sign * a.localeCompare(b, undefined, { numeric: true });
      const [x, y] = [number(a), number(b)];  // what has no number comes last either way
      return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
    };
    rows.sort(([, a], [, b]) => order(a, b));
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "ascending" : "descending");
    table.tBodies[0].append(...rows.map(([row]) => row));
  }
  document.querySelectorAll("main table").forEach((table) => {
    if (table.tBodies[0].rows.length < 3) return;
    table.querySelectorAll("thead th").forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, column, heading));
    });
  });

  // Filter: what is of no shown model is hidden.
  const filter = document.querySelector(".filter");
  if (filter) {
    filter.hidden = false;
    filter.addEventListener("change", () => {
      const shown = new Set([...filter.querySelectorAll("input:checked")].map((box) => box.value));
      document.querySelectorAll("[data-models]").forEach((node) => {
        node.hidden = !JSON.parse(node.dataset.models).some((model) => shown.has(model));
      });
    });
  }

  // What a link leads to is opened; on paper everything is.
  function open() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    if (target) target.scrollIntoView();
  }
  addEventListener("hashchange", open);
  if (location.hash) open();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
})();
