// SPDX-License-Identifier: GPL-2.0-only

// What shows the rendered book to a browser.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { extname, join, normalize } from 'node:path';

const TYPES = {
    '.html': 'text/html; charset=utf-8',
    '.css': 'text/css',
    '.js': 'text/javascript',
    '.svg': 'image/svg+xml',
    '.png': 'image/png',
    '.woff2': 'font/woff2',
};

/** Serves the book in a folder on this machine, to this machine. */
export async function serve(book) {
    const server = createServer((request, response) => {
        const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
        const file = join(book, normalize(path));
        try {
            const body = readFileSync(path.endsWith('/') ? join(file, 'index.html') : file);
            const type = TYPES[extname(file)] ?? 'application/octet-stream';
            response.writeHead(200, { 'content-type': type }).end(body);
        } catch {
            response.writeHead(404).end();
        }
    });
    await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
    return { server, base: `http://127.0.0.1:${server.address().port}` };
}

/** Starts the browser, driven by what lies in the folder `modules`. */
export function launch(modules, executablePath, timeout) {
    const require = createRequire(join(modules, 'node_modules', 'x.js'));
    const { chromium } = require('playwright-core');
    return chromium.launch({
        executablePath,
        timeout,
        // It is told to leave the network alone; and root has no sandbox.
        args: [
            ...(process.getuid() === 0 ? ['--no-sandbox'] : []),
            '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
            '--disable-background-networking', '--disable-component-update',
        ],
    });
}
