// The real server as a child process: started on a port of our choice, watched and ended.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { fileURLToPath } from 'node:url';

const BINARY = process.env.FANWIRE_BIN
  ?? fileURLToPath(new URL('../../target/release/fanwire', import.meta.url));
const START_MS = 15_000;

// The tests state every setting themselves; a FANWIRE_ variable of the caller must change none.
const env = Object.fromEntries(Object.entries(process.env).filter(([key]) => !key.startsWith('FANWIRE_')));

/** A port of 127.0.0.1 that was free a moment ago. */
export async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  return port;
}

/**
 * `fanwire serve` with four shards on `port`, and with its admin interface where `admin` says
 * (`off` or a port of 127.0.0.1), and `flags` besides. Resolves when it answers.
 */
export async function startServer(port, { admin = 'off', flags = [] } = {}) {
  const own = ['--listen', `127.0.0.1:${port}`, '--admin', admin === 'off' ? admin : `127.0.0.1:${admin}`];
  const shards = flags.includes('--shards') ? [] : ['--shards', '4'];
  const child = spawn(BINARY, ['serve', ...own, ...shards, ...flags], { env, stdio: ['ignore', 'ignore', 'pipe'] });
  let log = '';
  child.stderr.on('data', chunk => { log += chunk; });
  const ended = new Promise(resolve => {
    child.once('error', error => resolve({ error }));
    child.once('exit', (code, signal) => resolve({ code, signal }));
  });
  let end = null, stopping = false;
  ended.then(how => {
    end = how;
    if (!stopping) console.error(`${BINARY} ended by itself: ${how.error ?? JSON.stringify(how)}\n${log}`);
  });

  const origin = `http://127.0.0.1:${port}`;
  const deadline = Date.now() + START_MS;
  for (;;) {
    if (end) throw new Error(`${BINARY} does not start`);
    try {
      await (await fetch(origin)).text();
      break;
    } catch (error) {
      if (Date.now() > deadline) {
        stopping = true;
        child.kill('SIGKILL');
        throw new Error(`${BINARY} does not answer on ${origin}\n${log}`, { cause: error });
      }
      await new Promise(resolve => setTimeout(resolve, 50));
    }
  }
  return {
    origin,
    port,
    admin: `http://127.0.0.1:${admin}`,
    /** Stops every thread where it is; resolves when the last one stands still. */
    async freeze() {
      child.kill('SIGSTOP');
      const tasks = `/proc/${child.pid}/task`;
      const runs = id => !/\) [Tt] /.test(readFileSync(`${tasks}/${id}/stat`, 'utf8'));
      while (readdirSync(tasks).some(runs)) await new Promise(resolve => setTimeout(resolve, 5));
    },
    thaw() {
      child.kill('SIGCONT');
    },
    /** Sends the signal and resolves with how the process ended. */
    async stop(signal) {
      stopping = true;
      child.kill(signal);
      return ended;
    },
  };
}
