// One page load runs one job: fetch it, run the model in onnxruntime-web, send outputs and times, load anew.
// The rule: the clock runs around session.run alone, and nothing is fetched, sent or shown while it runs.

const ort = await import("/ort/ort.wasm.min.mjs");
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  bool: Uint8Array, float16: globalThis.Float16Array ?? Uint16Array,
};
// (func (result v128) i32.const 0; i8x16.splat; i8x16.popcnt)
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const MOST_ITERATIONS = 300000;
const WATCH_MS = 20000;

let stage = "job";
let hidden = document.hidden ? 1 : 0;
let blobs = 0;
document.addEventListener("visibilitychange", () => { hidden += 1; });

function log(text) {
  document.getElementById("log").textContent += text + "\n";
}

function nanoseconds(milliseconds) {
  return Math.max(1, Math.round(milliseconds * 1e6));
}

function resolution() {
  let least = Infinity;
  for (let seen = 0; seen < 40; seen += 1) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}

async function facts() {
  let adapter = null;
  try {
    adapter = navigator.gpu ? await navigator.gpu.requestAdapter() : null;
  } catch (error) {
    adapter = null;
  }
  return {
    agent: navigator.userAgent, cores: navigator.hardwareConcurrency || 1, secure: isSecureContext,
    isolated: crossOriginIsolated, simd: WebAssembly.validate(new Uint8Array(SIMD)),
    threads: crossOriginIsolated && typeof SharedArrayBuffer !== "undefined", webgpu: adapter !== null,
    resolution_ms: resolution(), version: ort.env.versions.web ?? ort.env.versions.common,
  };
}

async function bytesOf(id) {
  const reply = await fetch(`/file/${id}`);
  if (!reply.ok) throw new Error(`a file of the job was not given: ${reply.status}`);
  return reply.arrayBuffer();
}

async function post(path, body, type) {
  const reply = await fetch(path, { method: "POST", body, headers: { "Content-Type": type } });
  if (!reply.ok) throw new Error(`${path} was refused: ${reply.status}`);
}

async function digestOf(bytes) {
  if (!globalThis.crypto?.subtle) return "";
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return "sha256:" + [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function samplesOf(job) {
  const samples = [];
  for (const inputs of job.inputs) {
    const feeds = {};
    for (const [name, entry] of Object.entries(inputs)) {
      feeds[name] = new ort.Tensor(entry.dtype, new ARRAYS[entry.dtype](await bytesOf(entry.id)), entry.shape);
    }
    samples.push(feeds);
  }
  return samples;
}

async function outputsOf(session, samples, job) {
  const told = [];
  for (const feeds of samples) {
    const results = await session.run(feeds);
    const tensors = [];
    for (const name of session.outputNames) {
      const { data, type, dims } = results[name];
      const body = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
      await post(`/blob/${job.job}/${blobs}`, body, "application/octet-stream");
      tensors.push({ name, blob: blobs, dtype: type, shape: [...dims] });
      blobs += 1;
    }
    told.push(tensors);
  }
  return told;
}

// A fixed piece of work, float32 and int8 products in plain loops, 12 times after those that warm the compiler up.
function sentinel() {
  const size = 128;
  const floats = Float32Array.from({ length: size * size }, (_, index) => ((index % 101) - 50) / 50);
  const integers = Int8Array.from(floats, (value) => value * 50);
  const out = new Float32Array(size * size);
  const whole = new Int32Array(size * size);
  const times = [];
  for (let piece = 0; piece < 32; piece += 1) {
    const start = performance.now();
    multiplyFloats(floats, out, size);
    multiplyIntegers(integers, whole, size);
    times.push(nanoseconds(performance.now() - start));
  }
  return times.slice(20);
}

// Two functions, so that each is compiled for one type of array.
function multiplyFloats(matrix, out, size) {
  for (let row = 0; row < size; row += 1) {
    for (let column = 0; column < size; column += 1) {
      let sum = 0;
      for (let inner = 0; inner < size; inner += 1) sum += matrix[row * size + inner] * matrix[inner * size + column];
      out[row * size + column] = sum;
    }
  }
}

function multiplyIntegers(matrix, out, size) {
  for (let row = 0; row < size; row += 1) {
    for (let column = 0; column < size; column += 1) {
      let sum = 0;
      for (let inner = 0; inner < size; inner += 1) {
        sum = (sum + Math.imul(matrix[row * size + inner], matrix[inner * size + column])) | 0;
      }
      out[row * size + column] = sum;
    }
  }
}

async function warmUp(session, samples, plan) {
  const start = performance.now();
  const times = [];
  let count = 0;
  for (;;) {
    const spent = (performance.now() - start) / 1000;
    if (spent >= plan.cap_seconds || (count >= plan.iterations && spent >= plan.seconds)) break;
    const began = performance.now();
    await session.run(samples[count % samples.length]);
    if (times.length < 100) times.push(nanoseconds(performance.now() - began));
    count += 1;
  }
  return { count, seconds: (performance.now() - start) / 1000, times };
}

// So many inferences between two readings that one step of the clock is less than 1 % of what is read.
async function batchFor(session, samples, tick) {
  for (let batch = 1; ; batch *= 2) {
    let least = Infinity;
    for (let repeat = 0; repeat < 8; repeat += 1) {
      const start = performance.now();
      for (let index = 0; index < batch; index += 1) await session.run(samples[index % samples.length]);
      least = Math.min(least, performance.now() - start);
    }
    if (least >= 120 * tick || batch >= 65536) return batch;
  }
}

async function timed(session, samples, { plan, batch }) {
  const times = [];
  let count = 0;
  const start = performance.now();
  const most = Math.min(plan.cap_iterations, MOST_ITERATIONS);
  for (;;) {
    const spent = (performance.now() - start) / 1000;
    const enough = times.length >= plan.iterations && spent >= plan.seconds;
    if (enough || times.length >= most || (times.length > 0 && spent >= plan.cap_seconds)) break;
    const began = performance.now();
    for (let index = 0; index < batch; index += 1) {
      await session.run(samples[count % samples.length]);
      count += 1;
    }
    times.push(nanoseconds((performance.now() - began) / batch));
  }
  return { times, seconds: (performance.now() - start) / 1000 };
}

async function memory() {
  if (!crossOriginIsolated || !performance.measureUserAgentSpecificMemory) return null;
  const late = new Promise((resolve) => { setTimeout(() => resolve(null), WATCH_MS); });
  const found = await Promise.race([performance.measureUserAgentSpecificMemory(), late]);
  return found === null ? null : found.bytes;
}

async function open(job, answer) {
  const bytes = await bytesOf(job.model);
  answer.digest = await digestOf(bytes);
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "error";
  stage = "load";
  const start = performance.now();
  const session = await ort.InferenceSession.create(bytes, { ...job.options, executionProviders: ["wasm"] });
  answer.load_ms = Math.max(1e-6, performance.now() - start);
  answer.threads = ort.env.wasm.numThreads;
  stage = "run";
  return session;
}

async function timeModel(job, samples, answer) {
  answer.sentinel_before_ns = sentinel();
  const session = await open(job, answer);
  const start = performance.now();
  await session.run(samples[0]);
  const first = Math.max(1e-6, performance.now() - start);
  answer.outputs = await outputsOf(session, samples.slice(0, job.goldens), job);
  const warm = await warmUp(session, samples, job.warmup);
  const batch = await batchFor(session, samples, answer.facts.resolution_ms);
  const found = await timed(session, samples, { plan: job.timed, batch });
  answer.times = {
    first_ms: first, warmup: warm.count, warmup_seconds: warm.seconds, warmup_ns: warm.times,
    iterations_ns: found.times, batch, seconds: found.seconds,
  };
  answer.after = await outputsOf(session, samples.slice(0, job.goldens), job);
  answer.sentinel_after_ns = sentinel();
}

async function memoryOf(job, samples, answer) {
  answer.memory_before = await memory();
  const session = await open(job, answer);
  answer.memory_loaded = await memory();
  const done = await warmUp(session, samples, job.timed);
  answer.memory_after = await memory();
  answer.iterations = done.count;
  answer.outputs = await outputsOf(session, samples.slice(0, job.goldens), job);
}

async function run(job, answer) {
  answer.facts = await facts();
  if (job.mode === "describe") return;
  if (job.mode === "sentinel") {
    answer.sentinel_before_ns = sentinel();
    return;
  }
  const samples = await samplesOf(job);
  if (job.mode === "time") await timeModel(job, samples, answer);
  else if (job.mode === "memory") await memoryOf(job, samples, answer);
  else answer.outputs = await outputsOf(await open(job, answer), samples, job);
}

async function nextJob() {
  for (;;) {
    const reply = await fetch("/job");
    if (reply.status === 200) return reply.json();
    if (reply.status !== 204) throw new Error(`this page is paired no more (${reply.status})`);
  }
}

async function main() {
  history.replaceState(null, "", "/");
  log("waiting for a job");
  const job = await nextJob();
  log(`running: ${job.mode}`);
  const answer = { job: job.job };
  try {
    await run(job, answer);
  } catch (error) {
    answer.error = { kind: stage, message: String(error?.message ?? error).slice(0, 2000) };
  }
  answer.hidden = hidden;
  await post("/answer", JSON.stringify(answer), "application/json");
  location.replace("/");
}

main().catch((error) => log(`ended: ${error.message}`));
