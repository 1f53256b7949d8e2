// A matrix as a table whose cells are coloured; the numbers stay readable and are read aloud.

// From viridis (CC0): dark for the least, light for the most, also for the colour-blind.
const STOPS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const index = Math.min(Math.floor(place), STOPS.length - 2);
  const part = place - index;
  return STOPS[index].map((value, channel) =>
    Math.round(value + (STOPS[index + 1][channel] - value) * part),
  );
}

function luminance(rgb) {
  const [red, green, blue] = rgb.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function heading(text, scope) {
  const cell = document.createElement("th");
  cell.scope = scope;
  const label = document.createElement("span");
  label.textContent = text;
  label.title = text;
  cell.append(label);
  return cell;
}

export function drawHeatmap(table, rows, columns, values) {
  const flat = values.flat();
  const least = Math.min(...flat);
  const span = Math.max(...flat) - least || 1;
  const head = document.createElement("thead");
  const first = head.insertRow();
  first.append(document.createElement("td"), ...columns.map((name) => heading(name, "col")));
  const body = document.createElement("tbody");
  rows.forEach((name, index) => {
    const row = body.insertRow();
    row.append(heading(name, "row"));
    for (const value of values[index]) {
      const cell = row.insertCell();
      const rgb = colour((value - least) / span);
      cell.textContent = value.toFixed(3);
      cell.style.backgroundColor = `rgb(${rgb.join(" ")})`;
      cell.style.color = luminance(rgb) > 0.179 ? "#000" : "#fff";
    }
  });
  table.replaceChildren(head, body);
}
