// A few lines to test with: each test is a function that throws. The last line is the sum, as those of the C tests.
import { execFileSync } from 'node:child_process';

let passed = 0, failed = 0;
const only = process.env.ONLY; // a part of the names of those that are to run

export async function test(name, run) {
    if (only && !name.includes(only)) return;
    try {
        await run();
        passed++;
    } catch (error) {
        failed++;
        console.log(`${name}: ${error.stack}`);
    }
}

export function check(condition, message) {
    if (!condition) throw new Error(message);
}

export function same(a, b, what) {
    if (a !== b) throw new Error(`${what}:\n  ${JSON.stringify(a)}\n  ${JSON.stringify(b)}`);
}

export function sum(name) {
    console.log(`${name}: ${passed} passed, ${failed} failed, 0 skipped`);
    process.exitCode = failed ? 1 : 0;
}

/** What a native program writes, without the line feed at its end. */
export const native = (program, ...args) => execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] }).replace(/\n$/, '');
