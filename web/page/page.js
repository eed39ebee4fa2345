// The page: looks for WebGPU, has the kernels compiled, and hands the device to the parts of it.
import init, { Device } from './web.js';
import { startChecks } from './checks.js';
import { startField } from './field.js';
import { startTraining } from './training.js';
import { startVoice } from './voice.js';

const $ = id => document.getElementById(id);

/** What a check reads (web/check.mjs): figures, and whether the page is ready. */
export const state = window.weightnorm = { ready: false };

/** Shows an error to the visitor. */
export function fail(error) {
  $('fault-text').textContent = error?.message ?? String(error);
  $('fault').hidden = false;
  state.fault = $('fault-text').textContent;
}
$('fault-close').onclick = () => { $('fault').hidden = true; };
addEventListener('unhandledrejection', e => fail(e.reason));
addEventListener('error', e => fail(e.error ?? e.message));

/** Bytes of a file beside the page. */
export async function bytesOf(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Lets the browser draw. */
export const pause = () => new Promise(resolve => setTimeout(resolve, 0));

/** A number in few digits. */
export const short = x => x >= 1e6 ? `${(x / 1e6).toPrecision(3)} million` : x >= 1000 ? Math.round(x).toLocaleString('en')
  : x.toPrecision(3);

function missing(why) {
  $('why').textContent = why;
  $('missing').hidden = false;
  $('warming').hidden = true;
  $('adapter').textContent = 'No GPU.';
  state.missing = why;
}

/** What the browser says of the adapter that the crate will get too. */
async function adapterName() {
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) return null;
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
  state.slow = isFallbackAdapter;
  const name = description || [vendor, architecture, device].filter(Boolean).join(' ') || 'a GPU without a name';
  return name + (isFallbackAdapter ? ', which computes on the CPU: expect a thousandth of a GPU\'s speed' : '');
}

async function start() {
  if (!navigator.gpu) return missing(isSecureContext ? 'WebGPU is off, or this browser has none.'
    : 'This page came over http from another machine, where browsers switch WebGPU off.');
  const name = await adapterName();
  if (!name) return missing('WebGPU is there, but it found no adapter.');
  $('adapter').textContent = `Runs on ${name}.`;
  state.adapter = name;
  await init();
  let device;
  try {
    device = await Device.open();
  } catch (error) {
    return missing(error.message);
  }
  // Each part is compiled step by step, and begins while the next ones are compiled.
  const parts = [];
  for (const begin of [startField, startTraining, startVoice, startChecks]) parts.push(await begin(device));
  const count = parts.reduce((sum, part) => sum + part.warmUps.length, 0);
  let done = 0;
  for (const part of parts) {
    for (const step of part.warmUps) {
      $('warm-text').textContent = `(${done + 1} of ${count})`;
      await pause();
      await step();
      $('warm').value = ++done / count;
    }
    $('main').hidden = false;
    await part.begin();
  }
  state.pipelines = device.pipelines();
  $('warming').hidden = true;
  state.ready = true;
}

start().catch(fail);
