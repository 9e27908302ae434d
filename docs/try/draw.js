// The example's ONNX file names what is drawn: onnxruntime-web and the model are files beside this one (`make draw`).
import * as ort from "./ort.mjs";

const $ = (id) => document.getElementById(id), canvas = $("draw"), pen = canvas.getContext("2d", { willReadFrequently: true });
const SIDE = 32, BLOCKS = 8; // pixels of the model's input; the example's digits have 8 x 8
const NEAREST = 6; // pictures
const CLASSES = "zero one two three four five six seven eight nine".split(" ");
let model, pool, busy = false, again = false, drawn = 0; // how often it was cleared: a result of before is not shown

function clear() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  $("said").textContent = "Draw a digit.";
  $("nearest").replaceChildren();
  again = false, drawn += 1;
}

// As the example's digits were made: the box around the ink, in 8 x 8 mean values, enlarged to 32 x 32. Null: no ink.
function input() {
  const { width, height } = canvas, ink = pen.getImageData(0, 0, width, height).data;
  const columns = [], rows = [];
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (ink[4 * (y * width + x)] > 60) columns.push(x), rows.push(y);
  if (columns.length < 30) return null;
  const ends = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b)) + 1];
  const [left, right] = ends(columns), [top, bottom] = ends(rows), side = Math.max(right - left, bottom - top);
  const shrunk = scaled(canvas, left - (side - right + left) / 2, top - (side - bottom + top) / 2, side, BLOCKS);
  const pixels = scaled(shrunk, 0, 0, BLOCKS, SIDE).getContext("2d").getImageData(0, 0, SIDE, SIDE).data;
  const one = Float32Array.from({ length: SIDE * SIDE }, (_, at) => pixels[4 * at] / 255 / 0.5);
  return new ort.Tensor("float32", Float32Array.from({ length: 3 * one.length }, (_, at) => one[at % one.length]), [1, 3, SIDE, SIDE]);
}
function scaled(image, x, y, side, to) {
  const result = Object.assign(document.createElement("canvas"), { width: to, height: to }), context = result.getContext("2d");
  context.fillRect(0, 0, to, to);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, x, y, side, side, 0, 0, to, to);
  return result;
}

async function name(image = input()) {
  if (busy) return void (again = true);
  if (!model || !image) return;
  busy = true;
  const before = drawn;
  const { probability, similarity, embedding } = await model.run({ image });
  busy = false;
  if (drawn !== before) return again ? name() : undefined;
  const best = [...probability.data].map((value, at) => [value, CLASSES[at]]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  $("said").textContent = best.map(([value, label]) => `${label} ${Math.round(100 * value)}%`).join(", ") + `; similarity to the images of the memory: ${similarity.data[0].toFixed(2)}. The nearest of them:`;
  showNearest(embedding.data);
  if (again) again = false, name();
}

// The pictures of the memory by cosine. Each has a row in `pool`: the number of its class, grey values, its embedding.
function showNearest(embedding) {
  const start = 1 + BLOCKS * BLOCKS, width = start + embedding.length;
  const rows = Array.from({ length: pool.length / width }, (_, number) => ({ number, row: pool.subarray(number * width, (number + 1) * width) }));
  for (const one of rows) one.cosine = embedding.reduce((sum, value, at) => sum + value * one.row[start + at], 0); // times one factor
  const best = rows.sort((a, b) => b.cosine - a.cosine).slice(0, NEAREST);
  $("nearest").replaceChildren(...best.map(({ number, row }) => {
    const figure = document.createElement("span"), picture = document.createElement("canvas"), image = new ImageData(BLOCKS, BLOCKS);
    row.subarray(1, start).forEach((value, at) => image.data.set([2 * value, 2 * value, 2 * value, 255], 4 * at));
    Object.assign(picture, { width: BLOCKS, height: BLOCKS }).getContext("2d").putImageData(image, 0, 0);
    Object.assign(picture.style, { display: "block", width: "48px", borderRadius: ".2rem" });
    figure.title = `${String(number).padStart(5, "0")}.png`; // of images/unlabeled of `must demo`
    figure.append(picture, CLASSES[row[0]]);
    return figure;
  }));
}

let last = null;
const at = ({ offsetX, offsetY }) => [offsetX * canvas.width / canvas.clientWidth, offsetY * canvas.height / canvas.clientHeight];
canvas.onpointerdown = (event) => { last = at(event); canvas.setPointerCapture(event.pointerId); canvas.onpointermove(event); };
canvas.onpointermove = (event) => {
  if (!last) return;
  Object.assign(pen, { strokeStyle: "#fff", lineWidth: 34, lineCap: "round" });
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...(last = at(event)));
  pen.stroke();
};
canvas.onpointerup = canvas.onpointercancel = () => { last = null; name(); };
$("clear").onclick = clear;
canvas.nameIt = name; // for tests

const unpack = async (name) => new Response((await fetch(new URL(name, import.meta.url))).body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
Object.assign(ort.env.wasm, { wasmBinary: await unpack("ort.bin"), numThreads: 1 });
pool = new Int8Array(await unpack("pool.bin"));
model = await ort.InferenceSession.create(await unpack("model.bin"));
clear();
