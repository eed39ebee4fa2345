// A decoder to sound: the shipped one, or a file of the visitor's.
import { Voice } from './web.js';
import { bytesOf, fail, pause, short, state } from './page.js';

const $ = id => document.getElementById(id);

export async function startVoice(device) {
  let voice, samples, rate, playing, busy = false;

  /** Another network, with frames or without. Its kernels are compiled when it is first asked for sound. */
  function take(model, frames, name) {
    if (busy) throw new Error('wait until the sound is made');
    const taken = new Voice(device, model, frames);
    stop();
    voice?.free();
    voice = taken;
    samples = null;
    rate = voice.sampling_rate();
    $('voice-network').textContent = voice.title();
    $('voice-input').textContent = `${voice.frames()} frames: ${name}`;
    $('voice-error').textContent = $('voice-speed').textContent = '–';
    $('play').disabled = true;
    drawWave();
  }

  /** Makes all of the sound: the first time the kernels are compiled. */
  async function make() {
    if (busy) return;
    busy = true;
    $('make').disabled = true;
    try {
      const bar = $('voice-progress');
      bar.hidden = false;
      bar.value = 0;
      await voice.warm_up(part => { bar.value = part; });
      const parts = [], start = performance.now();
      voice.rewind();
      for (let part; (part = await voice.next()); await pause()) parts.push(part);
      const seconds = (performance.now() - start) / 1000;
      samples = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
      parts.reduce((at, part) => (samples.set(part, at), at + part.length), 0);
      state.soundSpeed = samples.length / rate / seconds;
      state.samples = samples.length;
      state.soundError = voice.error(samples);
      $('voice-speed').textContent = short(state.soundSpeed);
      $('voice-error').textContent = state.soundError?.toExponential(1) ?? 'the file has nothing to compare with';
      $('play').disabled = false;
      bar.hidden = true;
      drawWave();
    } catch (error) {
      fail(error);
    }
    $('make').disabled = false;
    busy = false;
  }

  function stop() {
    playing?.stop();
  }

  async function play() {
    if (playing) return stop();
    const context = play.context ??= new AudioContext();
    await context.resume();
    const buffer = context.createBuffer(1, samples.length, rate), volume = context.createGain();
    buffer.copyToChannel(samples, 0);
    volume.gain.value = Number($('volume').value);
    $('volume').oninput = () => { volume.gain.value = Number($('volume').value); };
    playing = context.createBufferSource();
    playing.buffer = buffer;
    playing.connect(volume).connect(context.destination);
    playing.onended = () => {
      playing = null;
      $('play').textContent = 'Play';
    };
    playing.start();
    $('play').textContent = 'Stop';
    state.played = buffer.duration;
  }

  function drawWave() {
    const canvas = $('wave'), context = canvas.getContext('2d'), scale = devicePixelRatio || 1;
    const width = canvas.width = canvas.clientWidth * scale, height = canvas.height = canvas.clientHeight * scale;
    const style = getComputedStyle(document.body);
    context.fillStyle = style.getPropertyValue(samples ? '--normalized' : '--line');
    for (let x = 0; x < width; x++) {
      let [least, most] = [0, 0];
      if (samples) {
        const end = Math.ceil((x + 1) / width * samples.length);
        for (let i = Math.floor(x / width * samples.length); i < end; i++) {
          least = Math.min(least, samples[i]);
          most = Math.max(most, samples[i]);
        }
      }
      context.fillRect(x, height / 2 * (1 - most), 1, Math.max(scale, height / 2 * (most - least)));
    }
  }

  /** Files of the visitor's: a model, and beside it maybe one with frames, told by the tensor `input` that it has. */
  async function open(files) {
    try {
      const all = await Promise.all([...files].map(async file => {
        const bytes = new Uint8Array(await file.arrayBuffer()), length = new DataView(bytes.buffer).getUint32(0, true);
        const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
        return { bytes, name: file.name, frames: 'input' in header };
      }));
      const model = all.find(file => !file.frames), frames = all.find(file => file.frames);
      if (!model) throw new Error('there is no model among these files, only frames');
      take(model.bytes, frames?.bytes, frames?.name ?? 'a second of noise');
    } catch (error) {
      fail(new Error(`${[...files].map(file => file.name).join(', ')}: ${error.message}`));
    }
  }

  const drop = $('drop');
  drop.ondragover = e => { e.preventDefault(); drop.classList.add('over'); };
  drop.ondragleave = () => drop.classList.remove('over');
  drop.ondrop = e => { e.preventDefault(); drop.classList.remove('over'); open(e.dataTransfer.files); };
  // A file that misses the frame is not opened in place of the page.
  addEventListener('dragover', e => e.preventDefault());
  addEventListener('drop', e => e.preventDefault());
  $('files').onchange = e => { if (e.target.files.length) open(e.target.files); };
  $('make').onclick = make;
  $('play').onclick = () => play().catch(fail);

  return {
    warmUps: [],
    begin: async () => {
      const [model, frames] = await Promise.all(['hifigan_small', 'hifigan_small.io'].map(n => bytesOf(`${n}.safetensors`)));
      take(model, frames, 'of the repository\'s tests');
    },
  };
}
