import { drawHeatmap } from "./heatmap.js";

const find = (id) => document.getElementById(id);
const RETRY_MILLISECONDS = 2000;

const chosen = [];
let models = [];
let key = sessionStorage.getItem("aioembed-key") ?? "";
let asked = 0;
let giveUp = null;

class ServerError extends Error {
  constructor(message, items) {
    super(message);
    this.items = items ?? [];
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  find("key-form").hidden = answer.status !== 401;
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    const said = body?.error?.message ?? `the server answered ${answer.status}`;
    throw new ServerError(said, body?.error?.items);
  }
  return answer;
}

function tell(text, isError = false, place = "message") {
  find(place).textContent = text;
  find(place).classList.toggle("error", isError);
}

function counted(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

// --- the models' states, live

function describe(model) {
  if (model.status === "downloading") {
    const paused = model.is_paused ? ", paused" : "";
    return `downloading ${Math.floor(model.download_progress * 100)} %${paused}`;
  }
  return model.status;
}

function showModel(item, model) {
  const [name, status] = item.querySelectorAll(".name, .status");
  name.textContent = `${model.name} (${model.modality})`;
  status.dataset.ready = model.is_ready;
  status.dataset.status = model.status;
  if (status.textContent !== describe(model)) status.textContent = describe(model);
  const progress = item.querySelector("progress");
  progress.hidden = model.status !== "downloading";
  progress.value = model.download_progress;
  item.querySelector(".error").textContent = model.error?.message ?? "";
}

function newItem(model) {
  const item = document.createElement("li");
  const progress = document.createElement("progress");
  progress.max = 1;
  progress.setAttribute("aria-label", `Download of ${model.name}`);
  const parts = ["name", "status", "error"].map((kind) => {
    const part = document.createElement("span");
    part.className = kind;
    return part;
  });
  item.append(parts[0], parts[1], progress, parts[2]);
  return item;
}

// What a screen reader says: the change of a model's state, not every percent of it.
function announce(before, now) {
  const phase = (model) => model && (model.is_ready ? "ready" : model.status);
  const changed = now.filter((model, index) => phase(model) !== phase(before[index]));
  if (!changed.length) return;
  find("announcement").textContent = changed
    .map((model) => `${model.name} (${model.modality}): ${phase(model)}`)
    .join(", ");
}

function showStates(states) {
  const list = find("models");
  const wereReady = models.filter((model) => model.is_ready).length;
  announce(models, states.models);
  models = states.models;
  if (list.children.length !== models.length) list.replaceChildren(...models.map(newItem));
  models.forEach((model, index) => showModel(list.children[index], model));
  find("texts").hidden = !models.some((model) => model.modality === "text");
  offerModels();
  if (models.filter((model) => model.is_ready).length > wereReady) compare();
}

function offerModels() {
  const names = models.filter((model) => model.modality === "image").map((model) => model.name);
  const select = find("model");
  if (names.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
    }
  }
}

async function watch() {
  for (;;) {
    try {
      const answer = await call("v1/state/stream");
      find("connection").textContent = "";
      find("models").classList.remove("stale");
      for await (const states of events(answer)) showStates(states);
      find("connection").textContent = "The server ended the connection; trying again…";
    } catch (error) {
      find("connection").textContent = `No connection (${error.message}); trying again…`;
    }
    find("models").classList.add("stale");
    await new Promise((resolve) => {
      giveUp = resolve;
      setTimeout(resolve, RETRY_MILLISECONDS);
    });
  }
}

// --- images

// How CSS shows each orientation upright (EXIF 2.32, tag 0x0112).
const TURNS = {
  2: "scaleX(-1)",
  3: "rotate(180deg)",
  4: "scaleY(-1)",
  5: "rotate(270deg) scaleX(-1)",
  6: "rotate(90deg)",
  7: "rotate(90deg) scaleX(-1)",
  8: "rotate(270deg)",
};
const HEAD_BYTES = 256 * 1024;

// Browsers turn an image by its EXIF. The server also turns one by its XMP, where EXIF says nothing.
async function turnByXmp(file) {
  const head = await file.slice(0, HEAD_BYTES).arrayBuffer();
  const text = new TextDecoder("latin1").decode(head);
  const stated = /tiff:Orientation\s*(?:=\s*["']|>\s*)([2-8])/.exec(text);
  const isJpeg = text.startsWith("\u00ff\u00d8");
  return isJpeg && stated && !hasExifOrientation(head, text) ? TURNS[stated[1]] : "";
}

function hasExifOrientation(head, text) {
  const at = text.indexOf("Exif\0\0");
  if (at < 0) return false;
  try {
    const exif = new DataView(head, at + 6);
    const isLittle = exif.getUint8(0) === 0x49;
    const folder = exif.getUint32(4, isLittle);
    for (let index = 0; index < exif.getUint16(folder, isLittle); index += 1) {
      if (exif.getUint16(folder + 2 + 12 * index, isLittle) === 0x0112) return true;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // damaged: it says nothing
  }
  return false;
}

function add(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (images.length < files.length) tell("Only images can be compared.", true);
  for (const file of images) {
    const entry = { file, url: URL.createObjectURL(file), turn: "" };
    chosen.push(entry);
    turnByXmp(file).then((turn) => {
      entry.turn = turn;
      if (turn) showThumbnails();
    });
  }
  showThumbnails();
  if (images.length) compare();
}

function remove(entry) {
  URL.revokeObjectURL(entry.url);
  chosen.splice(chosen.indexOf(entry), 1);
  showThumbnails();
  compare();
}

function noPreview() {
  const blank = document.createElement("div");
  blank.className = "blank";
  blank.textContent = "no preview";
  return blank;
}

function thumbnail(entry) {
  const item = document.createElement("li");
  item.classList.toggle("faulty", Boolean(entry.fault));
  const image = document.createElement("img");
  image.src = entry.url;
  image.alt = "";
  image.style.transform = entry.turn;
  image.addEventListener("error", () => image.replaceWith(noPreview()));
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = entry.file.name;
  name.title = entry.file.name;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "×";
  button.setAttribute("aria-label", `Remove ${entry.file.name}`);
  button.addEventListener("click", () => {
    remove(entry);
    find("files").focus();
  });
  item.append(image, name, button);
  if (entry.fault) item.append(faultOf(entry));
  return item;
}

function faultOf(entry) {
  const fault = document.createElement("span");
  fault.className = "error name";
  fault.textContent = entry.fault;
  fault.title = entry.fault;
  return fault;
}

function showThumbnails() {
  find("thumbnails").replaceChildren(...chosen.map(thumbnail));
  find("actions").hidden = chosen.length === 0;
}

// --- answers

const usable = () => chosen.filter((entry) => !entry.fault);

async function similarities(entries, texts) {
  const form = new FormData();
  for (const { file } of entries) form.append("images", file, file.name);
  for (const text of texts) form.append("texts", text);
  form.append("model", find("model").value);
  const textModel = textModelFor(find("model").value);
  if (texts.length && textModel) form.append("text_model", textModel);
  const answer = await call("v1/similarity", { method: "POST", body: form });
  return (await answer.json()).similarities;
}

// The images that the server cannot take are marked; return whether there were any.
function markFaults(entries, error) {
  const faulty = (error.items ?? []).filter(({ index }) => entries[index]);
  for (const { index, message } of faulty) entries[index].fault = message;
  if (faulty.length) showThumbnails();
  return faulty.length > 0;
}

function textModelFor(imageModel) {
  const texts = models.filter((model) => model.modality === "text");
  return (texts.find((model) => model.name === imageModel) ?? texts[0])?.name;
}

async function compare() {
  const turn = ++asked;
  const entries = usable();
  const bad = chosen.length - entries.length;
  find("scores-region").hidden = true;
  find("similarity").hidden = !entries.length;
  tell("", false, "score-message");
  if (!entries.length) {
    tell(bad ? `${counted(bad, "image")} cannot be read.` : "", bad > 0);
    return;
  }
  const model = models.find((one) => one.modality === "image" && one.name === find("model").value);
  if (!model?.is_ready) {
    find("similarity").hidden = true;
    tell("The images are compared as soon as the model is ready.");
    return;
  }
  tell(`Comparing ${counted(entries.length, "image")}…`);
  try {
    const names = entries.map(({ file }) => file.name);
    const matrix = await similarities(entries, []);
    if (turn !== asked) return;
    drawHeatmap(find("heatmap"), names, names, matrix);
    const left = bad ? ` ${counted(bad, "image")} cannot be read.` : "";
    tell(`Compared ${counted(names.length, "image")}.${left}`, bad > 0);
  } catch (error) {
    if (turn !== asked) return;
    if (markFaults(entries, error)) {
      compare();
      return;
    }
    find("similarity").hidden = true;
    tell(error.message, true);
  }
}

async function score(event) {
  event.preventDefault();
  const lines = find("labels").value.split("\n").map((line) => line.trim());
  const texts = [...new Set(lines.filter(Boolean))];
  const entries = usable();
  if (!entries.length || !texts.length) {
    tell("Choose images and write at least one description.", true, "score-message");
    return;
  }
  try {
    const names = entries.map(({ file }) => file.name);
    const matrix = await similarities(entries, texts);
    // With one description this is a search: the best image comes first.
    const order = [...names.keys()];
    if (texts.length === 1) order.sort((one, other) => matrix[other][0] - matrix[one][0]);
    const rows = order.map((index) => matrix[index]);
    drawHeatmap(find("scores"), order.map((index) => names[index]), texts, rows);
    find("scores-region").hidden = false;
    const told = `${counted(names.length, "image")} against ${counted(texts.length, "description")}`;
    tell(`Scored ${told}.`, false, "score-message");
  } catch (error) {
    tell(error.message, true, "score-message");
  }
}

// --- events

const drop = find("drop");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, () => drop.classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
find("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
find("model").addEventListener("change", compare);
find("clear").addEventListener("click", () => {
  for (const entry of chosen) URL.revokeObjectURL(entry.url);
  chosen.length = 0;
  showThumbnails();
  compare();
  find("files").focus();
});
find("text-form").addEventListener("submit", score);
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = find("key").value;
  sessionStorage.setItem("aioembed-key", key);
  giveUp?.();
});
watch();
