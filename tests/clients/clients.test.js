// WebSocket clients that others wrote, each taken through the same steps against the real server.
// README.md says how they are told what to do; scripts/clients.sh installs and runs them.
//
// FANWIRE_BIN          the server's binary (default target/release/fanwire)
// FANWIRE_CHROMIUM     the browser (default /usr/bin/chromium)
// FANWIRE_PYTHON       a Python that has what requirements.txt says (default python3)
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { freePort, startServer } from '../browser/server.js';

const NODE = process.execPath;
const PYTHON = process.env.FANWIRE_PYTHON ?? 'python3';
const CLIENTS = {
  ws: [NODE, 'with_ws.js'],
  'Node.js': [NODE, '--experimental-websocket', 'with_node.js'], // needless from version 22 on
  Chromium: [NODE, 'with_chromium.js'],
  websockets: [PYTHON, 'with_websockets.py'],
  aiohttp: [PYTHON, 'with_aiohttp.py'],
  'websocket-client': [PYTHON, 'with_websocket_client.py'],
};

const ANSWER_MS = 30_000; // for anything that must come; no step takes a second
const MESSAGE_BYTES_MAX = 1024 * 1024; // of /ws and of /raw, by default

let server;
const clients = []; // those that have started, in the order of CLIENTS

before(async () => {
  // The shortest interval: every client has to answer pings.
  server = await startServer(await freePort(), { admin: await freePort(), flags: ['--ping-interval', '1s'] });
});

after(async () => {
  clients.forEach(client => client.end());
  await server?.stop('SIGKILL');
});

/** A client as a child process. */
class Client {
  constructor([program, ...flags]) {
    this.child = spawn(program, flags, { cwd: fileURLToPath(new URL('.', import.meta.url)), stdio: ['pipe', 'pipe', 'inherit'] });
    this.answers = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  /** The next answer, within the time for it; after it the client is of no use any more. */
  async answer(to) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => {
        this.end();
        reject(new Error(`no answer to ${to} within ${ANSWER_MS} ms`));
      }, ANSWER_MS);
    });
    const { value, done } = await Promise.race([this.answers.next(), late]).finally(() => clearTimeout(timer));
    if (done) throw new Error(`the client has ended, and said nothing to ${to}`);
    const answer = JSON.parse(value);
    if (answer.error) throw new Error(`${to}: ${answer.error}`);
    return answer;
  }

  ask(what, details = {}) {
    this.child.stdin.write(`${JSON.stringify({ do: what, ...details })}\n`);
    return this.answer(what);
  }

  async start() {
    Object.assign(this, await this.answer('its start'));
    this.user = this.client.replace(/\W/g, '-');
  }

  /** Opens a connection; a client that is refused is a failure unless `refused` says so. */
  async open(path, { refused = false, subprotocols = [], ...details } = {}) {
    const opened = await this.ask('open', { url: `${server.origin.replace('http', 'ws')}${path}`, subprotocols, ...details });
    assert.equal(opened.refused ?? false, refused, `${path} is ${refused ? 'refused' : 'opened'}`);
    return opened;
  }

  say(message) {
    return this.ask('send', { text: JSON.stringify(message) });
  }

  /**
   * The next `count` messages, which must be JSON in text, by their types: an acknowledgement may
   * come before or behind the message.
   */
  async hear(count = 1) {
    const all = {};
    while (count-- > 0) {
      const { text, ...other } = await this.ask('receive');
      assert.ok(text !== undefined, `text, and not ${JSON.stringify(other)}`);
      const message = JSON.parse(text);
      all[message.type] = message;
    }
    return all;
  }

  async join(room_id, details = {}) {
    await this.open('/ws', { subprotocols: ['fanwire.v1'], ...details });
    await this.say({ type: 'join', room_id, user_id: this.user });
    const { joined } = await this.hear();
    assert.equal(joined?.room_id, room_id);
  }

  /** Sends a message to a raw room and gets it back. */
  async echo(message) {
    await this.ask('send', message);
    sameMessage(await this.ask('receive'), message);
  }

  end() {
    this.child.kill('SIGKILL');
  }
}

/** The same, without a megabyte in the report of what is not. */
function sameMessage(came, expected) {
  const short = message => JSON.stringify(message, (_, it) => (it?.length > 80 ? `${it.slice(0, 80)}.. (${it.length})` : it));
  assert.ok(JSON.stringify(came) === JSON.stringify(expected), `expected ${short(expected)}, saw ${short(came)}`);
}

/** As many bytes of UTF-8: characters of one to four bytes, so they lie across every boundary. */
function textOf(bytes) {
  const whole = 'x é ☕ 👋 '.repeat(Math.ceil(bytes / 14));
  const cut = Buffer.from(whole).subarray(0, bytes).toString().replace(/\uFFFD+$/, '');
  return cut + 'x'.repeat(bytes - Buffer.byteLength(cut));
}

const base64Of = bytes => Buffer.from(Array.from({ length: bytes }, (_, index) => index * 7 % 256)).toString('base64');
const LENGTHS = [0, 1, 125, 126, 65_535, 65_536, MESSAGE_BYTES_MAX];

async function post(path, body) {
  const answer = await fetch(`${server.admin}${path}`, {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
  });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
}

async function pongs() {
  const metrics = await (await fetch(`${server.admin}/metrics`)).text();
  return Number(metrics.match(/^fanwire_pongs_total (\d+)/m)[1]);
}

// What each client does. Whatever connection it had before, each step opens one of its own.
const STEPS = {
  'offers compression and subprotocols: one of these is answered': async client => {
    const offer = { subprotocols: ['chat', 'fanwire.v1'] };
    assert.deepEqual(await client.open('/ws', offer), { subprotocol: 'fanwire.v1', extensions: '' });
    await client.say({ type: 'ping' });
    assert.deepEqual(await client.hear(), { pong: { type: 'pong' } });
    await client.ask('close', { code: 1000, reason: '' });
  },
  'offers nothing': async client => {
    const offer = { compression: client.cannot.includes('no compression') ? undefined : false };
    assert.deepEqual(await client.open('/ws', offer), { subprotocol: '', extensions: '' });
    await client.ask('close', { code: 1000, reason: '' });
  },
  'joins, publishes and receives': async client => {
    const content = { text: 'Grüße, 日本 👋 \u0000 "\\"', list: [1, null, true, 0.5] };
    await client.join('lobby');
    await client.say({ type: 'broadcast', room_id: 'lobby', content, id: 'b' });
    const { ack, broadcast } = await client.hear(2);
    assert.deepEqual(ack, { type: 'ack', id: 'b', offset: 1 });
    assert.deepEqual(broadcast, { type: 'broadcast', room_id: 'lobby', sender: client.user, offset: 1, content });
    assert.deepEqual(await post('/v1/publish', { room_id: 'lobby', content }), { room_id: 'lobby', offset: 2 });
    assert.deepEqual((await client.hear()).broadcast, { ...broadcast, sender: 'anonymous', offset: 2 });
    const long = textOf(MESSAGE_BYTES_MAX - 100); // some more with what stands around it
    await client.say({ type: 'broadcast', room_id: 'lobby', content: long });
    sameMessage({ text: (await client.hear()).broadcast.content }, { text: long });
    await client.say({ type: 'leave', room_id: 'lobby' });
    assert.deepEqual(await client.hear(), { left: { type: 'left', room_id: 'lobby' } });
    await client.ask('close', { code: 1000, reason: '' });
  },
  'text of every length': async client => {
    await client.open('/raw/text');
    for (const bytes of LENGTHS) await client.echo({ text: textOf(bytes) });
    await client.ask('close', { code: 1000, reason: '' });
  },
  'binary of every length': async client => {
    await client.open('/raw/binary');
    for (const bytes of LENGTHS) await client.echo({ binary: base64Of(bytes) });
    await post('/v1/publish', { room_id: 'binary', binary: base64Of(256) });
    sameMessage(await client.ask('receive'), { binary: base64Of(256) });
    await client.ask('close', { code: 1000, reason: '' });
  },
  'fragments arrive as one message': {
    needs: 'send_fragments',
    async run(client) {
      await client.open('/raw/fragments');
      const parts = ['', 'é☕👋', textOf(70_000), '', 'end'];
      await client.ask('send_fragments', { fragments: parts.map(text => ({ text })) });
      sameMessage(await client.ask('receive'), { text: parts.join('') });
      await client.ask('send_fragments', { fragments: [1, 300, 0].map(bytes => ({ binary: base64Of(bytes) })) });
      sameMessage(await client.ask('receive'), {
        binary: Buffer.concat([1, 300].map(bytes => Buffer.from(base64Of(bytes), 'base64'))).toString('base64'),
      });
      await client.ask('close', { code: 1000, reason: '' });
    },
  },
  'pings': {
    needs: 'ping',
    async run(client) {
      await client.join('lobby', { pongs: true });
      for (const payload of ['', 'Ping é 👋', 'x'.repeat(125)]) {
        assert.deepEqual(await client.ask('ping', { payload }), { pong: payload });
      }
      await client.ask('close', { code: 1000, reason: '' });
    },
  },
  'is pinged, and answers': async client => {
    await client.join('lobby');
    const before = await pongs();
    const message = client.hear(); // some answer only while they receive
    const deadline = Date.now() + ANSWER_MS;
    while (await pongs() === before) {
      assert.ok(Date.now() < deadline, 'there is no pong');
      await new Promise(resolve => setTimeout(resolve, 20));
    }
    await post('/v1/publish', { room_id: 'lobby', content: 'still here' });
    assert.equal((await message).broadcast.content, 'still here');
    await client.ask('close', { code: 1000, reason: '' });
  },
  'closes, with a code and a reason': async client => {
    for (const code of [1000, 3000, 4999]) {
      await client.join('lobby');
      // The server answers with the same code; a reason is for one's own.
      assert.deepEqual(await client.ask('close', { code, reason: 'Auf Wiedersehen 👋' }), { close: [code, ''] });
    }
  },
  'is closed, with a code and a reason': async client => {
    const reason = 'é'.repeat(61); // of at most 123 bytes
    await client.join('lobby');
    const { disconnected } = await post('/v1/disconnect', { user_id: client.user, code: 4001, reason });
    assert.equal(disconnected, 1);
    assert.deepEqual(await client.ask('receive'), { close: [4001, reason] });
  },
  'is closed when a message is too long': async client => {
    await client.open('/raw/long');
    await client.ask('send', { text: textOf(MESSAGE_BYTES_MAX + 1) });
    const { close: [code, reason] } = await client.ask('receive');
    assert.equal(code, 1009);
    assert.notEqual(reason, '');
  },
  'is refused where there is nothing': async client => {
    await client.open('/nowhere', { refused: true });
    await client.open('/ws'); // and comes in where there is
    await client.ask('close', { code: 1000, reason: '' });
  },
};

for (const [name, command] of Object.entries(CLIENTS)) {
  test(name, async t => {
    const client = new Client(command);
    clients.push(client);
    await client.start();
    t.diagnostic(client.client);
    for (const [step, what] of Object.entries(STEPS)) {
      const skip = what.needs && client.cannot.includes(what.needs) && 'there is no way to tell it to';
      await t.test(step, { skip }, () => (what.run ?? what)(client));
    }
  });
}

test('all of them in one room', async () => {
  assert.equal(clients.length, Object.keys(CLIENTS).length, 'all have started');
  for (const client of clients) await client.join('everybody');
  for (const [index, sender] of clients.entries()) {
    await sender.say({ type: 'broadcast', room_id: 'everybody', content: `from ${sender.client}` });
    const expected = { type: 'broadcast', room_id: 'everybody', sender: sender.user, offset: index + 1, content: `from ${sender.client}` };
    for (const client of clients) assert.deepEqual((await client.hear()).broadcast, expected, client.client);
  }
});

test('all of them when the server ends', async () => {
  const end = server.stop('SIGTERM');
  for (const client of clients) {
    const { system } = await client.hear();
    assert.equal(system.event, 'draining', client.client);
    const { close } = await client.ask('receive');
    assert.equal(close?.[0], 1001, client.client);
  }
  assert.deepEqual(await end, { code: 0, signal: null });
});
