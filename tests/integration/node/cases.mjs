// One table of things an application asks the official Node SDK; prints what it got at each place as one JSON object.
// usage: RESET_URL=... node cases.mjs PLACES, a JSON list of [BASE_URL, KEY]. RESET_URL is where upstream is told to forget
// what it keeps. Ids are numbered in the order in which they appear, and times are left out.
import { createHash } from "node:crypto";
import OpenAI, { toFile } from "openai";

const model = "gpt-4o-mini";
const text = "žluť 🦔, and the lock next to it?";
const asked = { model, messages: [{ role: "user", content: `echo:${text}` }] };
const prompt = { model: "gpt-3.5-turbo-instruct", prompt: ["How deep?", `echo:${text}`], echo: true };
const response = { model, input: `echo:${text}`, store: false };
const image = { model: "gpt-image-1", prompt: "a lock" };
const parameters = { type: "object", properties: { m: { type: "integer" } } };
const tools = [{ type: "function", function: { name: "depth", parameters } }];
const png = () => toFile(Buffer.from([0x89, 0x50, 0x4e, 0x47, ...Array(256).keys()]), "lock.png", { type: "image/png" });
const sound = () => toFile(Buffer.alloc(40_000), "žluť.wav", { type: "audio/wav" });
const small = (number) => toFile(Buffer.from("{}\n".repeat(number + 1)), `žluť-${number}.jsonl`);

async function all(stream) {
  const entries = [];
  for await (const entry of await stream) entries.push(entry);
  return entries;
}

const bytes = async (answer) => Buffer.from(await (await answer).arrayBuffer());
const faulty = (faults) => ({
  headers: Object.fromEntries(Object.entries(faults).map(([name, value]) => [`x-simulate-${name}`, String(value)])),
});

const cases = {
  chat: (c) => c.chat.completions.create({ ...asked, n: 2, seed: 7 }),
  chatStream: (c) => all(c.chat.completions.create({ ...asked, stream: true })),
  chatStreamUsage: (c) =>
    all(c.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })),
  chatTools: (c) => c.chat.completions.create({ ...asked, tools, tool_choice: "required" }),
  chatHelper: (c) => c.chat.completions.stream(asked).finalChatCompletion(),
  completions: (c) => c.completions.create({ ...prompt, n: 2, best_of: 3 }),
  completionsStream: (c) => all(c.completions.create({ ...prompt, stream: true })),
  embeddings: (c) => c.embeddings.create({ model: "text-embedding-3-small", input: ["How", text], dimensions: 8 }),
  moderations: (c) => c.moderations.create({ input: ["How deep?", "violence"] }),
  responses: (c) => c.responses.create(response),
  responsesStream: (c) => all(c.responses.create({ ...response, stream: true })),
  responsesHelper: (c) => c.responses.stream(response).finalResponse(),
  responsesCount: (c) => c.responses.inputTokens.count({ model, input: text }),
  models: (c) => all(c.models.list()),
  model: (c) => c.models.retrieve(model),
  images: (c) => c.images.generate({ ...image, n: 2, quality: "low", size: "1536x1024" }),
  imagesStream: (c) => all(c.images.generate({ ...image, stream: true, partial_images: 2 })),
  imagesOlder: (c) => c.images.generate({ model: "dall-e-3", prompt: "a lock", response_format: "b64_json" }),
  imageEdit: async (c) => c.images.edit({ ...image, image: [await png(), await png()], mask: await png() }),
  imageEditStream: async (c) => all(c.images.edit({ ...image, image: await png(), stream: true })),
  imageVariation: async (c) => c.images.createVariation({ image: await png(), n: 2, response_format: "b64_json" }),
  speech: async (c) => {
    const answer = await c.audio.speech.create({ model: "tts-1", voice: "alloy", input: text, response_format: "wav" });
    return [answer.headers.get("content-type"), await bytes(answer)];
  },
  speechEvents: async (c) => {
    const asked = { model: "gpt-4o-mini-tts", voice: "alloy", input: text, stream_format: "sse" };
    return (await bytes(c.audio.speech.create(asked))).toString().split("\n\n");
  },
  transcriptionTokens: async (c) =>
    c.audio.transcriptions.create({ model: "gpt-4o-transcribe", file: await sound(), prompt: `echo:${text}` }),
  translation: async (c) => c.audio.translations.create({ model: "whisper-1", file: await sound() }),
  transcriptionStream: async (c) =>
    all(c.audio.transcriptions.create({ model: "gpt-4o-transcribe", file: await sound(), stream: true })),
  withResponse: async (c) => {
    const { data, response, request_id: id } = await c.chat.completions.create(asked).withResponse();
    const told = ["content-type", "openai-version", "openai-model"].map((name) => response.headers.get(name));
    return [data, response.status, told, id.slice(0, 4)];
  },
  files: async (c) => {
    const made = [];
    for (const number of Array(5).keys())
      made.push(await c.files.create({ file: await small(number), purpose: "evals" }));
    const oneByOne = await all(c.files.list({ limit: 2, purpose: "evals", order: "asc" }));
    const page = await c.files.list({ limit: 2, purpose: "evals" });
    const following = await page.getNextPage();
    const again = await c.files.retrieve(made[1].id);
    const content = await bytes(c.files.content(made[1].id));
    const deleted = [];
    for (const { id } of made) deleted.push(await c.files.delete(id));
    return [made, oneByOne, page.data, page.has_more, following.data, again, content, deleted];
  },
  uploads: async (c) => {
    const upload = await c.uploads.create({ bytes: 8, filename: "a", mime_type: "text/plain", purpose: "user_data" });
    const parts = [];
    for (const data of ["lock", "deep"])
      parts.push(await c.uploads.parts.create(upload.id, { data: await toFile(Buffer.from(data), "data") }));
    const done = await c.uploads.complete(upload.id, { part_ids: parts.map(({ id }) => id).reverse() });
    return [upload, parts, done, await bytes(c.files.content(done.file.id))];
  },
  batches: async (c) => {
    const line = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body: asked };
    const file = await c.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), "a"), purpose: "batch" });
    const wanted = { input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
    const made = [await c.batches.create(wanted), await c.batches.create(wanted)];
    const cancelled = await c.batches.cancel(made[1].id);
    const done = await c.batches.retrieve(made[0].id);
    const content = (await bytes(c.files.content(done.output_file_id))).toString();
    return [made, cancelled, done, JSON.parse(content), await all(c.batches.list({ limit: 1 }))];
  },
  storedCompletions: async (c) => {
    const made = [];
    for (const n of ["0", "1", "2"]) made.push(await c.chat.completions.create({ ...asked, store: true, metadata: { n } }));
    const listed = await all(c.chat.completions.list({ limit: 2 }));
    const { id } = made[0];
    const said = await all(c.chat.completions.messages.list(id));
    const changed = await c.chat.completions.update(id, { metadata: { a: "b" } });
    return [made, listed, await c.chat.completions.retrieve(id), said, changed, await c.chat.completions.delete(id)];
  },
  storedResponses: async (c) => {
    const made = await c.responses.create({ ...response, store: true });
    const again = await c.responses.retrieve(made.id);
    const events = await all(c.responses.retrieve(made.id, { stream: true }));
    const items = await all(c.responses.inputItems.list(made.id));
    await c.responses.delete(made.id);
    const waiting = await c.responses.create({ ...response, store: true, background: true });
    return [made, again, events, items, waiting, await c.responses.cancel(waiting.id)];
  },
  // Errors: each is what the SDK raised.
  stranger: (c) => c.withOptions({ apiKey: "sk-nobody" }).chat.completions.create(asked),
  noSuchModel: (c) => c.chat.completions.create({ ...asked, model: "gpt-none" }),
  noSuchFile: (c) => c.files.retrieve("file-none"),
  noSuchSize: (c) => c.images.generate({ ...image, size: "3x3" }),
  errorInAStream: (c) =>
    all(c.chat.completions.create({ ...asked, stream: true }, faulty({ "error-event-after": 2 }))),
  tooLate: (c) => c.chat.completions.create(asked, { timeout: 300, ...faulty({ hang: 1 }) }),
};
for (const status of [400, 403, 404, 409, 422, 429, 500, 503]) {
  cases[`status${status}`] = (c) => c.chat.completions.create(asked, faulty({ status }));
  cases[`status${status}Stream`] = (c) => all(c.responses.create({ ...response, stream: true }, faulty({ status })));
}

const ownWords = new Set(["stranger", "noSuchModel"]);
const params = { noSuchModel: "model" }; // what the gateway says more than upstream does
const id = /\b(batch_req|[a-z]{2,9})([-_])(?=[0-9a-f]*\d)[0-9a-f]{24,64}\b/g;

function telling() {
  const ids = new Map();
  const number = (match, kind, dash) => {
    if (!ids.has(match)) ids.set(match, `${kind}${dash}${ids.size}`);
    return ids.get(match);
  };
  return function told(value) {
    if (typeof value === "string") return value.replace(id, number);
    if (Buffer.isBuffer(value)) return { bytes: value.length, sha256: createHash("sha256").update(value).digest("hex") };
    if (Array.isArray(value)) return value.map(told);
    if (value === null || typeof value !== "object") return value ?? null;
    const kept = Object.entries(value).filter(([name]) => name !== "_request_id");
    const time = (name, entry) => typeof entry === "number" && (name === "created" || name.endsWith("_at"));
    return Object.fromEntries(kept.map(([name, entry]) => [name, time(name, entry) ? "time" : told(entry)]));
  };
}

async function outcome(name, client) {
  const tell = telling();
  try {
    return tell(await cases[name](client));
  } catch (error) {
    if (!(error instanceof OpenAI.OpenAIError)) throw error;
    const { status, code, type, param, message, requestID } = error;
    const words = ownWords.has(name) ? typeof message : tell(message);
    const told = { status, code, type, param: param ?? params[name] ?? null, words };
    return { raised: error.constructor.name, ...told, id: requestID?.slice(0, 4) ?? null };
  }
}

const seen = [];
for (const [baseURL, apiKey] of JSON.parse(process.argv[2])) {
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  await fetch(process.env.RESET_URL, { method: "POST" });
  const outcomes = {};
  for (const name of Object.keys(cases)) outcomes[name] = await outcome(name, client);
  seen.push(outcomes);
}
console.log(JSON.stringify({ seen }));
