// SPDX-License-Identifier: GPL-2.0-only

// Opens pages of the rendered book in a browser, in both themes and three
// widths, and says of each what is wrong with it.
//
//   node check.mjs BOOK CHROMIUM MODULES PICTURES < names
//
// A name is the path of a page below BOOK, or `@` and a word for one of the
// tests of the book as a whole. For each one line is printed: `ok NAME`, or
// `FAIL NAME` and below it lines that begin with a blank.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { mkdirSync, readFileSync, statSync } from 'node:fs';
import { extname, join, normalize } from 'node:path';

const [BOOK, CHROMIUM, MODULES, PICTURES] = process.argv.slice(2);
const require = createRequire(join(MODULES, 'node_modules', 'x.js'));
const { chromium } = require('playwright-core');
const { AxeBuilder } = require('@axe-core/playwright');

const THEMES = { light: 'light', navy: 'dark' };
const WIDTHS = [320, 768, 1440];
const HEIGHT = 900;
/** Pages at the same time. */
const HANDS = 2;
/** No answer for so long is none, also on a machine with other work: milliseconds. */
const PATIENCE = 300_000;
/** So many references are opened on a page. */
const REFERENCES = 3;
/** So often Tab is pressed on a page, where the whole way round would take minutes. */
const TABS = 500;

const TYPES = {
    '.html': 'text/html; charset=utf-8',
    '.css': 'text/css',
    '.js': 'text/javascript',
    '.svg': 'image/svg+xml',
    '.png': 'image/png',
    '.woff2': 'font/woff2',
};

/** Serves the book on this machine, to this machine. */
function serve() {
    const server = createServer((request, response) => {
        const path = decodeURIComponent(new URL(request.url, 'http://x').pathname);
        const file = join(BOOK, normalize(path));
        try {
            const body = readFileSync(path.endsWith('/') ? join(file, 'index.html') : file);
            const type = TYPES[extname(file)] ?? 'application/octet-stream';
            response.writeHead(200, { 'content-type': type }).end(body);
        } catch {
            response.writeHead(404).end();
        }
    });
    return new Promise(resolve => {
        server.listen(0, '127.0.0.1', () => resolve(server));
    });
}

/** The anchors of a page, as it lies on the disk. */
const anchors = new Map();
function anchorsOf(path) {
    if (!anchors.has(path)) {
        let found = null;
        try {
            const html = readFileSync(join(BOOK, path), 'utf8');
            found = new Set([...html.matchAll(/\sid="([^"]*)"/g)].map(match => match[1]));
        } catch {
            // There is no such page; whoever links to it is told.
        }
        anchors.set(path, found);
    }
    return anchors.get(path);
}

/** What is wrong with the links of a page. */
async function deadLinks(page, base) {
    const links = await page.$$eval('a[href]', all => all.map(link => link.href));
    const dead = [];
    for (const link of new Set(links)) {
        const url = new URL(link);
        if (url.origin !== base) {
            if (!/^(https|mailto):$/.test(url.protocol)) {
                dead.push(`link to ${link}`);
            }
            continue;
        }
        let path = decodeURIComponent(url.pathname).slice(1);
        if (path === '' || path.endsWith('/')) {
            path += 'index.html';
        }
        const anchor = decodeURIComponent(url.hash.slice(1));
        if (path.endsWith('.html')) {
            const there = anchorsOf(path);
            if (!there || (anchor && !there.has(anchor) &&
                !(await page.evaluate(id => document.getElementById(id) !== null, anchor)))) {
                dead.push(`dead link ${path}${url.hash}`);
            }
        } else {
            try {
                statSync(join(BOOK, path));
            } catch {
                dead.push(`dead link ${path}`);
            }
        }
    }
    return dead;
}

/** What sticks out of the page to the side. */
async function overflow(page) {
    return page.evaluate(() => {
        const root = document.documentElement;
        if (root.scrollWidth <= root.clientWidth) {
            return [];
        }
        const all = [...document.querySelectorAll('main *')];
        const out = all.filter(element => {
            const box = element.getBoundingClientRect();
            return box.right > root.clientWidth + 1 && !element.closest('pre, .table-wrapper');
        });
        const names = out.slice(0, 3).map(element => element.outerHTML.slice(0, 120));
        return [`${root.scrollWidth} pixels wide in ${root.clientWidth}: ${names.join(' | ')}`];
    });
}

/** What axe finds. */
async function axe(page) {
    const { violations } = await new AxeBuilder({ page }).analyze();
    return violations.map(({ id, help, nodes }) => {
        const where = nodes.slice(0, 3).map(node => `${node.target} ${node.html.slice(0, 100)}`);
        return `axe ${id}: ${help} (${nodes.length}): ${where.join(' | ')}`;
    });
}

/** Opens references, with the mouse and with the keyboard, and closes them. */
async function references(page) {
    const bad = [];
    const links = page.locator('main a.chunk-ref');
    const count = Math.min(await links.count(), REFERENCES);
    for (let index = 0; index < count; index++) {
        // What was opened may hold references of its own: the last one first.
        const link = links.nth(count - 1 - index);
        const name = await link.textContent();
        const press = () => (index % 2 === 0 ? link.click() : link.press('Enter'));
        const opened = link.locator('xpath=following::span[@class="chunk-opened"][1]');
        const before = await page.locator('.chunk-opened').count();
        await press();
        try {
            await opened.waitFor();
            const text = await opened.textContent();
            if (text.trim() === '') {
                bad.push(`the reference ${name} opens empty`);
            }
            if (await link.getAttribute('aria-expanded') !== 'true') {
                bad.push(`the reference ${name} does not say that it is open`);
            }
            await press();
            if (await page.locator('.chunk-opened').count() !== before) {
                bad.push(`the reference ${name} does not close`);
            }
        } catch {
            bad.push(`the reference ${name} does not open`);
            return bad;
        }
    }
    return bad;
}

/** What the Tab key does not reach. */
async function keyboard(page) {
    await page.evaluate(() => {
        const all = 'a[href], button, input, summary, select, textarea, [tabindex]';
        window.wanted = new Set([...document.querySelectorAll(all)].filter(element => {
            const box = element.getBoundingClientRect();
            return element.checkVisibility({ visibilityProperty: true }) && box.width > 0 &&
                element.tabIndex >= 0 && !element.closest('[inert]');
        }));
        window.met = new Set();
        document.addEventListener('focusin', event => window.met.add(event.target), true);
    });
    const number = await page.evaluate(() => window.wanted.size);
    for (let pressed = 0; pressed < Math.min(number + 5, TABS); pressed++) {
        await page.keyboard.press('Tab');
    }
    return page.evaluate(whole => {
        if (window.met.size < Math.min(window.wanted.size, 5)) {
            return [`Tab reaches only ${window.met.size} elements`];
        }
        const missed = whole ? [...window.wanted].filter(element => !window.met.has(element)) : [];
        // The links that are not in the order of Tab at all.
        const never = [...document.querySelectorAll('main a[href], main button')].filter(
            element => element.tabIndex < 0 && element.checkVisibility());
        return [...missed, ...never].slice(0, 3).map(
            element => `Tab does not reach ${element.outerHTML.slice(0, 140)}`);
    }, number + 5 <= TABS);
}

/** One page in all themes and widths. */
async function onePage(browser, base, name) {
    const bad = [];
    for (const [theme, colorScheme] of Object.entries(THEMES)) {
        const context = await browser.newContext({
            colorScheme, viewport: { width: WIDTHS[0], height: HEIGHT },
        });
        try {
            context.setDefaultTimeout(PATIENCE);
            const page = await context.newPage();
            const add = (where, what) => bad.push(...what.map(text => `${where}: ${text}`));
            page.on('console', message => {
                if (['error', 'warning'].includes(message.type())) {
                    add(theme, [`console: ${message.text()}`]);
                }
            });
            page.on('pageerror', error => add(theme, [`script: ${error.message}`]));
            page.on('response', answer => {
                if (answer.status() >= 400) {
                    add(theme, [`${answer.status()} ${answer.url()}`]);
                }
            });
            // The page for the printer opens a dialogue, which nobody would close.
            await page.addInitScript(() => { window.print = () => {}; });
            for (const width of WIDTHS) {
                const where = `${theme}, ${width}`;
                await page.setViewportSize({ width, height: HEIGHT });
                // Loaded anew: the sidebar is decided when a page is.
                await page.goto(`${base}/${name}`, { waitUntil: 'load' });
                const shown = await page.evaluate(() => document.documentElement.className);
                if (!shown.split(' ').includes(theme)) {
                    add(where, [`the theme is ${shown}`]);
                }
                add(where, await overflow(page));
                add(where, await axe(page));
                if (PICTURES && !name.startsWith('code/')) {
                    const file = `${name.replace(/\W/g, '-')}-${theme}-${width}.jpg`;
                    await page.screenshot({ path: join(PICTURES, file), type: 'jpeg', quality: 60 });
                }
            }
            if (theme === 'light') {
                add('links', await deadLinks(page, base));
                add('references', await references(page));
                // Anew: Tab starts where something was clicked.
                await page.goto(`${base}/${name}`, { waitUntil: 'load' });
                add('keyboard', await keyboard(page));
            } else {
                await page.setViewportSize({ width: WIDTHS[0], height: HEIGHT });
                await page.goto(`${base}/${name}`, { waitUntil: 'load' });
                add(`references, ${WIDTHS[0]}`, await references(page));
                await page.emulateMedia({ media: 'print' });
                await page.setViewportSize({ width: 794, height: 1123 });
                add('printed', await overflow(page));
            }
        } finally {
            await context.close();
        }
    }
    return [...new Set(bad)];
}

async function patient(browser, options) {
    const page = await browser.newPage(options);
    page.setDefaultTimeout(PATIENCE);
    return page;
}

/** Tests of the book as a whole. */
const WHOLE = {
    async search(browser, base) {
        const page = await patient(browser);
        await page.goto(`${base}/index.html`);
        await page.keyboard.press('/');
        await page.keyboard.type('shadow');
        await page.locator('#mdbook-searchresults a').first().waitFor({ timeout: PATIENCE });
        const links = await page.$$eval('#mdbook-searchresults a', all => all.map(a => a.href));
        const made = /\/(code\/.*|chunks|files|names|audit)\.html/;
        const bad = links.filter(link => made.test(link)).map(link => `${link} is found`);
        if (!links.some(link => link.includes('/host/shadow.html'))) {
            bad.push(`the chapter on the shadow is not found: ${links.slice(0, 5).join(' ')}`);
        }
        await page.close();
        return bad;
    },

    async themes(browser, base) {
        const page = await patient(browser, { colorScheme: 'light' });
        await page.goto(`${base}/host/shadow.html`);
        await page.click('#mdbook-theme-toggle');
        await page.click('#mdbook-theme-navy');
        await page.goto(`${base}/code/logic/src/shadow.rs.html`);
        const shown = await page.evaluate(() => document.documentElement.className);
        await page.close();
        return shown.split(' ').includes('navy') ? [] : [`the choice is not kept: ${shown}`];
    },

    async 'no-script'(browser, base) {
        const page = await patient(browser, { javaScriptEnabled: false });
        await page.goto(`${base}/host/shadow.html`);
        const link = page.locator('main a.chunk-ref').first();
        const wanted = new URL(await link.getAttribute('href'), page.url()).href;
        await link.click();
        const bad = page.url() === wanted ? [] : [`a reference leads to ${page.url()}`];
        const there = page.locator(`[id="${new URL(wanted).hash.slice(1)}"]`);
        if (!await there.isVisible()) {
            bad.push(`nothing is to be seen at ${wanted}`);
        }
        await page.close();
        return bad;
    },

    /** The way from a line of a file to its chunk and back. */
    async 'to-and-fro'(browser, base) {
        const page = await patient(browser);
        await page.goto(`${base}/host/shadow.html`);
        const place = page.locator('.chunk-place a').first();
        const [file, line] = new URL(await place.getAttribute('href'), page.url()).href.split('#');
        await place.click();
        await page.waitForURL(`${file}#${line}`);
        const bad = [];
        if (!await page.locator(`#${line}`).isVisible()) {
            bad.push(`${file} has no ${line}`);
        }
        const back = page.locator(`a:has(#${line})`);
        const wanted = new URL(await back.getAttribute('href'), page.url()).href;
        await back.press('Enter');
        await page.waitForURL(wanted);
        if (!await page.locator('.chunk:target').isVisible()) {
            bad.push(`${wanted} is not there`);
        }
        await page.close();
        return bad;
    },
};

async function main() {
    const names = readFileSync(0, 'utf8').split('\n').filter(Boolean);
    if (PICTURES) {
        mkdirSync(PICTURES, { recursive: true });
    }
    const server = await serve();
    const base = `http://127.0.0.1:${server.address().port}`;
    const browser = await chromium.launch({
        executablePath: CHROMIUM,
        // It is told to leave the network alone; and root has no sandbox.
        timeout: PATIENCE,
        args: [
            ...(process.getuid() === 0 ? ['--no-sandbox'] : []),
            '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
            '--disable-background-networking', '--disable-component-update',
        ],
    });
    let failed = 0;
    const work = async () => {
        let name;
        while ((name = names.shift()) !== undefined) {
            let bad;
            try {
                bad = await (name.startsWith('@')
                    ? WHOLE[name.slice(1)](browser, base)
                    : onePage(browser, base, name));
            } catch (error) {
                // The first lines say it; the rest are tries.
                bad = [`${error.message}`.replace(/\x1b\[\d+m/g, '').split('\n').slice(0, 8).join('\n')];
            }
            const lines = bad.flatMap(text => text.split('\n')).map(text => ` ${text}\n`);
            process.stdout.write(`${bad.length ? 'FAIL' : 'ok'} ${name}\n${lines.join('')}`);
            failed += bad.length ? 1 : 0;
        }
    };
    await Promise.all(Array.from({ length: HANDS }, work));
    await browser.close();
    server.close();
    process.exit(failed ? 1 : 0);
}

await main();
