/** The live dashboard and the report, in a real browser (headless Chromium), at the widths of a desktop and a phone. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Browser, type Page, chromium } from "playwright-core";
import { COLUMNS, listRuns, readRun, readUpdate } from "../../packages/train/src/dashboard/data.ts";
import { watchRun, writeReport } from "../../packages/train/src/dashboard/index.ts";
import { pageHtml } from "../../packages/train/src/dashboard/page.ts";
import { RunDirectory } from "../../packages/train/src/run.ts";
import { statusOf } from "./support/http.ts";
import { Workplace, flags, smallFlags, storyText, until } from "./support/workplace.ts";

const place = new Workplace();
let browser: Browser | undefined;

beforeAll(async () => {
  const executablePath =
    process.env.CHROMIUM ?? Bun.which("chromium") ?? Bun.which("chromium-browser") ?? Bun.which("google-chrome");
  if (executablePath === null) console.log("skipped: no Chromium here; set CHROMIUM to its path");
  else {
    const env = { ...process.env, LD_PRELOAD: "" }; // a browser does not start with what tests/sanitize.ts preloads
    browser = await chromium.launch({ executablePath, args: ["--no-sandbox"], env });
  }
}, 60_000);
afterAll(async () => {
  await browser?.close();
  place[Symbol.dispose]();
});

/** A run's files, with `steps` lines of metrics. The dashboard shows it beside all others in its folder. */
function makeRun(name: string, steps: number, { offset = 0, folder = "runs" } = {}): RunDirectory {
  const run = new RunDirectory(place.path(folder, name));
  mkdirSync(run.path, { recursive: true });
  writeFileSync(run.metrics, "");
  for (let step = 1; step <= steps; step++) appendStep(run, step, offset);
  writeFileSync(run.samples, "--- step 10\nOnce upon a time</script><b>there was\n--- step 20\nThe end.\n");
  const model = { numLayers: 2, dModel: 32, numHeads: 2, dFf: "auto", contextLength: 16, vocabSize: "auto" };
  const choices = [{ path: "model.dFf", value: 64, reason: "" }];
  writeFileSync(run.config, JSON.stringify({ steps: 100, lr: 1e-3, schedule: "cosine", batchSize: 4, model, choices }));
  return run;
}

function appendStep(run: RunDirectory, step: number, offset = 0): void {
  const loss = 2 + 3 * Math.exp(-step / 15) + offset;
  const metrics: Record<string, number> = {
    step,
    time: step * 0.5,
    tokens: step * 64,
    loss,
    lr: 1e-3,
    gradNorm: 1,
    tokensPerSecond: 3e4,
    mfu: 0.4,
    memory: 2e8,
  };
  if (step % 10 === 0) Object.assign(metrics, { valLoss: loss + 0.1, valBitsPerByte: loss / 3, updateRatio: 1e-3 });
  appendFileSync(run.metrics, `${JSON.stringify(metrics)}\n`);
}

interface Opened extends AsyncDisposable {
  page: Page;
  problems: string[];
}

/** Opens a page; what the console complains of, and what it asks of other hosts, is collected. */
async function open(url: string, width: number, height: number, shows = ".chart canvas"): Promise<Opened> {
  const context = await browser!.newContext({ viewport: { width, height }, deviceScaleFactor: 2 });
  const page = await context.newPage();
  const problems: string[] = [];
  page.on("console", (message) => void (message.type() === "error" && problems.push(message.text())));
  page.on("pageerror", (error) => void problems.push(String(error)));
  page.on(
    "request",
    (request) => void (/127\.0\.0\.1|^file:|^data:/.test(request.url()) || problems.push(request.url())),
  );
  await page.goto(url);
  await page.waitForSelector(shows);
  return { page, problems, [Symbol.asyncDispose]: () => context.close() };
}

/** How many pixels of a chart are coloured as curves are, not grey. */
function colouredPixels(page: Page, chart: number): Promise<number> {
  return page.evaluate((index) => {
    const canvas = document.querySelector(`#chart-${index} canvas`) as HTMLCanvasElement;
    const { data } = canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) {
      const [r, g, b, a] = [data[i], data[i + 1], data[i + 2], data[i + 3]];
      if (a > 100 && Math.max(r, g, b) - Math.min(r, g, b) > 60) count++;
    }
    return count;
  }, chart);
}

/** Pictures for whoever wants to look: set SCREENSHOTS to a directory. */
async function picture(page: Page, name: string): Promise<void> {
  const folder = process.env.SCREENSHOTS;
  if (folder !== undefined) await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
}

async function fitsItsWidth(page: Page): Promise<boolean> {
  return page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
}

const needsBrowser = (act: () => Promise<void>) => async () => {
  if (browser !== undefined) await act();
};

test(
  "live: curves of several runs are drawn, new steps and samples arrive, axes and runs can be chosen",
  needsBrowser(async () => {
    const run = makeRun("main", 40);
    makeRun("other", 60, { offset: 0.5 });
    using dashboard = await watchRun(run, 0);
    await using opened = await open(dashboard.url, 1280, 900);
    const { page, problems } = opened;
    expect(await page.textContent("h1")).toBe("Mantou: main");
    for (let chart = 0; chart < 7; chart++) expect(await colouredPixels(page, chart)).toBeGreaterThan(100);
    expect(await page.textContent("#tiles")).toContain("40 / 100");
    expect(await page.locator(".run").allTextContents()).toEqual(["main", "other"]);

    for (let step = 41; step <= 70; step++) appendStep(run, step);
    appendFileSync(run.samples, "--- step 70\nA new sample.\n");
    await page.waitForFunction(() => document.querySelector("#tiles")!.textContent!.includes("70 / 100"));
    expect(await page.textContent("#status")).toBe("live");
    expect(await page.textContent("#samples details[open]")).toContain("A new sample.");

    // Taken back by a rollback: the file is shorter than what the page knew.
    writeFileSync(run.metrics, "");
    for (let step = 1; step <= 30; step++) appendStep(run, step);
    await page.waitForFunction(() => document.querySelector("#tiles")!.textContent!.includes("30 / 100"));

    const both = await colouredPixels(page, 0);
    await page.locator(".run", { hasText: "other" }).locator("input").click();
    expect(await colouredPixels(page, 0)).toBeLessThan(both);
    await page.locator("button", { hasText: "time" }).click();
    expect(await page.locator("#chart-0 .u-legend .u-label").first().textContent()).toBe("time");
    await picture(page, "live-desktop");
    expect(problems).toEqual([]);
  }),
  60_000,
);

test(
  "a run without a step says that there is nothing to draw, until there is",
  needsBrowser(async () => {
    const run = makeRun("begun", 0, { folder: "alone" });
    using dashboard = await watchRun(run, 0);
    await using opened = await open(dashboard.url, 1280, 900, ".chart .empty");
    expect(await opened.page.locator(".chart .empty").allTextContents()).toEqual(Array(7).fill("nothing to draw yet"));
    for (let step = 1; step <= 12; step++) appendStep(run, step);
    await opened.page.locator(".chart canvas").nth(6).waitFor();
    expect(await opened.page.locator(".chart .empty").count()).toBe(0);
    expect(opened.problems).toEqual([]);
  }),
  60_000,
);

test(
  "the report stands alone: drawn from the file, on a desktop and on a phone, without a request",
  needsBrowser(async () => {
    const run = makeRun("reported", 100);
    const path = writeReport(run);
    for (const [name, width, height] of [
      ["desktop", 1280, 900],
      ["phone", 375, 740],
    ] as const) {
      await using opened = await open(`file://${path}`, width, height);
      const { page, problems } = opened;
      expect(await colouredPixels(page, 0)).toBeGreaterThan(100);
      expect(await fitsItsWidth(page)).toBe(true);
      expect(await page.textContent("#tiles")).toContain("100 / 100");
      // A sample is text, whatever stands in it.
      await page.locator("summary", { hasText: "step 10" }).click();
      expect(await page.locator("#samples pre").last().textContent()).toBe("Once upon a time</script><b>there was");
      expect(await page.textContent("#facts")).toContain("dFf 64");
      const size = await page.evaluate(() =>
        parseFloat(getComputedStyle(document.querySelector(".tile .value")!).fontSize),
      );
      expect(size).toBeGreaterThanOrEqual(16);
      await picture(page, `report-${name}`);
      expect(problems).toEqual([]);
    }
  }),
  60_000,
);

test(
  "train --watch: the page is there while it trains, and the report at the end",
  needsBrowser(async () => {
    const data = place.file("stories.txt", storyText(60_000));
    const settings = {
      data,
      name: "watched",
      steps: 100_000,
      evalInterval: 20,
      sampleInterval: 20,
      checkpointInterval: 0,
    };
    const running = place.start("train", ...smallFlags, ...flags(settings), "--watch", "--watch-port", "0");
    const metrics = place.path("runs/watched/metrics.jsonl");
    await until(() => existsSync(metrics) && readFileSync(metrics, "utf8").length > 0, running);
    // The address is printed; it is found by asking, as the output is only read at the end.
    const config = new RunDirectory(place.path("runs/watched"));
    using dashboard = await watchRun(config, 0);
    await using opened = await open(dashboard.url, 1280, 900);
    await opened.page.waitForFunction(
      () => Number(/step(\d+)/.exec(document.querySelector("#tiles")!.textContent!)![1]) > 40,
    );
    running.kill("SIGINT");
    const { stdout, code } = await running.ended;
    expect(code).toBe(0);
    expect(stdout).toMatch(/watch {3}http:\/\/127\.0\.0\.1:\d+\//);
    expect(existsSync(join(config.path, "report.html"))).toBe(true);
    expect(opened.problems).toEqual([]);
  }),
  60_000,
);

describe("the server", () => {
  test("answers only what it should", async () => {
    const run = makeRun("served", 5);
    using dashboard = await watchRun(run, 0);
    const get = (path: string, init?: RequestInit) => fetch(new URL(path, dashboard.url), init);
    const update = (await (await get("/api/run/served?from=0")).json()) as ReturnType<typeof readUpdate>;
    expect(update.columns.step).toEqual([1, 2, 3, 4, 5]);
    const rest = (await (await get(`/api/run/served?from=${update.next}`)).json()) as ReturnType<typeof readUpdate>;
    expect(rest.columns.step).toEqual([]);
    expect((await get("/api/run/none")).status).toBe(404);
    expect((await get("/api/run/..%2F..")).status).toBe(404);
    expect((await get("/api/run/%")).status).toBe(404);
    expect((await get("/api/run/served?from=-1")).status).toBe(400);
    expect((await get("/api/run/served?from=x")).status).toBe(400);
    expect((await get("/other")).status).toBe(404);
    expect((await get("/", { method: "POST" })).status).toBe(405);
    expect((await get("/", { headers: { host: "evil.example" } })).status).toBe(403);
    expect(await statusOf(Number(new URL(dashboard.url).port), "GET / HTTP/1.0")).toBe(403);
    await expect(watchRun(run, Number(new URL(dashboard.url).port))).rejects.toThrow("cannot be served on port");
  });

  test("does without lines that are cut off or nonsense, a config, samples", () => {
    const run = makeRun("odd", 3);
    appendFileSync(run.metrics, 'nonsense\nnull\n[1]\n{}\n{"step":"4"}\n{"step":4,"loss":"x"}\n{"step":5,');
    const update = readUpdate(run, 0);
    expect(update.columns.step).toEqual([1, 2, 3, 4]);
    expect(update.columns.loss.at(-1)).toBeNull();
    for (const config of ["null", "[]", '{"choices":1}', '{"model":null}', "{"]) {
      writeFileSync(run.config, config);
      expect(readRun(run.path, "odd")).toMatchObject({ steps: 0, facts: [] });
    }
    const data = readRun(run.path, "odd");
    expect(pageHtml("a <b>", { live: false, main: "odd", axis: "step", runs: [data] })).toContain(
      "<title>a &lt;b></title>",
    );
    expect(listRuns(place.path("runs"))).toContain("odd");
    const many = makeRun("many", 300);
    const thin = readRun(many.path, "many", 50).columns;
    expect(thin.step.length).toBeLessThan(110);
    expect(thin.step.at(-1)).toBe(300);
    expect(thin.valLoss.filter((value) => value !== null)).toHaveLength(30);
    for (const name of COLUMNS) expect(thin[name]).toHaveLength(thin.step.length);
  });
});
