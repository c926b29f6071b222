// The page in Firefox, over WebDriver BiDi: node firefox.mjs PACKAGES URL PICTURE SCREENSHOT; prints what was seen as JSON.
import { createRequire } from "node:module";

const [packages, url, picture, screenshot] = process.argv.slice(2);
const puppeteer = createRequire(`${packages}/`)("puppeteer-core");

const seen = { errors: [] };
const browser = await puppeteer.launch({ browser: "firefox", executablePath: "/usr/bin/firefox-esr", headless: true });
try {
  const page = await browser.newPage();
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  await page.setViewport({ width: 1280, height: 820 });
  const text = (selector) => page.$eval(selector, (element) => element.textContent);
  const there = (selector) => page.waitForSelector(selector, { visible: true, timeout: 60_000 });

  await page.goto(url);
  await there("#grid button.tile");
  await page.type("#q", "red circle");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#grid button.tile svg path.line");
  seen.title = await text("#title");

  await page.click("#grid button.tile");
  await there("#regions .region");
  const { x, y, width, height } = await (await page.$("#stage")).boundingBox();
  await page.mouse.click(x + width / 3, y + height / 2);
  await there("#more-like-this:not(:disabled)");
  seen.outlined = (await page.$$("#stage-overlay path.line")).length;
  await page.screenshot({ path: screenshot });
  await page.click("#more-like-this");
  await page.waitForSelector("#viewer[open]", { hidden: true });
  seen.example = await text("#title");

  await page.click("#home");
  await (await page.$("#files")).uploadFile(picture);
  await page.waitForFunction(() => document.querySelector("#uploads-title").textContent.includes("added"), { timeout: 60_000 });
  seen.added = await text("#uploads-title");

  await page.click("#map-toggle");
  await page.waitForSelector("#map-canvas[aria-label]");
  await page.focus("#map-canvas");
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press(" ");
  await there("#patches .patch");
  seen.width = await page.evaluate(() => document.documentElement.scrollWidth);
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
