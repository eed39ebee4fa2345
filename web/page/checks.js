// What goes wrong on purpose, and PyTorch's reference cases.
import { fault, Golden } from './web.js';
import { bytesOf, fail, pause, state } from './page.js';

const $ = id => document.getElementById(id);

export async function startChecks(device) {
  state.faults = {};
  for (const button of document.querySelectorAll('button[data-fault]')) {
    button.onclick = async () => {
      button.disabled = true;
      try {
        const told = await fault(button.dataset.fault);
        state.faults[button.dataset.fault] = told;
        fail(new Error(told));
      } catch (error) {
        fail(new Error(`${button.textContent}: ${error.message}`));
      }
      button.disabled = false;
    };
  }

  $('golden').onclick = () => golden().catch(fail);
  /** Runs all cases whose names have `filter` in them. */
  async function golden(filter = '') {
    $('golden').disabled = true;
    const names = new TextDecoder().decode(await bytesOf('golden/list.txt')).trim().split('\n').filter(n => n.includes(filter));
    const rows = $('golden-rows'), result = { passed: 0, failed: 0 };
    rows.replaceChildren();
    for (const name of names) {
      let told;
      try {
        told = await new Golden(name, await bytesOf(`golden/${name}.safetensors`)).run(device);
        result.passed++;
      } catch (error) {
        told = `FAILED: ${error.message}`;
        result.failed++;
      }
      const row = rows.insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = told;
      $('golden-text').textContent = `${result.passed} passed, ${result.failed} failed, of ${names.length}`;
      await pause();
    }
    $('golden').disabled = false;
    state.golden = { ...result, rows: [...rows.rows].map(row => [...row.cells].map(cell => cell.textContent).join(': ')) };
  }
  state.runGolden = golden;
  return { warmUps: [], begin: async () => {} };
}
