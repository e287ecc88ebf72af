// The page's side of worker.mjs: jobs as promises, with events on the way.
const worker = new Worker(new URL('./worker.mjs', import.meta.url), { type: 'module' });
const open = new Map();
let last = 0;

worker.onmessage = ({ data: { id, event, result, error, stopped } }) => {
    const job = open.get(id);
    if (!job) return;
    if (event) return void job.onEvent?.(event);
    open.delete(id);
    if (error === undefined) job.resolve(result);
    else job.reject(Object.assign(new Error(error), { stopped }));
};

/** The worker itself does not run: what waits for it would wait forever. */
worker.onerror = event => {
    for (const job of open.values()) job.reject(new Error(`The page's worker failed: ${event.message ?? 'it cannot be loaded'}`));
    open.clear();
};

/** A job of the worker: `done` is a promise; stop, pause and resume as their names say. */
export function start(action, value = {}, onEvent = null) {
    const id = ++last;
    const done = new Promise((resolve, reject) => open.set(id, { resolve, reject, onEvent }));
    const tell = what => () => worker.postMessage({ id, action: what });
    worker.postMessage({ id, action, value });
    return { done, stop: tell('stop'), pause: tell('pause'), resume: tell('resume') };
}

/** A job without events. */
export const ask = (action, value) => start(action, value).done;
