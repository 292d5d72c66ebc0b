(() => {
  // Without this script the page shows everything. It adds sorting, filters, the slider, and the cursor of the curves.
  const page = document.querySelector(".nanopref");
  const all = (selector, within = page) => [...within.querySelectorAll(selector)];
  const pairs = all(".pair");
  const number = (card, key) => Number(card.dataset[key]);

  // sort: "margin" rises, "-margin" falls. A filter is the name of a mark that a card has in data-marks.
  function arrange() {
    const key = page.querySelector("#sort").value, wanted = page.querySelector("#filter").value;
    const name = key.replace("-", ""), sign = key.startsWith("-") ? -1 : 1;
    pairs.sort((a, b) => sign * (number(a, name) - number(b, name)) || number(a, "at") - number(b, "at"));
    let shown = 0;
    for (const card of pairs) {
      card.parentNode.append(card);
      card.hidden = wanted !== "" && !card.dataset.marks.split(" ").includes(wanted);
      shown += !card.hidden;
    }
    page.querySelector("#shown").textContent = `${shown} of ${pairs.length} pairs`;
  }

  // the slider: a view belongs to the positions data-from to data-to
  function slide() {
    const slider = page.querySelector("#step"), at = Number(slider.value);
    page.querySelector("#step-name").textContent = slider.dataset.names.split(" ")[at];
    for (const view of all("[data-from]"))
      view.hidden = at < Number(view.dataset.from) || at > Number(view.dataset.to);
  }

  // the cursor: all curves show their values at one step, the last one that was logged up to there
  function read(step) {
    for (const figure of all("figure")) {
      const svg = figure.querySelector("svg"), { first, last } = svg.dataset;
      const share = (step - first) / ((last - first) || 1);
      const cursor = svg.querySelector(".cursor");
      cursor.removeAttribute("hidden");
      cursor.setAttribute("transform", `translate(${40 + 250 * Math.max(0, Math.min(1, share))} 0)`);
      const values = all("polyline", svg).map((line) => {
        const before = JSON.parse(line.dataset.points).filter((point) => point[0] <= step);
        if (!before.length) return "";
        const [at, value] = before.at(-1);
        return `${line.dataset.name} ${value}` + (at === step ? "" : ` (step ${at})`);
      });
      figure.querySelector("output").textContent = `step ${step}: ${values.filter(Boolean).join(", ")}`;
    }
  }
  for (const svg of all(".curve"))
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), { first, last } = svg.dataset;
      const share = ((event.clientX - box.left) / box.width * 300 - 40) / 250;
      read(Math.round(Number(first) + Math.max(0, Math.min(1, share)) * (last - first)));
    });

  for (const controls of all(".controls")) controls.hidden = false;
  for (const id of ["sort", "filter"]) page.querySelector(`#${id}`)?.addEventListener("change", arrange);
  page.querySelector("#step")?.addEventListener("input", slide);
  if (pairs.length) arrange();
  if (page.querySelector("#step")) slide();
})();
