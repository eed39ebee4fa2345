// Validates WGSL with Tint, the compiler of Chromium's WebGPU, which is stricter than naga: it rejects, for one,
// a barrier in non-uniform control flow. Needs npm's `webgpu` (Dawn for Node) and no driver: Dawn's null backend
// compiles and checks pipelines and runs nothing.
//
// usage: node tint.mjs PACKAGE_ROOT SHADER_DIR      (PACKAGE_ROOT holds node_modules/webgpu)
//
// Every SHADER_DIR/*.wgsl is one complete module; a pipeline is built for each of its entry points, with the default
// overrides, so that override-sized workgroup memory and invocations are held to WebGPU's default limits. Where
// MODULE.json lies beside MODULE.wgsl, it is a list of override sets, each {"NAME": number, ..}, tried as well.
import { readdirSync, readFileSync, existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [packageRoot, shaderDir] = process.argv.slice(2);
const { create } = await import(pathToFileURL(resolve(packageRoot, 'node_modules/webgpu/index.js')));
const gpu = create(['backend=null', 'enable-dawn-features=allow_unsafe_apis']);
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({
    requiredFeatures: ['shader-f16', 'subgroups', 'timestamp-query'].filter(f => adapter.features.has(f)),
});
device.addEventListener?.('uncapturederror', e => { e.preventDefault(); });

const withoutComments = code => code.replace(/\/\*[^]*?\*\//g, '').replace(/\/\/.*/g, '');
const entryPoints = code => [...code.matchAll(/@compute\b[^{};]*?\bfn\s+(\w+)/g)].map(m => m[1]);

/** What Tint and Dawn say against one module: {errors, warnings, pipelines built}. */
async function validate(name, code, overrideSets = []) {
    const errors = [], warnings = [];
    const bare = withoutComments(code);
    // naga 30 rejects this line, Tint demands it. On the first line, so that line numbers stay true.
    if (/\bsubgroup[A-Z]\w*\s*\(|@builtin\(\s*subgroup_/.test(bare) && !/\benable\s[^;]*\bsubgroups\b/.test(bare)) {
        code = 'enable subgroups; ' + code;
    }
    device.pushErrorScope('validation'); // else a bad module's error also goes to stderr
    const module = device.createShaderModule({ label: name, code });
    for (const m of (await module.getCompilationInfo()).messages) {
        const list = m.type === 'error' ? errors : m.type === 'warning' ? warnings : errors.length ? errors : warnings;
        list.push(`${name}.wgsl:${m.lineNum}:${m.linePos}: ${m.type}: ${m.message}`);
    }
    const scope = await device.popErrorScope();
    if (scope && !errors.length) errors.push(`${name}.wgsl: ${scope.message}`);
    let pipelines = 0;
    const names = entryPoints(bare);
    if (!names.length) errors.push(`${name}.wgsl: no @compute entry point found`);
    if (!errors.length) {
        for (const constants of [{}, ...overrideSets]) for (const entryPoint of names) {
            // An entry point takes the overrides that its code reaches; one it lacks is no error in WebGPU.
            try {
                await device.createComputePipelineAsync({ label: name, layout: 'auto', compute: { module, entryPoint, constants } });
                pipelines++;
            } catch (e) {
                errors.push(`${name}.wgsl: ${entryPoint} ${JSON.stringify(constants)}: ${e.message.trim()}`);
            }
        }
    }
    return { errors, warnings, pipelines };
}

let bad = 0;
const complain = text => { bad++; console.error(text); };

// Negative controls: if any of these passes, the checks above cannot fail and say nothing about our shaders.
const body = guard => `
    override N: u32 = 64u;
    var<workgroup> tile: array<f32, N>;
    @group(0) @binding(0) var<storage, read_write> y: array<f32>;
    @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
        tile[i] = y[i];
        ${guard} { workgroupBarrier(); }
        y[i] = tile[63u - i];
    }`;
const controls = [
    ['a uniform barrier', body('if N > 8u'), [], null],
    ['a barrier in non-uniform control flow', body('if i < 32u'), [], /uniform control flow/],
    ['more workgroup memory than any browser grants', body('if N > 8u'), [{ N: 1 << 20 }], /workgroup storage/],
    ['a misspelt builtin', body('if maximum(N, 8u) > 8u'), [], /unresolved/],
];
for (const [what, code, overrides, expected] of controls) {
    const { errors } = await validate('control', code, overrides);
    const right = expected ? errors.some(e => expected.test(e)) : !errors.length;
    if (!right) complain(`negative control: ${what}: ${expected ? `not rejected with ${expected}` : 'rejected'} ${errors.join('\n')}`);
}

const all = readdirSync(shaderDir).filter(f => f.endsWith('.wgsl')).map(f => f.slice(0, -5)).sort();
// An extension of naga alone, of which no browser knows.
const foreign = name => /enable wgpu_cooperative_matrix;/.test(readFileSync(join(shaderDir, `${name}.wgsl`), 'utf8'));
const modules = all.filter(name => !foreign(name));
if (modules.length < all.length) console.log(`tint: left out, since Tint lacks cooperative matrices: ${all.filter(foreign).join(' ')}`);
if (!modules.length) complain(`no .wgsl file in ${shaderDir}`);
let built = 0;
// Kernels with more parameters than a browser grants as immediates take them from a uniform buffer there: that form counts.
const tooMany = /^[^]*Immediate data size \(\d+\) exceeds the maximum allowed size \(64\)[^]*$/;
const inUniform = [];
for (const name of modules) {
    const sets = join(shaderDir, `${name}.json`);
    const overrideSets = existsSync(sets) ? JSON.parse(readFileSync(sets, 'utf8')) : [];
    const { errors, warnings, pipelines } = await validate(name, readFileSync(join(shaderDir, `${name}.wgsl`), 'utf8'), overrideSets);
    warnings.forEach(w => console.log(w));
    if (errors.length && errors.every(e => tooMany.test(e)) && modules.includes(`${name.replace(/\.shared$/, '')}.uniform`)) {
        inUniform.push(name);
        continue;
    }
    errors.forEach(complain);
    if (!errors.length) console.log(`${name}: ${pipelines} pipelines`);
    built += pipelines;
}
if (inUniform.length) console.log(`tint: as uniforms alone, for want of immediates: ${inUniform.join(' ')}`);
console.log(`tint: ${modules.length} modules, ${built} pipelines, ${controls.length} controls, ${bad} errors`);
device.destroy();
process.exit(bad ? 1 : 0); // Dawn's threads would keep node alive
