// Asks each kind of question in one form and then in the others; prints what was made of the miss and of the hits.
// usage: TEAM_KEY=... node replay.mjs plain|stream BASE_URL
import OpenAI from "openai";

const [first, baseURL] = process.argv.slice(2);
const told = [];
const client = new OpenAI({
  baseURL,
  apiKey: process.env.TEAM_KEY,
  maxRetries: 0,
  async fetch(url, options) {
    const response = await fetch(url, options);
    told.push(response.headers.get("cache-status"));
    return response;
  },
});

const parameters = { type: "object", properties: { basin: { type: "string" }, at: { type: "integer" } } };
const tool = { type: "function", function: { name: "depth_of", parameters } };
const likely = { logprobs: true, top_logprobs: 2, n: 2 };
const kinds = {
  text: ["How deep?", {}],
  choices: ["How deep?", { n: 3 }],
  "cut short": ["How deep?", { max_tokens: 3 }],
  likely: ["How deep?", likely],
  "tool call": ["How deep?", { tools: [tool], tool_choice: "required", n: 2 }],
  refusal: ["refuse:I will not say, žluť 🦔.", likely],
};

// Without what is not in both forms, and the SDK's own notes.
function said(completion) {
  const dropped = new Set(["annotations", "parsed", "parsed_arguments", "_request_id"]);
  const sorted = (value) => {
    if (Array.isArray(value)) return value.map(sorted);
    if (value === null || typeof value !== "object") return value;
    const names = Object.keys(value).filter((name) => !dropped.has(name) && value[name] != null).sort();
    return Object.fromEntries(names.map((name) => [name, sorted(value[name])]));
  };
  return sorted(completion);
}

async function streamed(question) {
  const seen = { content: "", refusal: "", done: 0 };
  const stream = client.chat.completions
    .stream({ ...question, stream_options: { include_usage: true } })
    .on("content.delta", ({ delta }) => (seen.content += delta))
    .on("refusal.delta", ({ delta }) => (seen.refusal += delta))
    .on("tool_calls.function.arguments.done", ({ arguments: text }) => (seen.done += JSON.parse(text).at));
  const final = await stream.finalChatCompletion();
  const calls = final.choices.flatMap((choice) => choice.message.tool_calls ?? []);
  const same = (name) => seen[name] === final.choices.map((choice) => choice.message[name] ?? "").join("");
  // Pieces of several choices come in turn, so that only those of one can be joined here.
  if (final.choices.length === 1 && !(same("content") && same("refusal"))) throw new Error("events tell another story");
  if (seen.done !== calls.length) throw new Error(`${seen.done} calls were told of, and ${calls.length} made`);
  return said(final);
}

const forms = { plain: async (question) => said(await client.chat.completions.create(question)), stream: streamed };

async function ran(question, stream) {
  const calls = [];
  const depth = ({ basin, at }) => (calls.push([basin, at]), "4 m");
  const runner = client.chat.completions.runTools({
    ...question,
    stream,
    tools: [{ type: "function", function: { name: "depth_of", parse: JSON.parse, function: depth, parameters } }],
    tool_choice: { type: "function", function: { name: "depth_of" } },
  });
  const result = await runner.finalFunctionToolCallResult();
  return { calls, result, message: said(runner.messages.at(-2)) };
}

function statuses() {
  const kept = told.splice(0).map((status) => (status.startsWith("tollgate; hit") ? "hit" : "miss"));
  return [kept[0], ...new Set(kept.slice(1))];
}

const seen = {};
const order = first === "plain" ? ["plain", "stream", "plain"] : ["stream", "plain", "stream"];
for (const [kind, [content, options]] of Object.entries(kinds)) {
  const question = { model: "gpt-4o-mini", temperature: 0, messages: [{ role: "user", content }], ...options };
  const answers = [];
  for (const form of order) answers.push(await forms[form](question));
  const [miss, ...hits] = answers.map((answer) => JSON.stringify(answer));
  seen[kind] = { miss, hit: hits.find((hit) => hit !== miss) ?? miss, statuses: statuses() };
}
const question = { model: "gpt-4o-mini", temperature: 0, messages: [{ role: "user", content: "How deep is it?" }] };
const runs = [];
for (const form of order) runs.push(JSON.stringify(await ran(question, form === "stream")));
seen["tools that run"] = { miss: runs[0], hit: runs.find((run) => run !== runs[0]) ?? runs[0], statuses: statuses() };
console.log(JSON.stringify(seen));
