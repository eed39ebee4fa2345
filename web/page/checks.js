// What goes wrong on purpose, PyTorch's reference cases, and properties.
import { fault, Golden, property, property_names } from './web.js';
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
  /** Runs all cases and properties whose names have `filter` in them, the properties over so many random cases. */
  async function golden(filter = '', count = 25) {
    $('golden').disabled = true;
    const files = new TextDecoder().decode(await bytesOf('golden/list.txt')).trim().split('\n');
    const tests = files.map(name => [name, async () => new Golden(name, await bytesOf(`golden/${name}.safetensors`)).run(device)]);
    property_names().forEach((name, number) => tests.push([`property: ${name}`, () => property(device, number, count)]));
    const chosen = tests.filter(([name]) => name.includes(filter));
    const rows = $('golden-rows'), result = { passed: 0, failed: 0 };
    rows.replaceChildren();
    for (const [name, test] of chosen) {
      let told;
      try {
        told = await test();
        result.passed++;
      } catch (error) {
        told = `FAILED: ${error.message}`;
        result.failed++;
      }
      const row = rows.insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = told;
      $('golden-text').textContent = `${result.passed} passed, ${result.failed} failed, of ${chosen.length}`;
      await pause();
    }
    $('golden').disabled = false;
    state.golden = { ...result, rows: [...rows.rows].map(row => [...row.cells].map(cell => cell.textContent).join(': ')) };
  }
  state.runGolden = golden;
  return { warmUps: [], begin: async () => {} };
}
