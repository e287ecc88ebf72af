// What the parts of the page share.
export const $ = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
}

/** A button that is part of a line of text, and wraps with it. */
export function inlineButton(text, press) {
    const button = make('span', { textContent: text, onclick: press });
    button.setAttribute('role', 'button');
    button.setAttribute('aria-pressed', 'false');
    return button;
}

/** One element of a group is reached by Tab; arrow keys move among the others (`across` in a row of a grid). */
export function roving(group, across = 1) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    const items = () => [...group.querySelectorAll('button, [role=button]')];
    group.onkeydown = event => {
        if ((event.key === 'Enter' || event.key === ' ') && event.target.tagName === 'SPAN') {
            event.preventDefault();
            return event.target.click();
        }
        const all = items(), at = all.indexOf(document.activeElement);
        const to = event.key === 'Home' ? 0 : event.key === 'End' ? all.length - 1 : at + (steps[event.key] ?? 0);
        if (at < 0 || to === at || !all[to]) return;
        event.preventDefault();
        all[to].focus();
    };
    group.addEventListener('focusin', event => items().forEach(item => { item.tabIndex = item === event.target ? 0 : -1; }));
}

/** Tokens are readable when they are blank, too. */
export const visible = text => text.replace(/\n/g, '⏎\n');
export const named = text => text.trim() ? `“${text.trim()}”` : text.includes('\n') ? 'a new line' : text ? 'a space' : 'a part of a character';
export const percent = p => p >= 0.1 ? `${(100 * p).toFixed(0)}\u00a0%` : p >= 0.001 ? `${(100 * p).toFixed(1)}\u00a0%` : '<\u00a00.1\u00a0%';

let before = null; // the alarm, something else had the focus

/** Stays until it is closed, or what failed is done. */
export function alarm(error) {
    if ($('alert').hidden) before = document.activeElement;
    $('alert-text').textContent = error.message ?? error;
    $('alert').hidden = false;
}

export function closeAlarm() {
    const hadFocus = $('alert').contains(document.activeElement);
    $('alert').hidden = true;
    if (hadFocus) before?.focus();
}

/** Calls use(files) for those that are chosen, also when they are the same ones again. */
export function onFiles(input, use) {
    input.onchange = () => {
        const files = [...input.files];
        input.value = '';
        if (files.length) use(files);
    };
}

/** A list of bars: [{ name, p, current, choose }]; with `choose` each is a button. */
export function bars(list, rows) {
    list.replaceChildren(...rows.map(({ name, p, current, choose }) => {
        const fill = make('i');
        fill.style.width = `${100 * p}%`;
        const bar = make('span', { className: 'bar', ariaHidden: 'true' }, fill);
        const parts = [make('span', { className: 'name', textContent: name }), bar, make('span', { className: 'percent', textContent: percent(p) })];
        const row = make(choose ? 'button' : 'div', { className: 'row' }, ...parts);
        if (choose) Object.assign(row, { type: 'button', onclick: choose });
        if (current) row.setAttribute('aria-current', 'true');
        return make('li', {}, row);
    }));
}

export function color(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
