// The field: rays are marched coarse first, and finer while nothing moves.
import { Field } from './web.js';
import { bytesOf, fail, short, state } from './page.js';

const $ = id => document.getElementById(id);
const HOME = { yaw: 0.6, pitch: 0.45, distance: 4.2 };
/** Milliseconds after which a picture is shown, even if a finer one is to come. */
const PATIENCE = 40;

export async function startField(device) {
  const field = new Field(device, await bytesOf('round_cross.safetensors'));
  const canvas = $('field'), context = canvas.getContext('2d');
  const view = { ...HOME }, width = field.width();
  $('field-network').textContent = field.summary();

  // A slider for each number of the latent code, over the range that the file's codes have.
  const codes = field.latent_codes();
  const latent = Array.from(codes.slice(0, width));
  for (let i = 0; i < width; i++) {
    const all = codes.filter((_, j) => j % width === i);
    const label = document.createElement('label'), slider = document.createElement('input');
    Object.assign(slider, { type: 'range', id: `latent${i}`, min: Math.min(...all), max: Math.max(...all), step: 'any' });
    slider.value = latent[i];
    slider.oninput = () => { latent[i] = Number(slider.value); changed(); };
    label.append(width === 1 ? 'Latent code: how thick it is ' : `Latent number ${i + 1} `, slider);
    $('latents').append(label);
  }
  // `?detail=32` asks for another one to begin with. A CPU takes seconds for a small one.
  $('detail').value = new URLSearchParams(location.search).get('detail') ?? (state.slow ? 64 : 256);
  const reset = () => {
    Object.assign(view, HOME);
    changed();
  };

  let busy = false, again = false;
  const sizes = () => {
    return [32, 64, 128, 256, 512].filter(size => size <= Number($('detail').value));
  };

  /** Draws, and once more if something has changed meanwhile. */
  async function changed() {
    again = true;
    if (busy) return;
    busy = true;
    try {
      while (again) {
        again = false;
        await draw();
      }
    } catch (error) {
      fail(error);
    }
    busy = false;
  }

  async function draw() {
    const start = performance.now(), before = field.points(), all = sizes();
    const look = field.look(view.yaw, view.pitch, view.distance, new Float32Array(latent), Number($('cut').value));
    let shown = start;
    for (const [i, size] of all.entries()) {
      await look.march(size);
      const last = i + 1 === all.length || again;
      if (last || performance.now() - shown > PATIENCE) {
        const rgba = await look.shade();
        canvas.width = canvas.height = size;
        context.putImageData(new ImageData(new Uint8ClampedArray(rgba), size, size), 0, 0);
        shown = performance.now();
      }
      if (last) {
        const seconds = (performance.now() - start) / 1000;
        Object.assign(state, { size, frames: 1 / seconds, points: (field.points() - before) / seconds });
        $('frames').textContent = `${short(state.frames)}, of ${size} × ${size}`;
        $('points').textContent = short(state.points);
        break;
      }
    }
    look.free();
  }

  let from = null;
  canvas.onpointerdown = e => { canvas.setPointerCapture(e.pointerId); from = [e.clientX, e.clientY]; };
  canvas.onpointerup = canvas.onpointercancel = () => { from = null; };
  canvas.onpointermove = e => {
    if (!from) return;
    turn((from[0] - e.clientX) / 120, (e.clientY - from[1]) / 120);
    from = [e.clientX, e.clientY];
  };
  canvas.addEventListener('wheel', e => { e.preventDefault(); zoom(Math.exp(e.deltaY / 800)); }, { passive: false });
  canvas.onkeydown = e => {
    const act = {
      ArrowLeft: () => turn(0.12, 0), ArrowRight: () => turn(-0.12, 0), ArrowUp: () => turn(0, 0.12),
      ArrowDown: () => turn(0, -0.12), '+': () => zoom(0.9), '=': () => zoom(0.9), '-': () => zoom(1.1), r: reset, R: reset,
    }[e.key];
    if (!act || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    act();
  };
  function turn(yaw, pitch) {
    view.yaw += yaw;
    view.pitch = Math.max(-1.5, Math.min(1.5, view.pitch + pitch));
    changed();
  }
  function zoom(by) {
    view.distance = Math.max(1.8, Math.min(9, view.distance * by));
    changed();
  }
  $('cut').oninput = changed;
  $('detail').onchange = changed;
  state.view = view;

  return {
    warmUps: [
      ...Array.from({ length: field.warm_ups() }, (_, i) => () => field.warm_up(i)),
      async () => {
        state.fieldError = await field.error();
        $('field-error').textContent = state.fieldError.toExponential(1);
      },
    ],
    begin: changed,
  };
}
