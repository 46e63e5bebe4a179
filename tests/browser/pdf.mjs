// SPDX-License-Identifier: GPL-2.0-only

// Prints the rendered book into a PDF: its page for the printer, with a title and the contents
// before it, numbers on the pages, and an outline.
//
//   node pdf.mjs BOOK CHROMIUM MODULES PDF SECONDS
//
// SECONDS is the date that the file bears, as seconds since 1970: the same book gives the same
// bytes whenever it is printed.

import { readFileSync, writeFileSync } from 'node:fs';

import { launch, serve } from './book.mjs';

const [BOOK, CHROMIUM, MODULES, PDF, SECONDS] = process.argv.slice(2);
/** No answer for so long is none: milliseconds. */
const PATIENCE = 1_800_000;

const STYLE = `
    @page :first { margin: 0; }
    .pdf-title { padding-block: 30vh 0; text-align: center; break-after: page; }
    .pdf-title b { display: block; font-size: 3em; }
    .pdf-contents { break-after: page; columns: 2; font-size: 0.9em; }
    .pdf-contents b { display: block; margin-block: 0.8em 0.2em; break-after: avoid; }
    main a:not([href]) { color: inherit !important; text-decoration: none !important; }
    .pdf-contents a { display: block; text-decoration: none; }
`;

/** What is added to the page: a title, and the chapters by their parts. */
function addFront({ contents, style }) {
    const make = (name, className, ...children) => {
        const element = document.createElement(name);
        element.className = className;
        element.append(...children);
        return element;
    };
    const [title] = document.title.split(' - ').slice(-1);
    const about = document.querySelector('meta[name="description"]').content;
    const list = new DOMParser().parseFromString(contents, 'text/html');
    const chapters = [...document.querySelectorAll('main h1')];
    const rows = [];
    for (const item of list.querySelectorAll('li.part-title, li a[href]')) {
        const part = item.localName === 'li';
        const chapter = part ? null : chapters.shift();
        const name = item.textContent.trim().replace(/^[\d.]+ /, '');
        if (part) {
            rows.push(make('b', '', name));
        } else {
            if (!chapter?.id) {
                throw new Error(`${name} is not on the page for the printer`);
            }
            const link = make('a', '', name);
            link.href = `#${chapter.id}`;
            rows.push(link);
        }
    }
    if (chapters.length) {
        throw new Error(`${chapters[0].textContent} is not among the contents`);
    }
    const front = make('div', 'pdf-title', make('b', '', title), about);
    document.querySelector('main').prepend(front, make('div', 'pdf-contents', ...rows));
    document.head.append(make('style', '', style));
    // What is not in this file cannot be gone to from it.
    for (const link of document.querySelectorAll('main a[href]')) {
        const inside = link.getAttribute('href').startsWith('#');
        if (!inside && new URL(link.href).origin === location.origin) {
            link.removeAttribute('href');
        }
    }
    return rows.length;
}

/** Gives a PDF the date of the book in the place of today's, which is as long. */
function dated(bytes) {
    const digits = new Date(Number(SECONDS) * 1000).toISOString().replace(/\D/g, '').slice(0, 14);
    const text = bytes.toString('latin1');
    const date = /\/(CreationDate|ModDate) \(D:\d{14}/g;
    if (!date.test(text)) {
        throw new Error('the PDF has no date');
    }
    return Buffer.from(text.replace(date, `/$1 (D:${digits}`), 'latin1');
}

const { server, base } = await serve(BOOK);
const browser = await launch(MODULES, CHROMIUM, PATIENCE);
try {
    const page = await browser.newPage({ colorScheme: 'light' });
    page.setDefaultTimeout(PATIENCE);
    // That page opens the printer's dialogue.
    await page.addInitScript(() => { window.print = () => {}; });
    await page.goto(`${base}/print.html`, { waitUntil: 'load' });
    const contents = readFileSync(`${BOOK}/toc.html`, 'utf8');
    await page.evaluate(addFront, { contents, style: STYLE });
    const number = '<div style="width: 100%; text-align: center; font-size: 8px"><span ' +
        'class="pageNumber"></span></div>';
    const bytes = await page.pdf({
        format: 'A4',
        margin: { top: '16mm', bottom: '18mm', left: '16mm', right: '16mm' },
        displayHeaderFooter: true,
        headerTemplate: '<span></span>',
        footerTemplate: number,
        tagged: true,
        outline: true,
    });
    writeFileSync(PDF, dated(bytes));
} finally {
    await browser.close();
    server.close();
}
