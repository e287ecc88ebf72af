// The curve of a loss, as SVG.
const space = 'http://www.w3.org/2000/svg';

function shape(tag, attributes, text) {
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
}

/** losses of the steps so far, of `steps` that there will be. */
export function drawCurve(svg, losses, steps) {
    const [left, right, top, bottom] = [36, 470, 12, 190];
    const high = losses.reduce((high, loss) => Math.max(high, Math.ceil(loss)), 1), every = high > 6 ? 2 : 1;
    const x = i => left + (right - left) * (steps > 1 ? i / (steps - 1) : 0), y = loss => bottom - (bottom - top) * loss / high;
    const parts = [];
    for (let loss = 0; loss <= high; loss += every) {
        parts.push(shape('line', { class: 'axis', x1: left, x2: right, y1: y(loss), y2: y(loss) }));
        parts.push(shape('text', { x: left - 8, y: y(loss) + 4, 'text-anchor': 'end' }, loss));
    }
    parts.push(shape('text', { x: left, y: bottom + 20 }, 'step 1'), shape('text', { x: right, y: bottom + 20, 'text-anchor': 'end' }, steps));
    if (losses.length)
        parts.push(shape('polyline', { class: 'curve', points: losses.map((loss, i) => `${x(i).toFixed(1)},${y(loss).toFixed(1)}`).join(' ') }));
    svg.replaceChildren(...parts);
    svg.setAttribute('aria-label', losses.length
        ? `Loss over ${losses.length} steps, from ${losses[0].toFixed(2)} to ${losses.at(-1).toFixed(2)}` : 'No loss yet');
}
