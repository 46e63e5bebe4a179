// SPDX-License-Identifier: GPL-2.0

// Makes a stepper of the recorded trip in switcher/step-by-step.md. All that it shows stands in
// the page, which is a list without it.
(() => {
    'use strict';

    const trip = document.querySelector('.trip');
    // What is printed is read from top to bottom.
    if (!trip || location.pathname.endsWith('/print.html')) {
        return;
    }
    const list = trip.querySelector('.trip-all');
    const strip = trip.querySelector('.trip-strip');
    const steps = [...list.querySelectorAll('.trip-list > li')];
    const begin = list.querySelector('.trip-state');
    const last = steps.length;

    /** An element with attributes and children. */
    function make(name, attributes, ...children) {
        const element = document.createElement(name);
        for (const [key, value] of Object.entries(attributes)) {
            element.setAttribute(key, value);
        }
        element.append(...children);
        return element;
    }

    /** A copy of what is in an element. */
    const copy = element => [...element.childNodes].map(node => node.cloneNode(true));

    // The states: the first is told as a whole, all others by what has changed.
    const states = [new Map()];
    for (const row of begin.querySelectorAll('[data-part]')) {
        states[0].set(row.dataset.part, copy(row.querySelector('dd')));
    }
    steps.forEach((step, n) => {
        const state = new Map(states[n]);
        if (n + 1 < last) {
            state.set('rip', copy(steps[n + 1].querySelector('.trip-where')));
        }
        for (const change of step.querySelectorAll('.trip-change')) {
            state.set(change.dataset.part, copy(change).slice(1));
        }
        states.push(state);
    });

    // The steps at which something is as it was not before.
    const stations = [0, last];
    steps.forEach((step, n) => step.querySelector('.trip-station') && stations.push(n + 1));
    stations.sort((a, b) => a - b);

    let at = 0;
    const go = {
        first: () => 0,
        before: () => stations.findLast(n => n < at) ?? 0,
        back: () => at - 1,
        next: () => at + 1,
        after: () => stations.find(n => n > at) ?? last,
        last: () => last,
    };
    const keys = {
        Home: 'first',
        PageUp: 'before',
        ArrowLeft: 'back',
        ArrowUp: 'back',
        ArrowRight: 'next',
        ArrowDown: 'next',
        PageDown: 'after',
        End: 'last',
    };
    const button = (what, sign, text, key) => {
        const name = `${text} (${key})`;
        const made = make('button', { type: 'button', title: name, 'aria-label': name }, sign);
        made.addEventListener('click', () => show(go[what]()));
        return made;
    };
    const buttons = {
        first: button('first', '⇤', 'To the beginning', 'Home'),
        before: button('before', '«', 'To the station before', 'Page Up'),
        back: button('back', '‹', 'One step back', 'left arrow'),
        next: button('next', '›', 'One step on', 'right arrow'),
        after: button('after', '»', 'To the next station', 'Page Down'),
        last: button('last', '⇥', 'To the end', 'End'),
    };
    const slider = make('input', { type: 'range', min: 0, max: last, 'aria-label': 'Step' });
    const now = make('div', { class: 'trip-now', 'aria-live': 'polite', 'aria-atomic': 'true' });
    const drawing = begin.querySelector('.trip-drawing').cloneNode(true);
    const registers = begin.querySelector('.trip-registers').cloneNode(true);
    const controls = make('div', { class: 'trip-controls' }, ...Object.values(buttons), slider);
    const stepper = make(
        'div',
        { class: 'trip-stepper', role: 'group', 'aria-label': 'The trip, step by step' },
        strip, controls, now, drawing, registers,
    );

    /** What the step before this state was. */
    function tell(n) {
        const lines = [];
        const line = (name, ...children) => lines.push(make('p', { class: name }, ...children));
        const step = steps[n - 1];
        if (step) {
            const part = step.closest('.trip-part').querySelector('.trip-head b');
            const count = make('b', {}, `Step ${n} of ${last}`);
            const station = step.querySelector('.trip-station')?.cloneNode(true) ?? '';
            if (station) {
                station.removeAttribute('id');
            }
            line('trip-count', count, ' ', make('span', {}, ...copy(part)), ' ', station);
            const code = step.querySelector('.trip-code').cloneNode(true);
            const source = step.querySelector('.trip-line')?.cloneNode(true) ?? '';
            line('trip-instruction', code, ' ', source);
            line('trip-changes', 'changes: ', ...copy(step.querySelector('.trip-changes')));
        } else {
            line('trip-count', make('b', {}, `Before step 1 of ${last}`));
        }
        if (n < last) {
            const next = steps[n].querySelector('.trip-code').cloneNode(true);
            line('trip-follows', 'next: ', next);
        }
        return lines;
    }

    /** Puts names into the boxes of the drawing, and says which side is mapped. */
    function draw(where) {
        const [side, ...places] = where.split(' ');
        for (const element of drawing.querySelectorAll('[data-side]')) {
            const name = element.dataset.side;
            element.classList.toggle('trip-lit', name === 'both' || name === side);
        }
        for (const tag of drawing.querySelectorAll('i')) {
            tag.previousSibling?.nodeValue?.trim() === '' && tag.previousSibling.remove();
            tag.remove();
        }
        const seen = new Set();
        for (const word of places) {
            const [what, place] = word.split('=');
            const box = drawing.querySelector(`[data-box="${place}"]`);
            if (box && !seen.has(word)) {
                seen.add(word);
                box.append(' ', make('i', {}, what));
            }
        }
    }

    /** Shows the state after a step, or with 0 the one before all. */
    function show(n) {
        at = Math.min(Math.max(n, 0), last);
        slider.value = at;
        const code = at ? steps[at - 1].querySelector('.trip-code').textContent : 'the beginning';
        slider.setAttribute('aria-valuetext', `${at} of ${last}: ${code}`);
        for (const [what, element] of Object.entries(buttons)) {
            const off = ['first', 'before', 'back'].includes(what) ? at === 0 : at === last;
            element.setAttribute('aria-disabled', off);
        }
        now.replaceChildren(...tell(at));
        draw(at ? steps[at - 1].dataset.at : begin.querySelector('.trip-drawing').dataset.at);
        for (const row of registers.querySelectorAll('[data-part]')) {
            const part = row.dataset.part;
            const value = states[at].get(part);
            row.querySelector('dd').replaceChildren(...value.map(node => node.cloneNode(true)));
            const text = state => state.get(part).map(node => node.textContent).join('');
            const changed = at > 0 && text(states[at]) !== text(states[at - 1]);
            row.classList.toggle('trip-changed', changed);
        }
        strip.style.setProperty('--trip-at', `${(at + 0.5) / (last + 1) * 100}%`);
    }

    /** The step that an address within the page means, from 1. */
    function meant(hash) {
        const target = hash.length > 1 && document.getElementById(hash.slice(1));
        return target ? steps.indexOf(target.closest('.trip-list > li')) + 1 : 0;
    }

    function jump(hash) {
        const step = meant(hash);
        if (step > 0) {
            show(step);
            stepper.scrollIntoView({ block: 'start' });
        }
        return step > 0;
    }

    slider.addEventListener('input', () => show(Number(slider.value)));
    stepper.addEventListener('keydown', event => {
        const what = keys[event.key];
        if (!what || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) {
            return;
        }
        // These keys turn the book's pages elsewhere.
        event.preventDefault();
        event.stopPropagation();
        show(go[what]());
    });
    strip.addEventListener('click', event => {
        const bar = strip.querySelector('.trip-bar').getBoundingClientRect();
        const part = (event.clientX - bar.left) / bar.width;
        if (part >= 0 && part < 1) {
            show(Math.floor(part * (last + 1)));
        }
    });
    document.addEventListener('click', event => {
        const link = event.target.closest?.('main a[href^="#"]');
        if (link && !event.ctrlKey && !event.metaKey && jump(link.getAttribute('href'))) {
            event.preventDefault();
            history.replaceState(null, '', link.getAttribute('href'));
        }
    });
    window.addEventListener('hashchange', () => jump(location.hash));

    list.before(stepper);
    list.open = false;
    show(0);
    jump(location.hash);
    // When all is loaded the browser opens the list at that address once more.
    window.addEventListener('load', () => setTimeout(() => {
        if (meant(location.hash) > 0) {
            list.open = false;
            jump(location.hash);
        }
    }));
})();
