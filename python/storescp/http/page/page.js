// The status page: one stream of snapshots, shown. Everything from the service is put in as text, never as markup.

const SECONDS = 300;
const $ = (id) => document.getElementById(id);
const history = [];
let paused = false;
let before = null;

// --- words and numbers

const whole = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const dayAndTime = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "short", hour12: false });
const day = new Intl.DateTimeFormat([], { dateStyle: "medium" });

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 0.9995) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

const moment = (seconds) => dayAndTime.format(new Date(seconds * 1000));
const time = (seconds) => clock.format(new Date(seconds * 1000));

// --- elements

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key === "onclick") made.addEventListener("click", value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const cell = (text, small = null) => element("td", {}, String(text), small && element("small", {}, small));
const number = (text) => element("td", { class: "number" }, String(text));
const badge = (text, kind) => element("span", { class: `badge ${kind}` }, text);

// Keeps the elements of items that stay, so that focus and selection stay too.
function reconcile(parent, items, keyOf, build) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, place) => {
    const key = String(keyOf(item));
    const shape = JSON.stringify(item);
    let child = known.get(key);
    if (!child || child.dataset.shape !== shape) {
      const made = build(item);
      made.dataset.key = key;
      made.dataset.shape = shape;
      if (child) child.replaceWith(made);
      child = made;
    }
    known.delete(key);
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
  });
  for (const gone of known.values()) gone.remove();
}

function table(name, items, keyOf, build) {
  const none = $(`${name}-none`);
  if (none) {
    none.textContent = none.dataset.none;
    none.hidden = items.length > 0;
    $(`${name}-table`).parentElement.hidden = items.length === 0;
  }
  reconcile($(`${name}-table`).tBodies[0], items, keyOf, build);
}

// --- parts of the page

function tile(name, value, small, isBad = false) {
  return element("div", isBad ? { class: "bad" } : {}, element("dt", {}, name),
    element("dd", {}, value, small && element("small", {}, small)));
}

function licenceTile({ state, days, ends }) {
  const end = day.format(new Date(ends * 1000));
  return state === "ended"
    ? tile("Licence", "ended", `on ${end}; reception goes on`, true)
    : tile("Licence", `${days} days`, `until ${end}`, state !== "valid");
}

function showTiles(now) {
  const [perSecond, bytesPerSecond] = now.last_second;
  const { associations, disk, licence } = now;
  const pending = Math.max(0, ...now.topics.map((topic) => topic.pending));
  const failing = now.topics.some((topic) => topic.failing);
  const refused = now.tenants.reduce((sum, tenant) => sum + tenant.refused, 0);
  $("tiles").replaceChildren(
    tile("Instances per second", whole.format(perSecond), `${bytes(bytesPerSecond)}/s`),
    tile("Associations", `${associations.active}`, `of ${whole.format(associations.most)}`),
    tile("Instances", whole.format(now.instances), `${bytes(now.bytes)} since ${time(now.began)}`),
    tile("Refused", whole.format(refused), `${whole.format(associations.refused)} associations`, refused > 0),
    tile("Records waiting", whole.format(pending), failing ? "a topic takes none" : now.brokers ? "Kafka" : "files", failing),
    disk ? tile("Disk free", bytes(disk.free), `of ${bytes(disk.total)}`, disk.free < 2 * disk.least)
      : tile("Disk free", "unknown", "it does not answer", true),
    licenceTile(licence),
  );
}

function showChart(name, values, format) {
  const highest = Math.max(1e-9, ...values);
  const points = values.map((value, at) => [600 - (values.length - 1 - at) * (600 / (SECONDS - 1)), 114 - (value / highest) * 106]);
  const line = points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const part = (kind, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const chart = $(`${name}-chart`);
  const last = values.at(-1) ?? 0;
  chart.setAttribute("aria-label", `now ${format(last)}, at most ${format(Math.max(0, ...values))} in the last five minutes`);
  chart.replaceChildren(
    ...[8, 61, 114].map((y) => part("line", { class: "grid", x1: 0, x2: 600, y1: y, y2: y })),
    ...(points.length ? [
      part("path", { class: "area", d: `${line}L600 114L${points[0][0].toFixed(1)} 114Z` }),
      part("path", { class: "edge", d: line }),
    ] : []),
  );
  $(`${name}-now`).value = `${format(last)}, at most ${format(Math.max(0, ...values))}`;
}

function showCharts() {
  showChart("instances", history.map(([instances]) => instances), (value) => whole.format(value));
  showChart("bytes", history.map(([, received]) => received / 1e6), (value) => value.toFixed(value < 10 ? 1 : 0));
}

function showAssociations(now) {
  const earlier = new Map((before?.associations.live ?? []).map((one) => [one.number, one]));
  const seconds = before ? now.now - before.now : 0;
  table("associations", now.associations.live, (one) => one.number, (one) => {
    const known = earlier.get(one.number);
    const rate = known && seconds > 0 ? (one.bytes - known.bytes) / seconds : one.bytes / Math.max(1, one.seconds);
    return element("tr", {}, cell(one.peer, `association ${one.number}`), cell(`${one.calling} to ${one.called}`),
      cell(one.tenant ?? "told by the data set"), number(whole.format(one.stored)), number(whole.format(one.refused)),
      number(bytes(one.bytes)), number(`${bytes(rate)}/s`), number(duration(one.seconds)));
  });
}

function showInstances(now) {
  table("latest", now.latest, (one) => one.number, (one) => {
    const answer = one.status === "B007" ? badge("B007 in quarantine", "warn")
      : one.status !== "0000" ? badge(`${one.status} refused`, "bad")
      : one.transcode_failure ? badge("stored, not transcoded", "warn") : badge("stored", "good");
    const syntax = one.transcoded ? `${one.received_as}, stored as ${one.stored_as}` : one.received_as;
    const picture = one.has_picture
      ? element("button", { type: "button", onclick: () => showPicture(one) }, "Show") : null;
    picture?.setAttribute("aria-label", `Show the picture of instance ${one.number}`);
    return element("tr", {}, cell(time(one.at)),
      cell(one.what || one.class, one.what ? one.class : null), element("td", { class: "patient" }, one.patient_id ?? ""),
      cell(one.tenant), element("td", { class: "number" }, bytes(one.bytes), one.frames > 1 ? element("small", {}, `${whole.format(one.frames)} frames`) : null),
      cell(syntax, one.transcoded ? "transcoded" : null), number(duration(one.seconds)),
      element("td", {}, answer, one.comment ? element("small", {}, one.comment) : null,
        one.anomalies.length ? element("small", {}, `odd: ${one.anomalies.join(", ")}`) : null),
      element("td", { class: "patient" }, picture));
  });
}

function showAttention(now) {
  const failed = now.failed.map((one) => ({
    key: `instance ${one.number}`, level: one.status === "0000" ? "warning" : "error",
    title: one.status === "0000" ? `not transcoded: ${one.transcode_failure}` : `${one.status} ${one.comment}`,
    when: `${time(one.at)}, ${one.what || one.class}, association ${one.association}`, advice: one.advice, detail: "", at: one.at,
  }));
  const warned = now.warnings.map((one) => ({
    key: `${one.event} ${one.first}`, level: one.level, title: one.title,
    when: one.count > 1 ? `${whole.format(one.count)} times, last ${time(one.last)}` : time(one.last),
    advice: one.advice, detail: Object.entries({ event: one.event, ...one.details }).map(([key, value]) => `${key}: ${value}`).join(", "), at: one.last,
  }));
  const notes = [...grouped(failed), ...warned].sort((a, b) => b.at - a.at).slice(0, 20);
  $("attention-none").textContent = $("attention-none").dataset.none;
  $("attention-none").hidden = notes.length > 0;
  reconcile($("warnings"), notes, (note) => note.key, (note) => element("li", { class: note.level },
    element("p", {}, element("strong", {}, note.title), " ", element("span", { class: "when" }, note.when)),
    note.advice && element("p", {}, note.advice), note.detail && element("p", { class: "detail" }, note.detail)));
}

// Instances that failed for one reason are one note.
function grouped(notes) {
  const kinds = new Map();
  for (const note of notes) {
    const kind = kinds.get(note.title);
    if (kind) kind.count += 1;
    else kinds.set(note.title, { ...note, count: 1 });
  }
  return [...kinds.values()].map(({ count, ...note }) => (count > 1
    ? { ...note, key: note.title, when: `${count} of the last, the last one ${note.when}` } : note));
}

function showRecords(now) {
  $("brokers").textContent = now.brokers ? `Kafka: ${now.brokers}` : "No Kafka: records go to JSON lines beneath the storage root.";
  table("topics", now.topics, (one) => one.topic, (one) => element("tr", {}, cell(one.topic),
    element("td", {}, one.failing ? badge("takes none", "bad") : badge("takes records", "good"),
      one.failing ? element("small", {}, one.failing) : null),
    number(whole.format(one.pending)), number(one.oldest_seconds === null ? "" : duration(one.oldest_seconds)),
    number(whole.format(one.set_aside)), number(whole.format(one.delivered))));
}

const FINDINGS = {
  quarantined: ["In quarantine", "Files that were not what was to be recorded: storescpd quarantine list"],
  changed: ["Changed", "Files that are not what their records say: storescpd verify"],
  missing: ["Missing", "Records without a file: storescpd verify"],
  unreadable: ["Unreadable", "Files or folders that cannot be read: look at the disk and at permissions"],
  undecided: ["Undecided", "Records whose file cannot be looked at: they wait until it can"],
};

function showStorage(now) {
  const { findings, replaced_files: files, replaced_bytes: kept, replaced_max_bytes: most, damaged, damaged_bytes: held, damaged_max_bytes: bound } = now.storage;
  const rows = Object.entries(FINDINGS).map(([kind, [name, text]]) => ({ name, text, count: findings[kind] }));
  rows.push({ name: "Damaged", text: `Damaged data sets in quarantine, which senders take for stored, ${bytes(held)} of ${bytes(bound)}: storescpd quarantine list`, count: damaged });
  rows.push({ name: "Replaced", text: `Kept for a while in .replaced: ${bytes(kept)} of ${bytes(most)}`, count: files, isFine: true });
  table("storage", rows, (one) => one.name, (one) => element("tr", {}, cell(one.name),
    element("td", { class: "number" }, one.count && !one.isFine ? badge(whole.format(one.count), "bad") : whole.format(one.count)),
    cell(one.text)));
}

function showTenants(now) {
  table("tenants", now.tenants, (one) => one.tenant, (one) => element("tr", {}, cell(one.tenant || "(none known)"),
    number(whole.format(one.stored)), number(whole.format(one.refused)),
    number(one.quota_bytes === null ? "no quota" : `${bytes(one.used_bytes)} of ${bytes(one.quota_bytes)}`)));
}

function show(now) {
  document.body.classList.toggle("patients", now.shows_patient_data);
  $("patient-note").hidden = now.shows_patient_data;
  $("title").textContent = now.ae_title;
  document.title = `${now.ready ? "" : "(!) "}${now.ae_title} - storescp`;
  const { damaged, damaged_since: since } = now.storage;
  const waits = damaged ? `; ${whole.format(damaged)} damaged data set${damaged === 1 ? " waits" : "s wait"} in quarantine${since === null ? "" : ` since ${moment(since)}`}` : "";
  // Without a state of its own it has the colour of a warning.
  setState(!now.ready ? "down" : damaged ? "attention" : "ready", (now.ready ? "Ready" : `Not ready: ${now.reasons.join(", ")}`) + waits);
  $("facts").textContent = `version ${now.version}, listens on ${now.host}, durability ${now.durability}, up ${duration(now.now - now.began)}`;
  showTiles(now);
  showCharts();
  showAttention(now);
  showAssociations(now);
  showInstances(now);
  showRecords(now);
  showStorage(now);
  showTenants(now);
  before = now;
}

function setState(state, text) {
  // A live region speaks when its text changes, so it changes only when there is something to say.
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").dataset.state = state;
}

// --- pictures

async function showPicture(one) {
  const image = $("picture-image");
  image.hidden = true;
  $("picture-title").textContent = `${one.what || one.class}, ${time(one.at)}`;
  $("picture-text").textContent = "Being made";
  $("picture").showModal();
  try {
    const answer = await fetch(`thumbnails/${one.number}`, { headers: headers() });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const url = URL.createObjectURL(await answer.blob());
    image.onload = () => URL.revokeObjectURL(url);
    image.src = url;
    image.alt = `Small picture of ${one.what || one.class}`;
    image.hidden = false;
    $("picture-text").textContent = one.frames > 1 ? `The middle one of ${whole.format(one.frames)} frames` : "";
  } catch (error) {
    $("picture-text").textContent = error.message;
  }
}

$("picture-close").addEventListener("click", () => $("picture").close());

// --- the stream

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function take(name, data) {
  if (name === "history") history.splice(0, history.length, ...data);
  if (name !== "status") return;
  history.push(data.last_second);
  history.splice(0, Math.max(0, history.length - SECONDS));
  if (!paused) show(data);
}

// Server-sent events over fetch, because EventSource cannot carry a token.
async function follow() {
  const answer = await fetch("events", { headers: headers(), cache: "no-store" });
  if (answer.status === 401) {
    setState("waiting", "A token is needed");
    $("ask").hidden = false;
    await new Promise((done) => { $("ask").onsubmit = (event) => { event.preventDefault(); done(); }; });
    sessionStorage.setItem("token", $("token").value);
    $("ask").hidden = true;
    return;
  }
  if (!answer.ok) throw new Error((await answer.text()).trim());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2) ?? "";
      take(field("event"), JSON.parse(field("data")));
    }
  }
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
});

for (;;) {
  try {
    await follow();
  } catch (error) {
    setState("down", `No connection: ${error.message}`);
    await new Promise((done) => { setTimeout(done, 2000); });
  }
}
