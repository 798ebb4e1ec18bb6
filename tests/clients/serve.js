// Does what the lines on standard input say: the same for every client in JavaScript.
import { createInterface } from 'node:readline';

/** Says what the client is, then answers each line with what the method of that name gives. */
export async function serve(client, name, cannot = []) {
  const say = answer => console.log(JSON.stringify(answer));
  say({ client: name, cannot });
  for await (const line of createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    try {
      say(await client[command.do](command) ?? {});
    } catch (error) {
      say({ error: String(error?.stack ?? error) });
    }
  }
}
