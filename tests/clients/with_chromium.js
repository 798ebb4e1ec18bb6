// The WebSocket of a page in headless Chromium. FANWIRE_CHROMIUM as in tests/browser.
import { launchBrowser } from '../browser/browser.js';
import { serve } from './serve.js';
import { Standard } from './standard.js';

const browser = await launchBrowser();
const page = await browser.newPage();
await page.evaluate(`${Standard}; globalThis.client = new Standard(WebSocket);`);
const inPage = new Proxy({}, {
  get: () => command => page.evaluate(command => globalThis.client[command.do](command), command),
});
// The interface of browsers has neither ping() nor fragments, and always offers compression.
await serve(inPage, `Chromium ${browser.version()}`, ['ping', 'send_fragments', 'no compression']);
await browser.close();
