// SPDX-License-Identifier: GPL-2.0-only

// Opens pages of the rendered book in a browser, in both themes and three
// widths, and says of each what is wrong with it.
//
//   node check.mjs BOOK CHROMIUM MODULES PICTURES < names
//
// A name is the path of a page below BOOK, or `@` and a word for one of the
// tests of the book as a whole. For each one line is printed: `ok NAME`, or
// `FAIL NAME` and below it lines that begin with a blank.

import { createRequire } from 'node:module';
import { mkdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';

import { launch, serve } from './book.mjs';

const [BOOK, CHROMIUM, MODULES, PICTURES] = process.argv.slice(2);
const require = createRequire(join(MODULES, 'node_modules', 'x.js'));
const { AxeBuilder } = require('@axe-core/playwright');

const THEMES = { light: 'light', navy: 'dark' };
const WIDTHS = [320, 768, 1440];
const HEIGHT = 900;
/** Pages at the same time. */
const HANDS = 2;
/** No answer for so long is none, also on a machine with other work: milliseconds. */
const PATIENCE = 300_000;
/** For what is there already and has only to be shown. */
const SOON = 60_000;
/** So many references are opened on a page. */
const REFERENCES = 3;
/** So often Tab is pressed on a page, where the whole way round would take minutes. */
const TABS = 500;

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
    // What is in order need not be told, and there are no frames to go into.
    const { violations } = await new AxeBuilder({ page })
        .options({ resultTypes: ['violations'] }).setLegacyMode(true).analyze();
    return violations.map(({ id, help, nodes }) => {
        const where = nodes.slice(0, 3).map(node => `${node.target} ${node.html.slice(0, 100)}`);
        return `axe ${id}: ${help} (${nodes.length}): ${where.join(' | ')}`;
    });
}

/** Clicks in the middle of what an element shows first; waits for no animation to end. */
async function click(page, locator) {
    const [x, y] = await locator.evaluate(element => {
        element.scrollIntoView({ block: 'center', inline: 'nearest', behavior: 'instant' });
        const [box] = element.getClientRects();
        return [box.x + Math.min(box.width, innerWidth - box.x) / 2, box.y + box.height / 2];
    });
    await page.mouse.click(x, y);
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
        const press = () => (index % 2 === 0 ? click(page, link) : link.press('Enter'));
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
        // Words from the middle of texts find their sections: a chapter for each part.
        for (const chapter of ['guest/traps', 'drivers/block', 'launcher/disks', 'host/walking']) {
            await page.goto(`${base}/${chapter}.html`);
            const [id, words] = await page.evaluate(() => {
                // Of words that are long, so that they are not everywhere, and are four.
                const wordsOf = p => p.textContent.match(/(?<!\S)[a-z]{6,}(?!\S)/g) ?? [];
                const paragraphs = [...document.querySelectorAll('main > h2 ~ p')]
                    .filter(p => wordsOf(p).length >= 4);
                const text = paragraphs[Math.floor(paragraphs.length / 2)];
                let heading = text;
                while (!/^H[1-3]$/.test(heading.tagName)) {
                    heading = heading.previousElementSibling;
                }
                return [heading.id, wordsOf(text).slice(0, 4).join(' ')];
            });
            await page.keyboard.press('/');
            await page.keyboard.type(words);
            const there = `[href*="${chapter}.html"][href$="#${id}"]`;
            const found = page.locator(`#mdbook-searchresults a${there}`);
            try {
                await found.first().waitFor({ state: 'attached', timeout: SOON });
            } catch {
                bad.push(`"${words}" does not find ${chapter}.html#${id}`);
            }
        }
        await page.close();
        return bad;
    },

    async themes(browser, base) {
        const page = await patient(browser, { colorScheme: 'light' });
        await page.goto(`${base}/host/shadow.html`);
        await click(page, page.locator('#mdbook-theme-toggle'));
        await click(page, page.locator('#mdbook-theme-navy'));
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
        await click(page, link);
        await page.waitForURL(url => url.href !== `${base}/host/shadow.html`);
        const bad = page.url() === wanted ? [] : [`a reference leads to ${page.url()}`];
        const there = page.locator(`[id="${new URL(wanted).hash.slice(1)}"]`);
        if (!await there.isVisible()) {
            bad.push(`nothing is to be seen at ${wanted}`);
        }
        await page.close();
        return bad;
    },

    /** From a term in a text to what the glossary says. */
    async glossary(browser, base) {
        const page = await patient(browser);
        await page.goto(`${base}/host/shadow.html`);
        const bad = await page.$$eval('a.term', terms => terms.filter(term => {
            const colour = element => getComputedStyle(element).color;
            return !term.title || colour(term) !== colour(term.parentElement) ||
                term.closest('h1, h2, h3, h4, pre, code, a:not(.term)');
        }).map(term => `not as a term should be: ${term.outerHTML}`));
        const term = page.locator('main a.term').first();
        const [word, title] = [await term.textContent(), await term.getAttribute('title')];
        await term.press('Enter');
        await page.waitForURL('**/appendix/glossary.html#*');
        const entry = page.locator('dt:target');
        if (!await entry.isVisible()) {
            bad.push(`nothing is to be seen at ${page.url()}`);
        } else {
            const terms = (await entry.textContent()).toLowerCase().split(', ');
            if (!terms.some(term => word.toLowerCase().startsWith(term))) {
                bad.push(`${word} leads to ${terms}`);
            }
        }
        const said = await page.locator('dt:target + dd').textContent();
        if (!said.trim().startsWith(title)) {
            bad.push(`the title is "${title}", the glossary says "${said}"`);
        }
        await page.close();
        return bad;
    },

    /** The recorded trip: buttons, keys, the slider, the bars, links, and what is shown. */
    async trip(browser, base) {
        const page = await patient(browser, { viewport: { width: 1440, height: HEIGHT } });
        const bad = [];
        page.on('pageerror', error => bad.push(`script: ${error.message}`));
        const address = `${base}/switcher/step-by-step.html`;
        await page.goto(address);
        const last = await page.locator('.trip-all .trip-list > li').count();
        if (last < 100 || await page.locator('.trip-all').getAttribute('open') !== null) {
            bad.push(`${last} steps, or the list is in the way`);
        }
        const stations = await page.$$eval('.trip-station', marks => [...new Set(
            marks.map(mark => mark.closest('.trip-all li')?.value).filter(Boolean))]);
        const before = stations.findLast(step => step < last);
        const at = async (what, step, path = address) => {
            const found = await page.locator('.trip-stepper .trip-count b').textContent();
            const wanted = step === 0 ? `Before step 1 of ${last}` : `Step ${step} of ${last}`;
            const slider = await page.locator('.trip-controls input').inputValue();
            if (found !== wanted || slider !== `${step}` || page.url() !== path) {
                bad.push(`${what}: ${found} (${slider}) at ${page.url()}, not ${wanted}`);
            }
        };
        await at('to begin with', 0);
        const buttons = [
            ['One step back', 0], ['One step on', 1], ['One step on', 2], ['One step back', 1],
            ['To the next station', stations[0]], ['To the end', last],
            ['To the station before', before], ['One step on', before + 1],
            ['To the end', last], ['One step on', last], ['To the beginning', 0],
        ];
        for (const [name, step] of buttons) {
            await click(page, page.getByRole('button', { name }));
            await at(name, step);
        }
        await page.getByRole('button', { name: 'One step on' }).focus();
        const keys = [
            ['ArrowRight', 1], ['ArrowDown', 2], ['ArrowUp', 1], ['ArrowLeft', 0], ['ArrowLeft', 0],
            ['PageDown', stations[0]], ['PageDown', stations[1]], ['PageUp', stations[0]],
            ['End', last], ['ArrowRight', last], ['Home', 0], ['Enter', 1], ['Space', 2],
        ];
        for (const [key, step] of keys) {
            await page.keyboard.press(key);
            await at(key, step);
        }
        await page.locator('.trip-controls input').focus();
        await page.keyboard.press('ArrowRight');
        await at('the slider by key', 3);
        await page.locator('.trip-controls input').fill('57');
        await at('the slider', 57);
        const bar = await page.locator('.trip-stepper .trip-bar').first().boundingBox();
        await page.mouse.click(bar.x + bar.width * 0.999, bar.y + bar.height / 2);
        await at('the right end of a bar', last);
        await page.mouse.click(bar.x + 1, bar.y + bar.height / 2);
        await at('the left end of a bar', 0);
        // Links in the text mean a step, and so does an address.
        const links = await page.$$eval('main p a[href^="#trip-"]', all => all.map(a => a.hash));
        for (const hash of links) {
            const step = await page.$eval(hash, mark => Number(mark.closest('li').value));
            await click(page, page.locator(`main p a[href="${hash}"]`).first());
            await at(hash, step, address + hash);
            if (!await page.locator('.trip-stepper').isVisible()) {
                bad.push(`${hash}: the stepper is not to be seen`);
            }
        }
        if (links.length < 5) {
            bad.push(`only ${links.length} links to steps`);
        }
        await page.goto('about:blank');
        await page.goto(`${address}#trip-guest`);
        const guest = await page.$eval('#trip-guest', mark => Number(mark.closest('li').value));
        await at('opened at a step', guest, `${address}#trip-guest`);
        // Step by step: what the list says has changed is what is marked, and after each stretch
        // all is as the state that was recorded there.
        bad.push(...await page.evaluate(() => {
            const bad = [];
            const plain = element => element.textContent.replace(/\s+/g, ' ').trim();
            const stepper = document.querySelector('.trip-stepper');
            const press = name => stepper.querySelector(`button[aria-label^="${name}"]`).click();
            const parts = (element, inner) => new Map([...element.querySelectorAll('[data-part]')]
                .map(row => [row.dataset.part, plain(inner ? row.querySelector(inner) : row)]));
            // What an instruction has read or written is no part of the state after it.
            const drawn = element => [...element.querySelectorAll('[data-box]')].map(box => {
                const lit = box.closest('[data-side]').classList.contains('trip-lit');
                const names = [...box.querySelectorAll('i')].map(plain)
                    .filter(name => name !== 'reads' && name !== 'writes');
                return `${lit ? '' : 'not '}${box.dataset.box} ${names.sort()}`;
            }).join('; ');
            const same = (n, whole) => {
                const shown = parts(stepper.querySelector('.trip-registers'), 'dd');
                for (const [part, value] of parts(whole.querySelector('.trip-registers'), 'dd')) {
                    if (shown.get(part) !== value) {
                        bad.push(`step ${n}: ${part} is ${shown.get(part)}, was ${value}`);
                    }
                }
                const [drawing, wanted] = [drawn(stepper), drawn(whole)];
                if (drawing !== wanted) {
                    bad.push(`step ${n}: the drawing has ${drawing}, not ${wanted}`);
                }
            };
            press('To the beginning');
            const steps = [...document.querySelectorAll('.trip-all .trip-list > li')];
            same(0, document.querySelector('.trip-all .trip-state'));
            let compared = 0;
            steps.forEach((step, index) => {
                press('One step on');
                const told = parts(step);
                const marked = [...stepper.querySelectorAll('.trip-changed')]
                    .map(row => row.dataset.part);
                // That RIP goes on is not told; and a register may get the value that it had.
                const extra = marked.filter(part => part !== 'rip' && !told.has(part));
                if (extra.length || !marked.includes('rip')) {
                    bad.push(`step ${index + 1}: marked ${marked}, told ${[...told.keys()]}`);
                }
                const part = step.closest('.trip-part');
                if (part.querySelector('.trip-list > li:last-child') === step) {
                    same(index + 1, part.querySelector('.trip-state'));
                    compared += 1;
                }
            });
            return compared < 5 ? [...bad, `${compared} states compared`] : bad;
        }));
        await page.close();
        return bad;
    },

    /** The recorded trip where there are no scripts. */
    async 'trip-plain'(browser, base) {
        const bad = [];
        for (const width of WIDTHS) {
            const page = await patient(browser, {
                javaScriptEnabled: false, viewport: { width, height: HEIGHT },
            });
            await page.goto(`${base}/switcher/step-by-step.html`);
            const steps = page.locator('.trip-all .trip-list > li');
            const number = await steps.count();
            const seen = await page.locator('.trip-all .trip-list > li:visible').count();
            if (number < 100 || seen !== number || await page.locator('.trip-stepper').count()) {
                bad.push(`${width}: ${seen} of ${number} steps are to be seen`);
            }
            bad.push(...(await overflow(page)).map(text => `${width}: ${text}`));
            const cover = await page.evaluate(
                () => document.elementFromPoint(18, 400).closest('.sidebar')?.outerHTML);
            if (cover) {
                bad.push(`${width}: the text is covered by ${cover.slice(0, 100)}`);
            }
            await page.locator('main p a[href="#trip-cr3"]').first().press('Enter');
            const box = await page.locator('#trip-cr3').boundingBox();
            if (!page.url().endsWith('#trip-cr3') || box.y < 0 || box.y > HEIGHT) {
                bad.push(`${width}: the link to CR3 ends at ${page.url()}, ${box.y}`);
            }
            const state = page.locator('.trip-all .trip-state').last();
            await state.locator('summary').press('Enter');
            if (!await state.locator('[data-part="cr3"]').isVisible()) {
                bad.push(`${width}: the last state does not open`);
            }
            await page.close();
        }
        return bad;
    },

    /** The way from a line of a file to its chunk and back. */
    async 'to-and-fro'(browser, base) {
        const page = await patient(browser);
        await page.goto(`${base}/host/shadow.html`);
        const place = page.locator('.chunk-place a').first();
        const [file, line] = new URL(await place.getAttribute('href'), page.url()).href.split('#');
        await click(page, place);
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
    const { server, base } = await serve(BOOK);
    const browser = await launch(MODULES, CHROMIUM, PATIENCE);
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
