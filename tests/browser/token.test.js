// The chat page against a server that asks for tokens.
//
// FANWIRE_BIN and FANWIRE_CHROMIUM as in chat.test.js.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { freePort, startServer } from './server.js';

const WAIT_MS = 10_000;
const SECRET = fileURLToPath(new URL('../keys/secret', import.meta.url));

let server, browser;

before(async () => {
  server = await startServer(await freePort(), { flags: ['--auth-keys', `HS256:${SECRET}`] });
  browser = await chromium.launch({
    executablePath: process.env.FANWIRE_CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'],
  });
});

after(async () => {
  await browser?.close();
  await server?.stop('SIGKILL');
});

function sign(claims) {
  const part = value => Buffer.from(JSON.stringify(value)).toString('base64url');
  const message = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  const secret = readFileSync(SECRET, 'utf8').trimEnd();
  return `${message}.${createHmac('sha256', secret).update(message).digest('base64url')}`;
}

const now = () => Math.floor(Date.now() / 1000);
const rooms = [{ pattern: '*', join: true, publish: true }];

async function open(address) {
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(WAIT_MS);
  await page.goto(`${server.origin}/${address}`);
  return page;
}

const isMember = (page, room) =>
  page.locator(`#rooms li[data-room="${room}"][data-joined=yes]`).waitFor({ state: 'attached' });
const locked = async (page, words) => {
  await page.locator('#status[data-state=locked]').waitFor();
  await page.locator('#notice-text', { hasText: words }).waitFor();
};

test('a page without a token says what is missing', async () => {
  await locked(await open('?room=lobby'), 'yours is missing');
});

test('a page with a wrong token says so', async () => {
  await locked(await open(`?token=${sign({ sub: 'eve', exp: 1 })}`), 'is not accepted');
});

test('a token opens the page, leaves the address, survives a reload and ends', async () => {
  const page = await open(`?room=lobby&token=${sign({ sub: 'alice', exp: now() + 600, rooms })}`);
  await isMember(page, 'lobby');
  assert.ok(!page.url().includes('token'), page.url());
  await page.reload();
  await isMember(page, 'lobby');
  await page.locator('#text').fill('hello');
  await page.locator('#text').press('Enter');
  await page.locator('.msg[data-sender=alice]', { hasText: 'hello' }).waitFor();

  await locked(await open(`?room=lobby&token=${sign({ sub: 'bob', exp: now() + 3, rooms })}`), 'has expired');
});
