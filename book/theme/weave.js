// SPDX-License-Identifier: GPL-2.0

// What a page does when there is JavaScript: a reference in code opens in
// place. Without it, and where a page cannot be fetched (from a disk), it is
// the plain link that it was.
(() => {
    'use strict';

    /** Pages that were asked for, by address. */
    const pages = new Map();

    /** The document at an address: this one, or one that is fetched once. */
    function page(url) {
        const address = url.href.split('#')[0];
        if (address === location.href.split('#')[0]) {
            return Promise.resolve(document);
        }
        if (!pages.has(address)) {
            pages.set(address, fetch(address).then(async answer => {
                if (!answer.ok) {
                    throw new Error(`${answer.status}`);
                }
                const text = await answer.text();
                return new DOMParser().parseFromString(text, 'text/html');
            }));
        }
        return pages.get(address);
    }

    /** All parts of the chunk whose first is at an address. */
    async function parts(first) {
        const found = [];
        let url = first;
        while (url && found.every(part => part.url.href !== url.href)) {
            const figure = (await page(url)).getElementById(url.hash.slice(1));
            const code = figure && figure.querySelector('pre > code');
            if (!code) {
                throw new Error(`nothing at ${url.href}`);
            }
            found.push({ url, figure, code });
            const next = figure.querySelector('a.chunk-next');
            url = next && new URL(next.getAttribute('href'), url);
        }
        return found;
    }

    /** What stands before a link on its line. */
    function indentation(link) {
        const before = document.createRange();
        before.setStart(link.closest('pre > code'), 0);
        before.setEndBefore(link);
        const line = before.toString().split('\n').pop();
        return line.slice(0, line.length - line.trimStart().length);
    }

    /** A copy of a part, for the place of a reference to it. */
    function copy({ url, figure, code }, indent) {
        const block = document.createElement('span');
        const title = figure.querySelector('.chunk-title');
        const from = document.createElement('a');
        from.className = 'chunk-from';
        from.href = url.href;
        from.dataset.title = `${title ? title.textContent : url.hash.slice(1)}: go there`;
        from.setAttribute('aria-label', from.dataset.title);
        const lines = document.createElement('span');
        lines.className = code.className.replace(/\bhljs\b/, '');
        // What was opened there, or is marked as open, is not copied.
        const clean = code.cloneNode(true);
        clean.querySelectorAll('.chunk-opened').forEach(opened => opened.remove());
        lines.innerHTML = clean.innerHTML.replace(/^(?=.)/gm, indent);
        lines.querySelectorAll('a.chunk-ref').forEach(link => {
            link.href = new URL(link.getAttribute('href'), url).href;
            link.removeAttribute('aria-expanded');
        });
        if (window.hljs && /\blanguage-/.test(lines.className) && !lines.querySelector('.hljs-comment, .hljs-keyword')) {
            window.hljs.highlightBlock(lines);
        }
        block.append(from, lines);
        return block;
    }

    /** Puts an element behind the line that a link is on. */
    function insertBelow(link, element) {
        const code = link.closest('pre > code');
        const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
        texts.currentNode = link;
        let text;
        while ((text = texts.nextNode())) {
            const at = text.data.indexOf('\n');
            if (at >= 0 && !link.contains(text)) {
                text.after(element);
                element.after(text.splitText(at + 1));
                return;
            }
        }
        code.append(element);
    }

    async function open(link) {
        const url = new URL(link.getAttribute('href'), location.href);
        const opened = document.createElement('span');
        opened.className = 'chunk-opened';
        const indent = indentation(link);
        for (const part of await parts(url)) {
            opened.append(copy(part, indent));
        }
        insertBelow(link, opened);
        prepare(opened);
        link.opened = opened;
        link.setAttribute('aria-expanded', 'true');
    }

    function close(link) {
        link.opened.remove();
        link.opened = null;
        link.setAttribute('aria-expanded', 'false');
    }

    /** Makes the references below an element ones that open. */
    function prepare(element) {
        for (const link of element.querySelectorAll('a.chunk-ref')) {
            link.setAttribute('aria-expanded', 'false');
            link.addEventListener('click', event => {
                if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) {
                    return;
                }
                event.preventDefault();
                if (link.opened) {
                    close(link);
                } else {
                    open(link).catch(() => {
                        location.href = link.href;
                    });
                }
            });
        }
    }

    /** What scrolls can be reached with the keyboard. */
    function reach() {
        for (const box of document.querySelectorAll('pre > code, .table-wrapper, main figure')) {
            if (box.scrollWidth > box.clientWidth) {
                box.tabIndex = 0;
            } else {
                box.removeAttribute('tabindex');
            }
        }
    }

    /** What mdBook's frame leaves to the mouse, or without a name. */
    function frame() {
        const roles = { 'mdbook-menu-bar': 'banner', 'mdbook-search-wrapper': 'search' };
        for (const [id, role] of Object.entries(roles)) {
            document.getElementById(id)?.setAttribute('role', role);
        }
        // A label of a box that is not shown: Tab would pass it by.
        const label = document.getElementById('mdbook-sidebar-toggle');
        if (label && label.localName === 'label') {
            const button = document.createElement('button');
            button.type = 'button';
            button.className = 'icon-button';
            button.title = label.title;
            button.setAttribute('aria-label', label.title);
            button.setAttribute('aria-controls', 'mdbook-sidebar');
            button.append(...label.childNodes);
            button.addEventListener('click', () => label.control.click());
            const say = () => {
                const shown = document.documentElement.classList.contains('sidebar-visible');
                button.setAttribute('aria-expanded', shown);
            };
            new MutationObserver(say).observe(document.documentElement, {
                attributes: true, attributeFilter: ['class'],
            });
            say();
            label.hidden = true;
            label.after(button);
        }
    }

    frame();
    prepare(document);
    reach();
    window.addEventListener('resize', reach);
})();
