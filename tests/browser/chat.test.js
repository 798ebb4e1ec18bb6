// The chat page in headless Chromium against the real server with four shards.
//
// One conversation runs through all tests in order, as people would have it: alice at a desk, bob
// on a phone, and a probe that speaks the protocol by hand. No page may write an error to its
// console, save the browser's own lines about failed connections while we hold the server down.
//
// FANWIRE_BIN          the server's binary (default target/release/fanwire)
// FANWIRE_CHROMIUM     the browser (default /usr/bin/chromium)
// FANWIRE_SCREENSHOTS  a directory: chat-desktop.png and chat-phone.png are written there
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { DESKTOP, PHONE, launchBrowser } from './browser.js';
import { freePort, startServer } from './server.js';

const WAIT_MS = 10_000;
const RECOVER_MS = 20_000; // two refused attempts and the longest wait between them

let port, server, browser, alice, bob;
let serverDown = false;
const complaints = []; // errors on any console, uncaught exceptions
const foreign = [];    // requests to anywhere but the server

before(async () => {
  port = await freePort();
  server = await startServer(port);
  browser = await launchBrowser();
});

after(async () => {
  await browser?.close();
  await server?.stop('SIGKILL');
});

/** A page of its own person: nothing stored is shared with the others. */
async function open(address, options = DESKTOP, prepare = () => {}) {
  const context = await browser.newContext({ locale: 'en-GB', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  page.on('pageerror', error => complaints.push(String(error)));
  page.on('console', message => {
    if (message.type() !== 'error') return;
    if (serverDown && /^(WebSocket connection to|Failed to load resource)/.test(message.text())) return;
    complaints.push(message.text());
  });
  page.on('request', request => {
    const url = request.url();
    if (!url.startsWith(server.origin) && !url.startsWith('data:')) foreign.push(url);
  });
  await prepare(page);
  await page.goto(`${server.origin}/${address}`);
  return page;
}

const isMember = (page, room, timeout = WAIT_MS) =>
  page.locator(`#rooms li[data-room="${room}"][data-joined=yes]`).waitFor({ state: 'attached', timeout });
const shows = (page, room) => page.locator('#room', { hasText: room }).waitFor();
const state = (page, name, timeout = WAIT_MS) =>
  page.locator(`#status[data-state=${name}]`).waitFor({ timeout });

// The first waits between attempts are shorter than the steps in which a locator looks: what lasts
// is that the page is not connected.
const disconnected = (page, timeout = WAIT_MS) => page.locator('#status:not([data-state=connected])').waitFor({ timeout });

/** Connected again and member again: in this order, for the room list is drawn a moment later. */
async function recovered(page, room) {
  await state(page, 'connected', RECOVER_MS);
  await isMember(page, room, RECOVER_MS);
}

async function say(page, text) {
  await page.locator('#text').fill(text);
  await page.locator('#text').press('Enter');
}

/** The message with this text, once it is there, as a plain value. */
async function heard(page, text) {
  const item = page.locator('#log .msg', { hasText: text });
  await item.first().waitFor();
  assert.equal(await item.count(), 1, `"${text}" is shown once`);
  return item.evaluate(node => ({
    offset: Number(node.dataset.offset),
    sender: node.dataset.sender,
    own: node.classList.contains('own'),
    who: node.querySelector('.who').textContent,
    text: node.querySelector('.text').textContent,
    meta: node.querySelector('.meta').textContent,
  }));
}

/** Publishes as somebody who speaks the protocol by hand; resolves when all is acknowledged. */
async function probe(page, room, contents, name = 'probe') {
  await page.evaluate(([room, contents, name]) => new Promise((resolve, reject) => {
    const ws = new WebSocket(`ws://${location.host}/ws`, 'fanwire.v1');
    const send = message => ws.send(JSON.stringify(message));
    let acknowledged = 0;
    ws.onerror = () => reject(new Error('the probe lost its connection'));
    ws.onopen = () => {
      send({ type: 'join', room_id: room, user_id: name });
      contents.forEach((content, id) => send({ type: 'broadcast', room_id: room, content, id }));
    };
    ws.onmessage = event => {
      const { type, message } = JSON.parse(event.data);
      if (type === 'error') reject(new Error(message));
      if (type === 'ack' && ++acknowledged === contents.length) { ws.close(); resolve(); }
    };
  }), [room, contents, name]);
}

test('the page is one document under a policy that allows nothing else', async () => {
  const answer = await fetch(server.origin);
  assert.equal(answer.status, 200);
  assert.match(answer.headers.get('content-type'), /^text\/html; charset=utf-8$/i);
  assert.match(answer.headers.get('content-security-policy'), /default-src 'none'/);
  const page = await answer.text();
  assert.ok(Buffer.byteLength(page) < 32_768, 'the page stays small');
  assert.doesNotMatch(page, /innerHTML|insertAdjacentHTML|document\.write|\beval\b/);
});

test('two people meet in a room and chat both ways', async () => {
  alice = await open('?room=lobby&name=alice');
  bob = await open('?room=lobby&name=bob', PHONE);
  await Promise.all([isMember(alice, 'lobby'), isMember(bob, 'lobby')]);
  assert.equal(await alice.locator('#live').textContent(), 'Connected', 'said aloud');

  await say(alice, 'hello from the desk');
  const first = await heard(bob, 'hello from the desk');
  assert.deepEqual([first.sender, first.offset, first.own], ['alice', 1, false]);
  await say(bob, 'hello from the phone');
  const second = await heard(alice, 'hello from the phone');
  assert.deepEqual([second.sender, second.offset, second.own], ['bob', 2, false]);
  assert.match(second.meta, /^\d\d:\d\d · #2$/);

  const own = await heard(alice, 'hello from the desk');
  assert.deepEqual([own.offset, own.own, own.who], [1, true, 'You']);
  assert.equal(await alice.locator('#text').inputValue(), '', 'the composer is empty again');
});

test('a namesake is not oneself', async () => {
  const other = await open('?room=lobby&name=alice');
  await isMember(other, 'lobby');
  await say(other, 'I am alice, too');
  assert.equal((await heard(other, 'I am alice, too')).own, true);
  assert.equal((await heard(alice, 'I am alice, too')).own, false);
  await other.context().close();
});

test('a second room: unread count, switch, leave', async () => {
  await bob.locator('#menu').tap();
  await bob.locator('#join-room').fill('ops');
  await bob.locator('#join-room').press('Enter');
  await isMember(bob, 'ops');
  await shows(bob, 'ops');
  await bob.locator('#side').waitFor({ state: 'hidden' }); // the drawer closes by itself
  await alice.locator('#join-room').fill('ops');
  await alice.locator('#join-form button').click();
  await isMember(alice, 'ops');

  await say(alice, 'ops only');
  assert.equal((await heard(bob, 'ops only')).offset, 1, 'each room counts for itself');
  await alice.locator('#rooms li[data-room=lobby] .go').click();
  assert.equal(await alice.locator('#log .msg', { hasText: 'ops only' }).count(), 0);
  await say(bob, 'one');
  await say(bob, 'two');
  await alice.locator('#rooms li[data-room=ops][data-unread="2"]').waitFor();
  assert.match(await alice.title(), /^\(2\) #lobby/);
  await alice.locator('#rooms li[data-room=ops] .go').click();
  await heard(alice, 'two');
  await alice.locator('#rooms li[data-room=ops][data-unread="0"]').waitFor({ state: 'attached' });

  await alice.locator('#rooms li[data-room=ops] .leave').click();
  await shows(alice, 'lobby');
  await say(bob, 'alice is gone');
  await heard(bob, 'alice is gone');
  assert.equal(await alice.locator('#rooms li').count(), 1, 'alice has left and hears nothing');
  await bob.locator('#menu').tap();
  await bob.locator('#rooms li[data-room=lobby] .go').tap();
  await shows(bob, 'lobby');
});

test('what others send is text, whatever it looks like', async () => {
  const markup = '<img src=x onerror="document.title=\'owned\'"><b>bold</b>';
  await say(bob, markup);
  assert.equal((await heard(alice, 'onerror')).text, markup);
  assert.equal(await alice.locator('#log img, #log b').count(), 0);

  await probe(alice, 'lobby', [{ cpu: 0.5, tags: ['a', 'b'] }, 'a bare string', null]);
  assert.equal((await heard(alice, '"cpu"')).text, '{"cpu":0.5,"tags":["a","b"]}');
  assert.equal((await heard(alice, 'bare')).text, '"a bare string"');
  await heard(alice, 'null');
});

test('a new name goes with the next message', async () => {
  await alice.locator('#name').fill('alicia');
  await alice.locator('#name').press('Enter');
  await say(alice, 'new name');
  assert.equal((await heard(bob, 'new name')).sender, 'alicia');
  assert.equal(await alice.evaluate(() => localStorage.getItem('fanwire.name')), 'alicia');
});

test('an error of the server is shown and does no harm', async () => {
  const long = 'é'.repeat(100);
  await alice.locator('#join-room').fill(long);
  await alice.locator('#join-room').press('Enter');
  await alice.locator('#notice', { hasText: 'invalid_room_id' }).waitFor();
  await alice.locator('#rooms li').nth(1).waitFor({ state: 'detached' });
  await alice.locator('#notice-close').click();
  assert.equal(await alice.locator('#notice').isVisible(), false);
  await say(alice, 'still here');
  await heard(bob, 'still here');
});

test('the log is bounded and follows its end', async () => {
  const flood = await open('?room=flood&name=reader');
  await isMember(flood, 'flood');
  await probe(alice, 'flood', Array.from({ length: 620 }, (_, i) => ({ text: `flood ${i}.` })));
  await heard(flood, 'flood 619.');
  assert.equal(await flood.locator('#log > li').count(), 500);
  assert.equal((await heard(flood, 'flood 120.')).offset, 121);
  const gap = await flood.locator('#log').evaluate(log => log.scrollHeight - log.scrollTop - log.clientHeight);
  assert.ok(gap < 2, 'the newest is in view');

  await flood.locator('#log').evaluate(log => { log.scrollTop = 0; });
  await probe(alice, 'flood', [{ text: 'while reading above' }]);
  await flood.locator('#newer').click();
  await heard(flood, 'while reading above');
  assert.equal(await flood.locator('#newer').isVisible(), false);
  await flood.context().close();
});

test('the address and the keyboard are enough', async () => {
  const page = await open('#keyboard');
  await isMember(page, 'keyboard');
  assert.match(await page.locator('#name').inputValue(), /^guest-\d{4}$/);
  await page.waitForURL(`${server.origin}/?room=keyboard`);
  await page.locator('#text:focus').waitFor(); // ready to type
  await page.keyboard.type('first line');
  await page.keyboard.press('Shift+Enter');
  await page.keyboard.type('second line');
  await page.keyboard.press('Enter');
  assert.equal((await heard(page, 'second line')).text, 'first line\nsecond line');
  await page.context().close();
});

test('the drawer of the phone takes the focus and gives it back', async () => {
  await bob.locator('#menu').focus();
  await bob.keyboard.press('Enter');
  await bob.locator('#rooms li[data-room=lobby] .go:focus').waitFor();
  assert.equal(await bob.locator('#main').evaluate(main => main.inert), true);
  await bob.keyboard.press('Escape');
  await bob.locator('#menu:focus').waitFor();
  await bob.locator('#side').waitFor({ state: 'hidden' });
});

test('the page works where storage is forbidden', async () => {
  const page = await open('?room=lobby', DESKTOP, page => page.addInitScript(() => {
    Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied', 'SecurityError'); } });
  }));
  await isMember(page, 'lobby');
  await page.locator('#name').fill('carol');
  await page.locator('#name').press('Enter');
  await say(page, 'nothing is stored');
  assert.equal((await heard(alice, 'nothing is stored')).sender, 'carol');
  await page.context().close();
});

test('the server dies and comes back: pages recover by themselves', async () => {
  await bob.locator('#menu').tap();
  await bob.locator('#rooms li[data-room=ops] .go').tap();
  await alice.locator('#text').fill('written in between');
  serverDown = true;
  await server.stop('SIGKILL');
  await Promise.all([state(alice, 'reconnecting'), state(bob, 'reconnecting')]);
  assert.match(await alice.locator('#live').textContent(), /Connection lost/);
  await alice.locator('#text').press('Enter');
  await alice.locator('#notice', { hasText: 'Not connected' }).waitFor();
  assert.equal(await alice.locator('#text').inputValue(), 'written in between', 'the text stays');

  server = await startServer(port);
  await Promise.all([recovered(alice, 'lobby'), recovered(bob, 'lobby'), recovered(bob, 'ops')]);
  serverDown = false;
  await alice.locator('#log .note', { hasText: 'Reconnected' }).waitFor();
  await heard(alice, 'hello from the phone'); // what was there before is still there
  await alice.locator('#text').press('Enter');
  const { offset, own } = await heard(alice, 'written in between');
  assert.deepEqual([offset, own], [1, true], 'the new server counts from 1');
  await bob.locator('#menu').tap();
  await bob.locator('#rooms li[data-room=lobby] .go').tap();
  assert.equal((await heard(bob, 'written in between')).sender, 'alicia');
  await say(bob, 'welcome back');
  await heard(alice, 'welcome back');
});

test('a server that falls silent is a lost server', async () => {
  serverDown = true;
  await server.freeze();
  const both = [alice, bob];
  // They ask now, not at the next ping.
  await Promise.all(both.map(page => page.evaluate(() => { dispatchEvent(new Event('online')); })));
  await Promise.all(both.map(page => disconnected(page, RECOVER_MS)));
  server.thaw();
  await Promise.all(both.map(page => recovered(page, 'lobby')));
  serverDown = false;
  await say(alice, 'were you asleep?');
  await heard(bob, 'were you asleep?');
});

test('the server says goodbye: pages wait and return', async () => {
  serverDown = true;
  // A page of its own, from its first connection on: what it is told, and when it comes back.
  let toldMs, closedAt, backAt;
  const carol = await open('?room=lobby&name=carol', DESKTOP, page => {
    page.on('websocket', socket => {
      if (closedAt) backAt ??= Date.now();
      socket.on('framereceived', ({ payload }) => {
        if (!String(payload).includes('"draining"')) return;
        const { type, event, reconnect_in_ms } = JSON.parse(payload);
        assert.deepEqual([type, event], ['system', 'draining']);
        toldMs = reconnect_in_ms;
      });
      socket.on('close', () => { closedAt ??= Date.now(); });
    });
  });
  await isMember(carol, 'lobby');
  const end = server.stop('SIGTERM');
  await carol.locator('#notice', { hasText: 'The server is about to restart' }).waitFor();
  await Promise.all([disconnected(alice), disconnected(bob)]);
  assert.deepEqual(await end, { code: 0, signal: null }, 'a drained server ends with 0');
  server = await startServer(port);
  await recovered(carol, 'lobby');
  assert.ok(Number.isInteger(toldMs) && toldMs >= 0, `told to stay away for ${toldMs} ms`);
  // The clock of the events may be a little off; its usual wait of 250 ms or more comes on top.
  assert.ok(backAt - closedAt >= toldMs, `back after ${backAt - closedAt} ms, told ${toldMs}`);
  await carol.context().close();
  await alice.locator('#retry').click({ timeout: 2000 }).catch(() => { /* it was quicker than we */ });
  await Promise.all([recovered(alice, 'lobby'), recovered(bob, 'lobby')]);
  serverDown = false;
  await say(alice, 'after the goodbye');
  await heard(bob, 'after the goodbye');
});

test('screenshots', { skip: !process.env.FANWIRE_SCREENSHOTS && 'FANWIRE_SCREENSHOTS is not set' }, async () => {
  const directory = process.env.FANWIRE_SCREENSHOTS;
  await mkdir(directory, { recursive: true });
  const maya = await open('?room=launch&room=deploys&room=coffee&name=Maya');
  const aiko = await open('?room=launch&room=coffee&name=Aiko', PHONE);
  const jonas = await open('?room=launch&room=deploys&name=Jonas');
  for (const page of [maya, aiko, jonas]) await isMember(page, 'launch');
  const lines = [
    [jonas, 'Morning! Four shards are up, one ring each.'],
    [maya, 'Joined from the desk. Is anybody on a phone?'],
    [aiko, 'Yes, on the train. It feels instant.'],
    [jonas, 'A message is encoded once, then shared by every member of the room.'],
    [jonas, 'And a slow phone just picks up from its own cursor.'],
    [maya, 'So nobody waits for anybody. I like that.'],
  ];
  for (const [page, text] of lines) {
    await say(page, text);
    for (const other of [maya, aiko, jonas]) await heard(other, text);
  }
  await probe(maya, 'launch', [{ deploy: '0.1.0', ok: true }], 'ci');
  await probe(maya, 'deploys', [{ text: 'fanwire 0.1.0 is out' }, { text: 'all checks are green' }], 'ci');
  await probe(maya, 'coffee', [{ text: 'Fresh pot in the kitchen' }]);
  await say(aiko, 'Live on my screen!');
  await heard(maya, 'Live on my screen!');
  await maya.locator('#rooms li[data-room=deploys][data-unread="2"]').waitFor();
  await aiko.locator('#rooms li[data-room=coffee][data-unread="1"]').waitFor({ state: 'attached' });
  for (const page of [maya, aiko]) {
    await page.locator('#status', { hasText: ' ms' }).waitFor(); // measured while three pages started
    await page.evaluate(() => { dispatchEvent(new Event('online')); }); // and again, at rest
    await page.waitForTimeout(500);
  }
  await maya.screenshot({ path: join(directory, 'chat-desktop.png') });
  await aiko.screenshot({ path: join(directory, 'chat-phone.png') });
});

test('no console saw an error and nothing was asked of anybody else', () => {
  assert.deepEqual(complaints, []);
  assert.deepEqual(foreign, []);
});
