// Runs web/dist in headless Chromium and looks at what it computes:
//     node web/check.mjs [--detail 64] [--seconds 100] [--only PART,..] [--golden [NAME]] [--screenshot FILE.png]
// --golden: all reference cases, or those with NAME in theirs, not only a few.
// --seconds: what is not reached by then is left out, by name.
// --only: some of the parts field, missing, faults, training, voice and golden.
// CHROMIUM names another program. Without a GPU the browser takes SwiftShader, which computes on the CPU.
//
// Exit code: 0 all is right, 1 something is wrong, 3 there is no Chromium, or web/dist was not built.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { dirname, extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url)), dist = join(here, 'dist');
const argument = name => process.argv[process.argv.indexOf(name) + 1 || Infinity];
const program = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/google-chrome'].find(path => path && existsSync(path));
if (!program || !existsSync(join(dist, 'web_bg.wasm'))) {
    console.error(program ? 'web/dist is not built: bash web/build.sh' : 'no Chromium: apt install chromium, or set CHROMIUM');
    process.exit(3);
}

const types = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.wasm': 'application/wasm' };
const server = createServer((request, answer) => {
    const path = normalize(decodeURI(request.url.split('?')[0])), file = join(dist, path === '/' ? 'index.html' : path);
    if (!existsSync(file)) return answer.writeHead(404).end();
    answer.writeHead(200, { 'content-type': types[extname(file)] ?? 'application/octet-stream' }).end(readFileSync(file));
});
await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
const url = `http://127.0.0.1:${server.address().port}/`;

/** When --seconds are over. */
const over = Date.now() + 1000 * Number(argument('--seconds') ?? Infinity);
class OutOfTime extends Error {}

/** A browser, spoken to over pipes 3 and 4 in messages of JSON that end in a zero byte. */
class Browser {
    static async open(...flags) {
        const browser = new Browser();
        browser.folder = mkdtempSync(join(tmpdir(), 'weightnorm-web-'));
        browser.process = spawn(program, [
            '--headless=new', '--no-sandbox', '--remote-debugging-pipe', `--user-data-dir=${browser.folder}`,
            '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
            '--disable-sync', '--disable-dev-shm-usage', '--mute-audio', '--autoplay-policy=no-user-gesture-required',
            ...flags, 'about:blank',
        ], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'], detached: true });
        browser.waiting = new Map();
        browser.number = 0;
        browser.console = [];
        let rest = '';
        browser.process.stdio[4].setEncoding('utf8').on('data', data => {
            const messages = (rest + data).split('\0');
            rest = messages.pop();
            for (const message of messages) browser.hear(JSON.parse(message));
        });
        browser.process.on('exit', () => browser.waiting.forEach(({ reject }) => reject(new Error('Chromium ended'))));
        const { targetInfos } = await browser.call('Target.getTargets');
        const { targetId } = targetInfos.find(target => target.type === 'page');
        ({ sessionId: browser.session } = await browser.call('Target.attachToTarget', { targetId, flatten: true }));
        await browser.call('Page.enable');
        await browser.call('Runtime.enable');
        return browser;
    }

    hear({ id, result, error, method, params }) {
        if (method === 'Runtime.consoleAPICalled') this.console.push(params.args.map(a => a.value ?? a.description).join(' '));
        if (method === 'Runtime.exceptionThrown') this.console.push(params.exceptionDetails.exception?.description);
        const waiting = this.waiting.get(id);
        this.waiting.delete(id);
        if (error) waiting?.reject(new Error(error.message));
        else waiting?.resolve(result);
    }

    call(method, params = {}) {
        const id = ++this.number;
        this.process.stdio[3].write(JSON.stringify({ id, method, params, sessionId: this.session }) + '\0');
        return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
    }

    async go(query, size = [1024, 900]) {
        const [width, height] = size;
        await this.call('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false });
        await this.call('Page.navigate', { url: url + query });
    }

    /** The value of an expression in the page; a promise is waited for. */
    async value(expression) {
        const { result, exceptionDetails } =
            await this.call('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
        if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
        return result.value;
    }

    /** Waits until an expression is true. */
    async until(expression, seconds) {
        const end = Date.now() + 1000 * seconds;
        while (!await this.value(expression)) {
            if (Date.now() > over) throw new OutOfTime();
            if (Date.now() > end) throw new Error(`${expression}: not within ${seconds} s. ${this.console.join('\n')}`);
            await new Promise(resolve => setTimeout(resolve, 200));
        }
    }

    async key(key) {
        for (const type of ['keyDown', 'keyUp']) await this.call('Input.dispatchKeyEvent', { type, key });
    }

    async screenshot(file) {
        const { data } = await this.call('Page.captureScreenshot', { captureBeyondViewport: true });
        writeFileSync(file, Buffer.from(data, 'base64'));
    }

    close() {
        try { process.kill(-this.process.pid, 'SIGKILL'); } catch { /* it has ended */ }
        try { rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 }); } catch { /* the system cleans up */ }
    }
}

const READY = 'window.weightnorm?.ready || window.weightnorm?.fault || window.weightnorm?.missing';
const detail = Number(argument('--detail') ?? 32);
let passed = 0, failed = 0, skipped = 0;
function check(what, right, found) {
    console.log(`${right ? 'ok' : 'FAILED'}: ${what}${found === undefined ? '' : `: ${found}`}`);
    if (right) passed++; else failed++;
}

const version = spawnSync(program, ['--version'], { encoding: 'utf8' }).stdout?.trim();
console.log(`browser: ${version}`);
const open = [];
process.on('SIGTERM', () => {
    open.forEach(browser => browser.close());
    process.exit(1);
});
/** What is looked at, one after the other, in the page of `browser`. */
const picturePage = async browser => argument('--screenshot') && browser.screenshot(argument('--screenshot'));
const $ = id => `document.getElementById('${id}')`;
const picture = id => `(() => { const c = ${$(id)}, data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    const at = (x, y) => data[4 * (Math.floor(y * c.height) * c.width + Math.floor(x * c.width)) + 3];
    return { size: c.width, middle: at(.5, .5), corner: at(.02, .02), sum: data.reduce((s, x, i) => (s * 31 + x) % 1e9, 0) }; })()`;

async function field(browser) {
    const state = await browser.value('weightnorm');
    check('the field is PyTorch\'s within 1e-6', state.fieldError < 1e-6, state.fieldError);
    await browser.until(`weightnorm.size === ${detail}`, 150);
    const before = await browser.value(picture('field'));
    check('rays hit the middle and miss the corner', before.middle === 255 && before.corner === 0);
    await browser.value(`${$('detail')}.value = '32', weightnorm.size = 0, ${$('field')}.focus()`);
    await browser.key('ArrowLeft');
    await browser.until('weightnorm.size === 32', 100);
    const after = await browser.value(picture('field'));
    check('an arrow key turns it', after.sum !== before.sum && after.middle === 255);
    const figures = await browser.value(`[${$('frames')}, ${$('points')}].map(e => e.textContent).join(' frames/s; points/s: ')`);
    check('frames and points a second are shown', figures.match(/\d/g)?.length > 3, figures);
    if (argument('--screenshot')) {
        await browser.value(`${$('detail')}.value = '${detail}', ${$('detail')}.onchange()`);
        await browser.until(`weightnorm.size === ${detail}`, 150);
    }
}

async function missing() {
    const without = await Browser.open('--disable-gpu');
    open.push(without);
    await without.go('');
    await without.until(READY, 30);
    check('without WebGPU the page says what to do', await without.value(`!!weightnorm.missing && !${$('missing')}.hidden`),
        await without.value('weightnorm.missing'));
    without.close();
}

async function training(browser) {
    await browser.value(`${$('train')}.click()`);
    await browser.until('weightnorm.steps >= 16', 200);
    const first = await browser.value('weightnorm.losses');
    await browser.until('weightnorm.steps >= 160', 100);
    await browser.value(`${$('train')}.click()`);
    const last = await browser.value('weightnorm.losses');
    check('both networks learn', last.every((loss, n) => loss > 0 && loss < first[n]), `${first} to ${last}`);
}

async function voice(browser) {
    await browser.value(`${$('make')}.click()`);
    await browser.until(`weightnorm.samples > 0 || !${$('fault')}.hidden`, 300);
    const { samples, soundError, soundSpeed } = await browser.value('weightnorm');
    check('the sound is PyTorch\'s within 1e-5', samples === 6144 && soundError < 1e-5, soundError);
    console.log(`sound: ${soundSpeed} s a second`);
    await browser.value(`${$('play')}.click()`);
    await browser.until('weightnorm.played > 0.2', 10);
    check('it plays', await browser.value(`${$('play')}.textContent`) === 'Stop');
    await picturePage(browser);
    const drop = names => browser.value(`(async () => {
        const data = new DataTransfer();
        for (const name of ${JSON.stringify(names)}) data.items.add(new File([await (await fetch(name)).blob()], name));
        ${$('drop')}.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
    })()`);
    await drop(['hifigan_small.safetensors']);
    await browser.until(`/noise/.test(${$('voice-input')}.textContent)`, 10);
    check('a dropped model is taken', await browser.value(`${$('play')}.disabled`), await browser.value(`${$('voice-network')}.textContent`));
    await drop(['round_cross.safetensors']);
    await browser.until(`!${$('fault')}.hidden`, 10);
    const told = await browser.value(`${$('fault-text')}.textContent`);
    check('a file that is no vocoder is told', /round_cross\.safetensors: metadata config is missing/.test(told), told);
    await browser.value(`${$('fault-close')}.click()`);
}

async function faults(browser) {
    const expected = { buffer: /^wgpu: .*destroyed/, pipeline: /^wgpu: .*/, memory: /^out of memory: .* of \d+ bytes/ };
    for (const [kind, pattern] of Object.entries(expected)) {
        await browser.value(`document.querySelector('[data-fault=${kind}]').click()`);
        await browser.until(`!${$('fault')}.hidden`, 60);
        const told = await browser.value(`${$('fault-text')}.textContent`);
        check(`fault: ${kind}`, pattern.test(told), told);
        await browser.value(`${$('fault-close')}.click()`);
    }
}

async function golden(browser) {
    const asked = process.argv.includes('--golden'), name = argument('--golden');
    const filters = asked ? [name?.startsWith('--') ? '' : name ?? ''] : ['wn_4x8', 'linear_5x1x1', 'property'], seconds = asked ? 1800 : 100;
    for (const filter of filters) {
        await browser.value(`weightnorm.golden = null, weightnorm.runGolden('${filter}', ${asked ? 25 : 3}), 0`);
        await browser.until(`weightnorm.golden || !${$('fault')}.hidden`, seconds);
        const { passed, failed, rows } = await browser.value('weightnorm.golden');
        rows.forEach(row => console.log(`  ${row}`));
        check(`reference cases and properties ${filter || '(all)'}`, passed > 0 && failed === 0, `${passed} passed, ${failed} failed`);
    }
}

try {
    const size = readFileSync(join(dist, 'web_bg.wasm')).length;
    check('the wasm is below 1.5 MB', size < 1.5e6, size);
    const browser = await Browser.open('--enable-unsafe-webgpu');
    open.push(browser);
    await browser.go(`?detail=${detail}`);
    await browser.until(READY, 300);
    const state = await browser.value('weightnorm');
    console.log(`adapter: ${state.adapter}; ${state.pipelines} pipelines for the field`);
    check('the page starts without an error', state.ready, state.fault ?? state.missing);
    check('it says on what it runs', (await browser.value(`${$('adapter')}.textContent`)).startsWith('Runs on '));
    const parts = { field, missing, faults, training, voice, golden };
    const only = argument('--only')?.split(',') ?? Object.keys(parts);
    for (const [name, part] of Object.entries(parts).filter(([name]) => only.includes(name))) {
        try {
            if (Date.now() > over) throw new OutOfTime();
            await part(browser);
        } catch (error) {
            if (error instanceof OutOfTime) {
                console.log(`not reached: ${name}`);
                skipped++;
            } else {
                check(`${name}: ${error.message}`, false);
            }
        }
    }
    if (!only.includes('voice')) await picturePage(browser);
    check('nothing else went wrong', browser.console.length === 0, browser.console.join('\n') || undefined);
} catch (error) {
    if (!(error instanceof OutOfTime)) check(error.message, false);
    else console.log('not reached: all'), skipped++;
} finally {
    open.forEach(browser => browser.close());
    server.close();
}
console.log(`${passed} passed, ${failed} failed${skipped ? `, ${skipped} parts left out` : ''}`);
process.exit(failed ? 1 : 0);
