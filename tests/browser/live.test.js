// The live page in headless Chromium on the admin address of the real server.
//
// No page may write an error to its console, save the browser's own line about a failed request
// while we hold the server down or the page has no key.
//
// FANWIRE_BIN          the server's binary (default target/release/fanwire)
// FANWIRE_CHROMIUM     the browser (default /usr/bin/chromium)
// FANWIRE_SCREENSHOTS  a directory: live-desktop.png and live-phone.png are written there
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join as path } from 'node:path';
import { after, before, test } from 'node:test';
import { DESKTOP, PHONE, launchBrowser } from './browser.js';
import { join, publish } from './load.js';
import { freePort, startServer } from './server.js';

const WAIT_MS = 20_000;
// Whoever joins here answers no pings.
const QUIET = ['--ping-interval', 'off', '--high-water-mark', '64MiB'];

let server, browser, page;
let mayFail = false;
const complaints = []; // errors on any console, uncaught exceptions
const foreign = [];    // requests to anywhere but the server

const start = async (flags = []) => startServer(await freePort(), { admin: await freePort(), flags: [...QUIET, ...flags] });
/** The same server again, on its ports. */
const restart = old => startServer(old.port, { admin: new URL(old.admin).port, flags: QUIET });

before(async () => {
  server = await start();
  browser = await launchBrowser();
  page = await open(server);
});

after(async () => {
  await browser?.close();
  await server?.stop('SIGKILL');
});

async function open({ admin }, options = DESKTOP) {
  const context = await browser.newContext({ locale: 'en-GB', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  page.on('pageerror', error => complaints.push(String(error)));
  page.on('console', message => {
    if (message.type() !== 'error') return;
    if (mayFail && message.text().startsWith('Failed to load resource')) return;
    complaints.push(message.text());
  });
  page.on('request', request => {
    const url = request.url();
    if (!url.startsWith(`${admin}/`) && !url.startsWith('data:')) foreign.push(url);
  });
  await page.goto(`${admin}/`);
  return page;
}

const state = (page, name) => page.locator(`#status[data-state=${name}]`).waitFor();
/** Waits until the big number of a plot looks like this. */
const shows = (page, plot, pattern) => page.locator(`#plot-${plot} .big`, { hasText: pattern }).waitFor();
/** Waits until a row of a table looks like this. */
const lists = (page, table, pattern) => page.locator(`#${table} tr`, { hasText: pattern }).waitFor();
const rows = (page, table) => page.locator(`#${table} tr`).evaluateAll(rows => rows.map(row => [...row.cells].map(cell => cell.textContent)));
const label = (page, plot) => page.locator(`#plot-${plot} svg`).getAttribute('aria-label');

async function members(count, room, options) {
  return Promise.all(Array.from({ length: count }, () => join(server.port, room, options)));
}

/** Runs `look` while a text of `bytes` is published to `room` again and again. */
async function whilePublishing(room, bytes, look) {
  let goesOn = true;
  const publishing = (async () => {
    while (goesOn) {
      await publish(server, room, Array(10).fill('x'.repeat(bytes)));
      await new Promise(resolve => setTimeout(resolve, 20));
    }
  })();
  try { return await look(); } finally { goesOn = false; await publishing; }
}

test('the page is one document under a policy that allows nothing else', async () => {
  const answer = await fetch(server.admin);
  assert.equal(answer.status, 200);
  assert.match(answer.headers.get('content-type'), /^text\/html; charset=utf-8$/i);
  const policy = answer.headers.get('content-security-policy');
  assert.match(policy, /default-src 'none'/);
  assert.match(policy, /connect-src 'self';/);
  const text = await answer.text();
  assert.ok(Buffer.byteLength(text) < 49_152, 'the page stays small');
  assert.doesNotMatch(text, /innerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage/);
});

test('a server with nothing to do says so', async () => {
  await state(page, 'ready');
  await shows(page, 'connections', /^0of at most/);
  await shows(page, 'delivered', /^0\/s$/);
  await shows(page, 'latency', 'no publishes lately');
  assert.match(await page.locator('#facts').textContent(), /^version \d+\.\d+\.\d+, up \d+ s$/);
  assert.equal((await rows(page, 'shard-rows')).length, 4);
  assert.equal(await page.locator('#notice').isVisible(), false);
});

test('numbers follow the traffic', async () => {
  const all = await members(30, 'news');
  await shows(page, 'connections', /^30of at most/);
  await page.locator('#plot-delivered .note', { hasText: 'to 30 members of 1 room' }).waitFor();
  const shards = await rows(page, 'shard-rows');
  assert.equal(shards.reduce((sum, row) => sum + Number(row[3]), 0), 30, 'every connection is on some shard');

  await whilePublishing('news', 100, async () => {
    await shows(page, 'delivered', /^[1-9][\d.,]*k?\/s$/);
    await shows(page, 'traffic', /^[1-9][\d.]* [kM]?B\/s$/);
    await shows(page, 'latency', /^[\d.]+ ms/);
    await page.locator('#plot-received .legend dd', { hasText: /^[1-9]/ }).first().waitFor();
    all[0].say('so it counts');
    await page.waitForFunction(() => /received now .*; published/.test(document.querySelector('#plot-received svg').getAttribute('aria-label')));
  });
  assert.match(await label(page, 'received'), /received now .*, highest (?!0\/s)/, 'what a client has said was seen');
  await shows(page, 'delivered', /^0\/s$/);
  assert.match(await label(page, 'delivered'), /^Messages delivered, the last 5 min: to members now 0\/s, lowest 0\/s, highest [1-9]/);
  all.forEach(member => member.leave());
  await shows(page, 'connections', /^0of at most/);
  assert.match(await label(page, 'connections'), /now 0, lowest 0, highest 30$/);
});

test('the biggest, the slowest and the busiest are listed', async () => {
  await page.getByText('There are no rooms').waitFor();
  await page.getByText('Nobody is behind.').waitFor();
  const markup = '<b onmouseover="alert(1)">big</b>';
  const big = await members(12, markup), small = await members(2, 'small');
  const [sleeper] = await members(1, 'flood', { reads: false });
  await lists(page, 'rooms', `${markup}raw12`);
  assert.deepEqual((await rows(page, 'rooms')).map(([name, count]) => [name, count]), [[`${markup}raw`, '12'], ['smallraw', '2'], ['floodraw', '1']]);
  assert.equal(await page.locator('#rooms b').count(), 0, 'a name is text');

  // More than two sockets hold (net.ipv4.tcp_wmem, 4 MB mostly), less than it is disconnected for.
  for (let batch = 0; batch < 20; batch++) await publish(server, 'flood', Array(200).fill('x'.repeat(3000)));
  await lists(page, 'slow', /127\.0\.0\.1floodraw[\d.]+ [kM]B$/);
  for (let words = 0; words < 7; words++) small[0].say('me again');
  await lists(page, 'busy', /127\.0\.0\.17/);
  await publish(server, 'small', ['one more']);
  [...big, ...small, sleeper].forEach(member => member.leave());
  await page.getByText('There are no rooms').waitFor();
  await page.getByText('Nobody is behind.').waitFor();
});

test('the keyboard moves through time', async () => {
  await page.locator('#plot-connections').focus();
  const live = () => page.locator('#live').textContent();
  for (let presses = 0; !/open 30$/.test(await live()); presses++) {
    assert.ok(presses < 60, `it was there: ${await live()}`);
    await page.keyboard.press('ArrowLeft');
  }
  assert.match(await live(), /^\d\d:\d\d:\d\d: open 30$/);
  assert.equal(await page.locator('#plot-connections .big').textContent(), '30', 'as it was then');
  assert.match(await page.locator('#plot-load .at').textContent(), /^\d\d:\d\d:\d\d$/, 'all plots look at that time');
  await page.keyboard.press('Escape');
  await shows(page, 'connections', /^0of at most/);
  await page.getByLabel('15 min').check();
  await page.locator('#plot-load svg text', { hasText: '−15 min' }).waitFor();
});

test('a server that is gone or silent is shown, and comes back', async () => {
  mayFail = true;
  await server.stop('SIGKILL');
  await state(page, 'lost');
  assert.match(await page.locator('#notice').textContent(), /has not answered since \d\d:\d\d:\d\d/);
  assert.match(await page.title(), /^No answer/);
  server = await restart(server);
  await state(page, 'ready');
  await page.locator('#plot-load svg text', { hasText: 'restarted' }).waitFor();
  assert.equal(await page.locator('#notice').isVisible(), false);

  await server.freeze();
  await state(page, 'lost');
  server.thaw();
  await state(page, 'ready');
  mayFail = false;
});

test('a server that drains says so', async () => {
  // Whoever does not read does not answer a close: it takes `close_timeout`.
  await members(3, 'news', { reads: false });
  await shows(page, 'connections', /^3of at most/);
  mayFail = true;
  const end = server.stop('SIGTERM');
  await state(page, 'draining');
  assert.match(await page.locator('#notice').textContent(), /is draining.* 3 left/);
  assert.deepEqual(await end, { code: 0, signal: null });
  await state(page, 'lost');
  server = await restart(server);
  await state(page, 'ready');
  mayFail = false;
});

test('forty shards are a heat map', async () => {
  const large = await start(['--shards', '40']);
  const page = await open(large);
  try {
    await page.locator('#heat i').nth(39).waitFor();
    assert.equal(await page.locator('#heat i').count(), 40);
    assert.equal((await rows(page, 'shard-rows')).length, 5, 'the first few');
    await page.getByLabel('Shade by').selectOption('connections');
    const member = await join(large.port, 'one');
    await page.locator('#heat[aria-label*="highest shard"][aria-label*=": 1,"]').waitFor();
    assert.match(await page.locator('#cell').textContent(), /^Shard \d+: 1$/);
    await page.locator('#heat').focus();
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('ArrowRight');
    await page.locator('#cell', { hasText: /^Shard 1: [01]$/ }).waitFor();
    member.leave();
  } finally {
    await page.context().close();
    await large.stop('SIGKILL');
  }
});

test('a server that wants a key is given one', async () => {
  const directory = await mkdtemp(path(tmpdir(), 'fanwire-'));
  const key = 'correct-horse-battery-staple';
  await writeFile(path(directory, 'keys'), `${key}\n`);
  const guarded = await start(['--admin-key-file', path(directory, 'keys')]);
  mayFail = true;
  const page = await open(guarded);
  try {
    await page.locator('#key:focus').waitFor();
    await state(page, 'refused');
    assert.equal(await page.locator('#main').isVisible(), false, 'there is nothing to see yet');
    await page.keyboard.type('wrong-but-long-enough');
    await page.keyboard.press('Enter');
    await page.locator('#notice', { hasText: 'does not take this key' }).waitFor();
    await page.locator('#key:focus').waitFor();
    await page.keyboard.type(key);
    await page.keyboard.press('Enter');
    await state(page, 'ready');
    await page.getByText('There are no rooms').waitFor();
    assert.equal(await page.locator('#key-form').isVisible(), false);
    assert.equal(await page.locator('#notice').isVisible(), false);
    mayFail = false;
    await page.reload();
    await state(page, 'ready');
    assert.deepEqual(await page.evaluate(() => [Object.keys(sessionStorage), Object.keys(localStorage), document.cookie]), [['fanwire.key'], [], '']);
    mayFail = true;
    const other = await page.context().newPage();
    await other.goto(`${guarded.admin}/`);
    await state(other, 'refused'); // each tab for itself
  } finally {
    await page.context().close();
    await guarded.stop('SIGKILL');
    await rm(directory, { recursive: true });
    mayFail = false;
  }
});

test('a phone shows all of it without scrolling sideways', async () => {
  const phone = await open(server, PHONE);
  await state(phone, 'ready');
  await shows(phone, 'connections', /^0of at most/);
  const [wide, is] = await phone.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= is, `${wide} pixels on ${is}`);
  for (const id of ['plot-connections', 'plot-delivered', 'plot-received', 'plot-latency', 'plot-traffic', 'plot-load', 'shards', 'rooms-title', 'slow-title']) {
    const box = await phone.locator(`#${id}`).boundingBox();
    assert.ok(box && box.x >= 0 && box.x + box.width <= is, `${id} is on the screen`);
  }
  await phone.context().close();
});

test('screenshots', { skip: !process.env.FANWIRE_SCREENSHOTS && 'FANWIRE_SCREENSHOTS is not set' }, async () => {
  const directory = process.env.FANWIRE_SCREENSHOTS;
  await mkdir(directory, { recursive: true });
  const rooms = { announcements: 140, 'ticker:EURUSD': 85, launch: 52, support: 31, coffee: 14, deploys: 8 };
  const pages = [await open(server), await open(server, PHONE)];
  for (const page of pages) await page.getByLabel('1 min', { exact: true }).check();
  const all = [], [sleeper] = await members(1, 'audit', { reads: false });
  for (let tick = 0; tick < 650; tick++) {
    const tide = 1 + 0.4 * Math.sin(tick / 60);
    Object.entries(rooms).forEach(([room, size], index) => {
      if (all.filter(member => member.room === room).length < size * Math.min(1, tick / 200)) {
        all.push({ room, member: join(server.port, room) });
      }
      if (tick % (index + 1) === 0) publish(server, room, Array(Math.ceil(8 * tide / (index + 1))).fill('x'.repeat(120)));
    });
    // Late: whoever takes nothing for `send_timeout` is cut.
    if (tick > 580 && tick % 4 === 0) publish(server, 'audit', ['y'.repeat(150_000)]);
    for (const { member } of all.filter((_, index) => index % 9 === 0 && (index + tick) % 4 === 0)) (await member).say('hello');
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  await Promise.all(pages.map(page => lists(page, 'slow', 'audit')));
  await pages[0].screenshot({ path: path(directory, 'live-desktop.png'), fullPage: true });
  await pages[1].screenshot({ path: path(directory, 'live-phone.png') });
  sleeper.leave();
  for (const { member } of all) (await member).leave();
});

test('no console saw an error and nothing was asked of anybody else', () => {
  assert.deepEqual(complaints, []);
  assert.deepEqual(foreign, []);
});
