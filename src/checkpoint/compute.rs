//! Weights streamed through the GPU in windows.
use std::ops::Range;

use half::{bf16, f16};

use super::file::reserve;
use super::find::At;
use super::inspect::{Sums, widen};
use super::{Checkpoint, Error, FileDType, Finding, Problem, Rules};
use crate::contract::Layout;
use crate::cpu::effective_norm;
use crate::{Axis, DType, Gpu, SetMember, Tensor, WeightNorm};

/// Windows are no larger than that, so that sizes stay far from every limit of the crate.
const MAX_WINDOW: u64 = 1 << 30;
/// Weights that share a submission, since a set of them is checked each beside each.
const MAX_JOBS: usize = 1024;
/// Tensors of a batch lie at multiples of 256 bytes, which every device can bind at and wide loads like.
const ALIGNMENT: usize = 64;

/// A weight to be worked on.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub name: String,
    pub v: At,
    /// `None`: its norms are wanted.
    pub g: Option<At>,
    pub layout: Layout,
    pub dtype: FileDType,
}

/// A part of a tensor that lies together: `outer` times `rows.len()` times `inner` elements from `first` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub first: u64,
    pub outer: usize,
    pub rows: Range<usize>,
    pub inner: usize,
}

impl Window {
    pub fn shape(&self) -> [usize; 3] {
        [self.outer, self.rows.len(), self.inner]
    }

    pub fn len(&self) -> usize {
        self.outer * self.rows.len() * self.inner
    }
}

/// How a tensor is cut: as many slices, rows or elements of one row as fit. An element takes `size` bytes, a row 8 besides.
struct Cut {
    layout: Layout,
    outer: usize,
    rows: usize,
    inner: usize,
}

impl Cut {
    fn new(layout: Layout, size: u64, capacity: u64) -> Cut {
        let Layout { outer, kept, inner } = layout.wide();
        let row = inner * size + 8;
        let fit = |count: u64| count.try_into().unwrap_or(usize::MAX);
        let (outer, rows, inner) =
            if let Some(rest) = capacity.checked_sub(kept * 8).filter(|&r| r >= kept * inner * size) {
                (fit((rest / (kept * inner * size).max(1)).min(outer)), layout.kept, layout.inner)
            } else if row <= capacity {
                (1, fit(capacity / row), layout.inner)
            } else {
                (1, 1, fit((capacity - 8) / size))
            };
        Cut { layout, outer: outer.max(1), rows: rows.max(1), inner: inner.max(1) }
    }

    /// Whether every window holds all of its rows.
    fn whole_rows(&self) -> bool {
        self.inner >= self.layout.inner && self.outer >= self.layout.outer
    }

    /// Rows that stand in the same windows.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        steps(self.layout.kept, self.rows)
    }

    /// All windows of a block.
    fn windows(&self, rows: &Range<usize>) -> impl Iterator<Item = Window> {
        let Layout { outer, kept, inner } = self.layout;
        steps(outer, self.outer).flat_map(move |os| {
            steps(inner, self.inner).map(move |is| Window {
                first: (os.start as u64 * kept as u64 + rows.start as u64) * inner as u64 + is.start as u64,
                outer: os.len(),
                rows: rows.clone(),
                inner: is.len(),
            })
        })
    }
}

/// 0 to `all` in pieces of `step`, the last one maybe shorter.
pub(super) fn steps(all: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..all).step_by(step).map(move |at| at..all.min(at.saturating_add(step)))
}

/// A window with what was read for it.
pub(super) struct Done<'a> {
    pub input: usize,
    pub window: &'a Window,
    /// v in the type it is computed in.
    pub v: &'a [u8],
    pub g: &'a [f32],
    /// Effective norms, where the window does not hold its rows.
    pub norms: Option<&'a [f64]>,
    /// w, or norms in f32.
    pub result: &'a [u8],
}

struct Job {
    input: usize,
    window: Window,
    /// Words of the batch.
    v: usize,
    g: usize,
    result: usize,
    norms: Option<Vec<f64>>,
}

/// Windows of many weights that go to the GPU together.
#[derive(Default)]
struct Batch {
    jobs: Vec<Job>,
    v: Vec<f32>,
    g: Vec<f32>,
    results: usize,
}

pub(super) struct Engine<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    inputs: &'a [Input],
    rules: &'a Rules,
    deliver: &'a mut dyn FnMut(Done<'_>) -> Result<(), Error>,
    capacity: u64,
    batch: Batch,
    zero_rows: Vec<u64>,
    submissions: u64,
}

/// Computes all inputs and hands over the results, window by window. Returns findings and the number of submissions.
pub(super) fn run(
    gpu: &Gpu,
    checkpoint: &Checkpoint,
    inputs: &[Input],
    rules: &Rules,
    deliver: &mut dyn FnMut(Done<'_>) -> Result<(), Error>,
) -> Result<(Vec<Finding>, u64), Error> {
    let capacity = rules.window_bytes().min(gpu.limits().max_buffer_size).min(MAX_WINDOW);
    let zero_rows = vec![0; inputs.len()];
    let batch = Batch::default();
    let mut engine = Engine { gpu, checkpoint, inputs, rules, deliver, capacity, batch, zero_rows, submissions: 0 };
    for input in 0..inputs.len() {
        engine.add(input)?;
    }
    engine.flush()?;
    let counts = engine.zero_rows.iter().zip(inputs).filter(|&(&count, _)| count > 0);
    let zero_row =
        |(&count, input): (&u64, &Input)| Finding { weight: input.name.clone(), problem: Problem::ZeroRows { count } };
    Ok((counts.map(zero_row).collect(), engine.submissions))
}

impl Engine<'_> {
    fn add(&mut self, number: usize) -> Result<(), Error> {
        let input = &self.inputs[number];
        let cut = Cut::new(input.layout, input.dtype.bits() / 8, self.capacity);
        if input.layout.len() == 0 {
            return self.add_empty(number);
        }
        for rows in cut.blocks() {
            let norms = if cut.whole_rows() {
                None
            } else {
                let sums = Sums::read(self.checkpoint, input, &rows, self.rules, &mut |_| ())?;
                self.zero_rows[number] += sums.zero_rows();
                Some(sums.squares.iter().map(|&square| effective_norm(square, self.rules.eps)).collect::<Vec<f64>>())
            };
            if let (Some(norms), None) = (&norms, input.g) {
                let result: Vec<f32> = norms.iter().map(|&norm| norm as f32).collect();
                let (window, result) = (Window { first: 0, outer: 1, rows, inner: 0 }, bytemuck::cast_slice(&result));
                (self.deliver)(Done { input: number, window: &window, v: &[], g: &[], norms: Some(norms), result })?;
                continue;
            }
            for window in cut.windows(&rows) {
                self.add_window(number, window, norms.clone())?;
            }
        }
        Ok(())
    }

    /// Rows without elements have norms too, but no window; and a shape may name more of them than there is memory.
    fn add_empty(&mut self, number: usize) -> Result<(), Error> {
        let input = &self.inputs[number];
        if input.g.is_some() {
            return Ok(());
        }
        let (all, at_once) = (input.layout.kept, (self.capacity / 8) as usize);
        let norms = vec![effective_norm(0.0, self.rules.eps); all.min(at_once)];
        let result: Vec<f32> = norms.iter().map(|&norm| norm as f32).collect();
        for rows in steps(all, at_once) {
            let (norms, result) = (&norms[..rows.len()], bytemuck::cast_slice(&result[..rows.len()]));
            let window = Window { first: 0, outer: 1, rows, inner: 0 };
            (self.deliver)(Done { input: number, window: &window, v: &[], g: &[], norms: Some(norms), result })?;
        }
        Ok(())
    }

    fn add_window(&mut self, number: usize, window: Window, norms: Option<Vec<f64>>) -> Result<(), Error> {
        let input = &self.inputs[number];
        let dtype = computed(input.dtype);
        let v_words = (window.len() * dtype.size() as usize).div_ceil(4).next_multiple_of(ALIGNMENT);
        let g_words = window.rows.len().next_multiple_of(ALIGNMENT);
        let result_words = if input.g.is_some() { v_words } else { g_words };
        let words = self.batch.v.len() + 2 * self.batch.g.len();
        let full = ((words + v_words + 2 * g_words) * 4) as u64 > self.capacity || self.batch.jobs.len() == MAX_JOBS;
        if !self.batch.jobs.is_empty() && full {
            self.flush()?;
        }
        let batch = &mut self.batch;
        let (v, g, result) = (batch.v.len(), batch.g.len(), batch.results);
        let path = &self.checkpoint.shards[input.v.0].path;
        reserve(&mut batch.v, v_words, path)?;
        batch.v.resize(v + v_words, 0.0);
        batch.results += result_words;
        let v_bytes = &mut bytemuck::cast_slice_mut(&mut batch.v[v..])[..window.len() * dtype.size() as usize];
        read_as(self.checkpoint, input.v, window.first, dtype, v_bytes)?;
        if norms.is_none() {
            self.zero_rows[number] += zero_rows(&window, dtype, v_bytes);
        }
        reserve(&mut batch.g, g_words, path)?;
        batch.g.resize(g + g_words, 0.0);
        if let Some(at) = input.g {
            let gain = bytemuck::cast_slice_mut(&mut batch.g[g..g + window.rows.len()]);
            read_as(self.checkpoint, at, window.rows.start as u64, DType::F32, gain)?;
        }
        batch.jobs.push(Job { input: number, window, v, g, result, norms });
        Ok(())
    }

    /// One submission for all that is there.
    fn flush(&mut self) -> Result<(), Error> {
        let batch = std::mem::take(&mut self.batch);
        let Some(first) = batch.jobs.first() else { return Ok(()) };
        let name = &self.inputs[first.input].name;
        let mut results = self.compute(&batch).map_err(|source| Error::Gpu { tensor: name.clone(), source })?;
        self.submissions += 1;
        for job in &batch.jobs {
            let input = &self.inputs[job.input];
            let size = computed(input.dtype).size() as usize;
            let rows = job.window.rows.len();
            let v = &bytemuck::cast_slice(&batch.v[job.v..])[..job.window.len() * size];
            let g = &batch.g[job.g..][..rows];
            let bytes = if input.g.is_some() { job.window.len() * size } else { rows * 4 };
            let result = &mut bytemuck::cast_slice_mut(&mut results[job.result..])[..bytes];
            if let Some(norms) = job.norms.as_ref().filter(|norms| !fit_f32(norms)) {
                rescale(&job.window, computed(input.dtype), v, g, norms, result);
            }
            let norms = job.norms.as_deref();
            (self.deliver)(Done { input: job.input, window: &job.window, v, g, norms, result })?;
        }
        Ok(())
    }

    fn compute(&self, batch: &Batch) -> Result<Vec<f32>, crate::Error> {
        let gpu = self.gpu;
        let upload = |words: &[f32]| gpu.upload(words, &[words.len()]);
        let (v, g) = (upload(&batch.v)?, upload(&batch.g)?);
        let results = gpu.zeros(&[batch.results], DType::F32)?;
        let mut norms = vec![0f32; batch.g.len()];
        for job in &batch.jobs {
            let known = job.norms.iter().flatten();
            norms[job.g..].iter_mut().zip(known).for_each(|(to, &norm)| *to = norm as f32);
        }
        let norms = if batch.jobs.iter().any(|job| job.norms.is_some()) { Some(upload(&norms)?) } else { None };
        let part =
            |of: &Tensor, word: usize, shape: &[usize], dtype| gpu.tensor(of.buffer(), 4 * word as u64, shape, dtype);
        let (axis, eps) = (Axis::Kept(1), self.rules.eps);
        let mut parts = vec![];
        for job in &batch.jobs {
            let input = &self.inputs[job.input];
            let (dtype, shape, rows) = (computed(input.dtype), job.window.shape(), [job.window.rows.len()]);
            let (to_shape, to) = if input.g.is_some() { (&shape[..], dtype) } else { (&rows[..], DType::F32) };
            let known = norms.as_ref().filter(|_| job.norms.is_some());
            parts.push((
                part(&v, job.v, &shape, dtype)?,
                part(&g, job.g, &rows, DType::F32)?,
                part(&results, job.result, to_shape, to)?,
                known.map(|norms| part(norms, job.g, &rows, DType::F32)).transpose()?,
            ));
        }
        // One table for all whose norms are not known: a few dispatches, however many they are.
        let is_fold = batch.jobs.iter().any(|job| self.inputs[job.input].g.is_some());
        let mut members = vec![];
        for (v, g, result, _) in parts.iter().filter(|(.., known)| known.is_none()) {
            members.push(match is_fold {
                true => SetMember::new(WeightNorm::new(v, g).axis(axis).eps(eps)).w(result),
                false => SetMember::new(WeightNorm::unit(v).axis(axis).eps(eps)).norms(result),
            });
        }
        let set = if members.is_empty() { None } else { Some(gpu.weight_set(&members)?) };
        gpu.run(|ops| {
            for (v, g, w, known) in &parts {
                if let Some(norms) = known {
                    ops.normalize_into(WeightNorm::new(v, g).axis(axis).norms(norms), w)?;
                }
            }
            match &set {
                Some(set) if is_fold => ops.normalize_set(set),
                Some(set) => ops.row_norms_set(set),
                None => Ok(()),
            }
        })?;
        results.read()
    }
}

/// The type that a tensor is computed in; only such tensors come this far.
pub(super) fn computed(dtype: FileDType) -> DType {
    dtype.computed().unwrap_or(DType::F32)
}

/// Whether known norms can be handed to the GPU: zero, NaN and infinity too, but no subnormal one and none beyond f32.
fn fit_f32(norms: &[f64]) -> bool {
    let normal = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
    norms.iter().all(|norm| *norm == 0.0 || !norm.is_finite() || normal.contains(norm))
}

/// w = g·(v/n̂) of one window on the CPU.
fn rescale(window: &Window, dtype: DType, v: &[u8], g: &[f32], norms: &[f64], w: &mut [u8]) {
    // Some at a time: in f64 the window would take up to four times its memory.
    let step = (1 << 12) * dtype.size() as usize;
    let (mut numbers, mut i) = (vec![], 0);
    for (v, w) in v.chunks(step).zip(w.chunks_mut(step)) {
        numbers.clear();
        widen(dtype.into(), v, |x| {
            let j = i / window.inner % norms.len();
            numbers.push(f64::from(g[j]) * (x / norms[j]));
            i += 1;
        });
        narrow(&numbers, dtype, w);
    }
}

/// Numbers in a storage type, rounded to the nearest.
pub(super) fn narrow(numbers: &[f64], dtype: DType, bytes: &mut [u8]) {
    match dtype {
        DType::F32 => numbers.iter().zip(bytes.as_chunks_mut().0).for_each(|(&x, b)| *b = (x as f32).to_le_bytes()),
        DType::F16 => {
            numbers.iter().zip(bytes.as_chunks_mut().0).for_each(|(&x, b)| *b = f16::from_f64(x).to_le_bytes());
        }
        DType::Bf16 => {
            numbers.iter().zip(bytes.as_chunks_mut().0).for_each(|(&x, b)| *b = bf16::from_f64(x).to_le_bytes());
        }
    }
}

/// Elements of a tensor from `first` on, in another storage type if its own is not that.
pub(super) fn read_as(
    checkpoint: &Checkpoint,
    at: At,
    first: u64,
    dtype: DType,
    bytes: &mut [u8],
) -> Result<(), Error> {
    let (source, info) = (&checkpoint.shards[at.0], checkpoint.at(at));
    let begin = |element: u64| info.begin + element * (info.dtype.bits() / 8);
    if info.dtype == dtype.into() {
        return source.read(begin(first), bytes);
    }
    const STEP: usize = 1 << 16;
    let (mut stored, mut numbers) = (vec![0; STEP * info.dtype.bits() as usize / 8], Vec::with_capacity(STEP));
    let mut element = first;
    for part in bytes.chunks_mut(STEP * dtype.size() as usize) {
        let count = part.len() / dtype.size() as usize;
        let stored = &mut stored[..count * info.dtype.bits() as usize / 8];
        source.read(begin(element), stored)?;
        numbers.clear();
        widen(info.dtype, stored, |x| numbers.push(x));
        narrow(&numbers, dtype, part);
        element += count as u64;
    }
    Ok(())
}

/// Rows of a window that holds them whole in which there is nothing but zeros.
fn zero_rows(window: &Window, dtype: DType, v: &[u8]) -> u64 {
    let (rows, run) = (window.rows.len(), window.inner * dtype.size() as usize);
    // All bits but the signs.
    let mask: u32 = if dtype == DType::F32 { 0x7fff_ffff } else { 0x7fff_7fff };
    let is_zero = |run: &[u8]| {
        let (words, rest) = run.as_chunks();
        words.iter().all(|&word| u32::from_le_bytes(word) & mask == 0) && matches!(rest, [] | [0, 0 | 0x80])
    };
    if run == 0 {
        return 0;
    }
    let row_is_zero = |j: usize| (0..window.outer).all(|o| is_zero(&v[(o * rows + j) * run..][..run]));
    (0..rows).filter(|&j| row_is_zero(j)).count() as u64
}
