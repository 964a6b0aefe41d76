// One scenario of the official Node SDK; prints what it saw as one JSON object.
// usage: TEAM_KEY=... node client.mjs SCENARIO BASE_URL
import OpenAI, { AzureOpenAI } from "openai";

const [scenario, baseURL] = process.argv.slice(2);
const apiKey = process.env.TEAM_KEY;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const conversation = {
  model: "gpt-4o-mini",
  messages: [
    { role: "system", content: "You are a lock-keeper." },
    { role: "user", content: "How deep is the basin?" },
    { role: "assistant", content: "Four metres." },
    { role: "user", content: "echo:žluť 🦔, and the lock next to it?" },
  ],
};

async function streamed(options) {
  const stream = await client.chat.completions.create({ ...conversation, stream: true, ...options });
  let text = "";
  let usage = null;
  let emptyChunks = 0;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
    emptyChunks += chunk.choices.length === 0;
  }
  return { text, usage, emptyChunks };
}

async function refusal(ask) {
  try {
    await ask();
    return "no error";
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.code ?? null];
  }
}

const scenarios = {
  async plain() {
    const { data, response } = await client.chat.completions.create(conversation).withResponse();
    const headers = Object.fromEntries(response.headers);
    return { text: data.choices[0].message.content, usage: data.usage, headers, requestId: data._request_id };
  },
  stream: () => streamed({}),
  streamWithUsage: () => streamed({ stream_options: { include_usage: true } }),
  async tools() {
    const parameters = { type: "object", properties: { basin: { type: "string" } } };
    const messages = [{ role: "user", content: "How deep is the basin?" }];
    const tools = [{ type: "function", function: { name: "depth_of", parameters } }];
    const stream = client.chat.completions.stream({ model: "gpt-4o-mini", messages, tools, tool_choice: "required" });
    const final = await stream.finalChatCompletion();
    return final.choices[0].message.tool_calls[0].function;
  },
  async azure() {
    const place = { endpoint: baseURL.replace(/\/v1$/, ""), apiVersion: "2024-10-21", maxRetries: 0 };
    const azure = new AzureOpenAI({ ...place, apiKey });
    const plain = await azure.chat.completions.create(conversation);
    let text = "";
    for await (const chunk of await azure.chat.completions.create({ ...conversation, stream: true })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    const embedded = await azure.embeddings.create({ model: "text-embedding-3-small", input: "x" });
    const nobody = new AzureOpenAI({ ...place, apiKey: "sk-tg_nobody" });
    const refused = await refusal(() => nobody.chat.completions.create(conversation));
    return { plain: plain.choices[0].message.content, text, embedded: embedded.data.length, refused };
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return { ids, one: (await client.models.retrieve("gpt-4o-mini")).id };
  },
  async errors() {
    const ask = (changes, headers) => client.chat.completions.create({ ...conversation, ...changes }, { headers });
    const stranger = new OpenAI({ baseURL, apiKey: "sk-tg_nobody", maxRetries: 0 });
    return {
      authentication: await refusal(() => stranger.chat.completions.create(conversation)),
      notFound: await refusal(() => ask({ model: "gpt-none" })),
      badRequest: await refusal(() => ask({ temperature: 2.5 })),
      internal: await refusal(() => ask({}, { "x-simulate-status": "500" })),
      permission: await refusal(() => client.files.list()),
      brokenStream: await refusal(async () => {
        const stream = await client.chat.completions.create(
          { ...conversation, stream: true },
          { headers: { "x-simulate-cut-after": "2" } },
        );
        for await (const _ of stream);
      }),
    };
  },
  async embeddings() {
    const { data, usage } = await client.embeddings.create({ model: "text-embedding-3-small", input: ["How deep?", "Hi"] });
    return { data, usage };
  },
  async moderations() {
    const { model, results } = await client.moderations.create({ input: ["How deep?", "violence"] });
    return { model, results };
  },
  async completions() {
    const ask = { model: "gpt-3.5-turbo-instruct", prompt: ["How deep?", "echo:žluť 🦔"], echo: true };
    const { choices, usage } = await client.completions.create(ask);
    const texts = ["", ""];
    const stream = await client.completions.create({ ...ask, stream: true });
    for await (const { choices: [choice] } of stream) texts[choice.index] += choice.text;
    return { choices, usage, texts };
  },
  async responses() {
    const ask = { model: "gpt-4o-mini", input: "echo:žluť 🦔, and the lock next to it?" };
    const plain = await client.responses.create(ask);
    const kinds = [];
    const stream = client.responses.stream(ask);
    for await (const event of stream) kinds.push(event.type);
    const streamed = await stream.finalResponse();
    const counted = await client.responses.inputTokens.count(ask);
    const texts = [plain.output_text, streamed.output_text];
    return { texts, usage: [plain.usage, streamed.usage], kinds, counted: counted.input_tokens };
  },
  async slowStreams() {
    const headers = { "x-simulate-ttft-ms": "200", "x-simulate-chunk-ms": "70" };
    const ask = { ...conversation, stream: true, stream_options: { include_usage: true } };
    const chat = { text: "", usage: null };
    for await (const { choices, usage } of await client.chat.completions.create(ask, { headers })) {
      chat.text += choices[0]?.delta?.content ?? "";
      chat.usage = usage ?? chat.usage;
    }
    const stream = client.responses.stream({ model: "gpt-4o-mini", input: "Hi" }, { headers });
    return [chat, (await stream.finalResponse()).status];
  },
  async responseErrors() {
    const ask = (changes, headers) =>
      client.responses.create({ model: "gpt-4o-mini", input: "Hi", ...changes }, { headers });
    return {
      state: await refusal(() => ask({ previous_response_id: "resp_1" })),
      kept: await refusal(() => client.responses.retrieve("resp_1")),
      badRequest: await refusal(() => ask({ max_output_tokens: 0 })),
      brokenStream: await refusal(async () => {
        const stream = await ask({ stream: true }, { "x-simulate-cut-after": "5" });
        for await (const _ of stream);
      }),
    };
  },
  async limited() {
    const patient = new OpenAI({ baseURL, apiKey, maxRetries: 4 });
    await patient.chat.completions.create(conversation);
    // Where the machine stood still for as long as the wait is, another one takes what has come back.
    let impatient = "no error";
    for (let asked = 0; impatient === "no error" && asked < 50; asked++) {
      impatient = await refusal(() => client.chat.completions.create(conversation));
    }
    const answer = await patient.chat.completions.create(conversation);
    return { impatient, text: answer.choices[0].message.content };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
