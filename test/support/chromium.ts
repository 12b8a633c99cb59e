/** Where a browser for tests is. */
import fs from 'node:fs';

/** Debian's and others' names of it; CHROMIUM names another. */
const PLACES = [
  process.env.CHROMIUM,
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
];

/** Undefined where there is none. */
export const executablePath = PLACES.find((place) => place !== undefined && fs.existsSync(place));
