// A network in training, with and without weight norm: the same first weights, the same points, side by side.
import { Training } from './web.js';
import { fail, pause, short, state } from './page.js';

const $ = id => document.getElementById(id);
const NAMES = ['plain', 'normalized'];
/** Losses that a point of a curve is the mean of. */
const MEAN = 16;
/** Points of a curve before it is thinned out. */
const MOST = 600;
const SEED = 1;

export async function startTraining(device) {
  let training, curves = NAMES.map(() => []), perPoint, figures, running = false, again = false, busy = false;
  const rate = () => 10 ** Number($('rate').value);

  function restart() {
    training.restart(SEED);
    curves = NAMES.map(() => []);
    perPoint = MEAN;
    figures = { steps: 0, since: performance.now(), shown: performance.now() };
    Object.assign(state, { losses: null, steps: 0 });
    drawCurves();
  }

  /** Steps of all networks; the mean of their losses is one more point of each curve. */
  async function run() {
    const losses = await training.run(rate()), count = training.steps_of_a_run();
    state.steps = training.steps();
    figures.steps += count;
    state.losses = NAMES.map((_, n) => {
      const mean = losses.slice(n * count, (n + 1) * count).reduce((sum, x) => sum + x, 0) / count;
      const curve = curves[n], last = curve.at(-1);
      if (last && last.count < perPoint) {
        last.loss = (last.loss * last.count + mean * count) / (last.count + count);
        last.count += count;
      } else {
        curve.push({ loss: mean, count });
      }
      return mean;
    });
    if (curves[0].length >= MOST) {
      perPoint *= 2;
      curves = curves.map(curve => curve.flatMap((a, i) => {
        const b = curve[i + 1];
        return i % 2 ? [] : [b ? { loss: (a.loss + b.loss) / 2, count: a.count + b.count } : a];
      }));
    }
  }

  /** The first time, the kernels are compiled. */
  async function warmUp() {
    const bar = $('train-progress');
    $('train').disabled = $('restart').disabled = true;
    bar.hidden = false;
    training = new Training(device, false);
    for (let i = 0; i < training.warm_ups(); i++) {
      bar.value = i / training.warm_ups();
      await pause();
      await training.warm_up(i);
    }
    restart();
    bar.hidden = true;
    $('train').disabled = $('restart').disabled = false;
  }

  /** Trains until it is told to pause. One call at a time may use the networks: what else is asked for waits here. */
  async function go() {
    busy = true;
    try {
      if (!training) await warmUp();
      Object.assign(figures, { steps: 0, since: performance.now() });
      while (running || again) {
        if (again) {
          again = false;
          restart();
        }
        if (running) await run();
        const now = performance.now();
        if (!running || now - figures.shown > 250) {
          figures.shown = now;
          drawCurves();
          await drawFields();
          figures.speed = figures.steps * NAMES.length / (now - figures.since) * 1000;
          if (running) $('train-speed').textContent = short(figures.speed);
        }
        await pause();
      }
      drawCurves();
    } catch (error) {
      running = false;
      fail(error);
    }
    busy = false;
    $('train').textContent = 'Train';
  }

  function drawCurves() {
    const canvas = $('curves'), context = canvas.getContext('2d'), style = getComputedStyle(document.body);
    const scale = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    context.scale(scale, scale);
    context.font = '12px system-ui, sans-serif';
    const all = curves.flat().map(point => point.loss).filter(x => x > 0 && isFinite(x));
    const top = Math.ceil(Math.log10(Math.max(0.1, ...all)) * 2) / 2;
    const bottom = Math.min(top - 1, Math.floor(Math.log10(Math.min(0.03, ...all)) * 2) / 2);
    const left = 52, x0 = left, x1 = width - 8, y0 = 10, y1 = height - 24;
    const y = loss => y0 + (top - Math.log10(loss)) / (top - bottom) * (y1 - y0);
    const steps = Math.max(1, ...curves.map(curve => curve.reduce((sum, point) => sum + point.count, 0)));
    context.strokeStyle = style.getPropertyValue('--line');
    context.fillStyle = style.getPropertyValue('--soft');
    for (let e = Math.ceil(bottom * 2) / 2; e <= top; e += 0.5) {
      const at = y(10 ** e);
      context.beginPath();
      context.moveTo(x0, at);
      context.lineTo(x1, at);
      context.stroke();
      context.fillText((10 ** e).toPrecision(2), 4, at + 4);
    }
    context.fillText('0', x0, height - 6);
    context.textAlign = 'right';
    context.fillText(`${steps} steps`, x1, height - 6);
    context.textAlign = 'left';
    curves.forEach((curve, n) => {
      context.strokeStyle = style.getPropertyValue(`--${NAMES[n]}`);
      context.lineWidth = 2;
      context.beginPath();
      let step = 0;
      for (const { loss, count } of curve) {
        step += count;
        if (loss > 0 && isFinite(loss)) context.lineTo(x0 + step / steps * (x1 - x0), y(loss));
      }
      context.stroke();
    });
    curves.forEach((curve, n) => {
      const last = curve.at(-1)?.loss;
      $(`loss-${NAMES[n]}`).textContent = last === undefined ? '–' : isFinite(last) ? last.toPrecision(3) : 'it diverged';
    });
  }

  async function drawFields() {
    const side = training.side();
    for (const [n, name] of NAMES.entries()) {
      const rgba = await training.picture(n), canvas = $(`learned-${name}`);
      canvas.width = canvas.height = side;
      canvas.getContext('2d').putImageData(new ImageData(new Uint8ClampedArray(rgba), side, side), 0, 0);
    }
  }

  const showRate = () => { $('rate-text').textContent = rate().toPrecision(2); };
  $('rate').oninput = showRate;
  $('train').onclick = () => {
    running = !running;
    $('train').textContent = running ? 'Pause' : 'Train';
    if (running && !busy) go();
  };
  $('restart').onclick = () => {
    again = true;
    if (!busy) go();
  };
  addEventListener('resize', drawCurves);
  showRate();
  $('restart').disabled = true;
  return { warmUps: [], begin: async () => drawCurves() };
}
