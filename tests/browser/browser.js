// The browser, and the two kinds of device that the pages are for.
import { chromium } from 'playwright-core';

export const DESKTOP = { viewport: { width: 1280, height: 800 } };
export const PHONE = { viewport: { width: 375, height: 812 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

/** Headless Chromium that asks nobody for anything but what a page wants. */
export function launchBrowser() {
  return chromium.launch({
    executablePath: process.env.FANWIRE_CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
}
