// Runs what it is told in a headless Chromium: a line of JSON in ({code, given}), a line of JSON out ({value} or {error}).
// The code is the body of an async function of `browser`, `state` (kept between lines), `given` and `axe`.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const alone = ["--disable-component-update", "--disable-sync", "--no-sandbox"];
const browser = await chromium.launch({ executablePath: process.argv[2], args: [...quiet, ...alone] });
const state = {};
const AsyncFunction = (async () => {}).constructor;

for await (const line of createInterface({ input: process.stdin })) {
  const { code, given } = JSON.parse(line);
  let answer;
  try {
    const value = await new AsyncFunction("browser", "state", "given", "axe", code)(browser, state, given, axe);
    answer = { value: value ?? null };
  } catch (error) {
    answer = { error: String(error.stack ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
