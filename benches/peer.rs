//! Puts the crate beside other libraries: answers the line protocol of an orchestrator that times several workers in
//! turn. One JSON object a line on stdin, one answer a line on stdout.
//!
//! ```text
//! {"cmd":"info"}                                                         {"info":{..}}
//! {"cmd":"setup","case":{"op":"norm","m":0,"k":1024,"n":1024},
//!  "variant":"","out":"FILE","target_ms":60}                             {"handle":0,"iters":12,"secs":0.1}
//! {"cmd":"time","handle":0}                                              {"handle":0,"iters":12,"secs":0.005}
//! {"cmd":"clear"}                                                        {}
//! ```
//!
//! `conv1d_fwd` and `conv_transposed1d_fwd` have m positions of x, k channels in and n out, and besides `taps`, `stride`,
//! `dilation`, `padding` and `groups`; the batch is 1.
//!
//! `setup` runs the case once and writes its outputs to FILE as raw f32, one after the other. `secs` is that first
//! run's time with everything that comes before it; of `time` it is that of one of the `iters` iterations. What cannot
//! be done is answered by `{"error":".."}`.
use std::io::{BufRead, Write as _};
use std::time::Instant;

use serde_json::{Value, json};
use weightnorm::{
    Conv, ConvGeometry, DType, Element, Eps, Error, Gpu, Gradients, Linear, LinearBackward, NormalizeBackward,
    Recorder, Tensor, WeightNorm,
};

type Failure = Box<dyn std::error::Error>;

/// Iterations in one command buffer.
const ITERATIONS_PER_SUBMISSION: usize = 16;

fn main() -> Result<(), Failure> {
    let gpu = Gpu::new()?;
    let mut prepared = vec![];
    for line in std::io::stdin().lock().lines() {
        let answer = line.map_err(Failure::from).and_then(|line| answer(&gpu, &mut prepared, &line));
        let answer = answer.unwrap_or_else(|e| json!({ "error": e.to_string() }));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(gpu: &Gpu, prepared: &mut Vec<(Prepared, usize)>, line: &str) -> Result<Value, Failure> {
    let request: Value = serde_json::from_str(line)?;
    match request["cmd"].as_str() {
        Some("info") => {
            let info = gpu.report().info;
            Ok(json!({ "info": {
                "library": concat!("weightnorm ", env!("CARGO_PKG_VERSION")),
                "adapter": info.name,
                "backend": format!("{:?}", info.backend),
                "driver": format!("{} {}", info.driver, info.driver_info),
            }}))
        }
        Some("clear") => {
            prepared.clear();
            Ok(json!({}))
        }
        Some("setup") => {
            let start = Instant::now();
            let case = Case::parse(&request)?;
            let case = Prepared::new(gpu, &case)?;
            case.run(gpu, 1)?;
            let first = start.elapsed().as_secs_f64();
            let mut bytes = vec![];
            for output in &case.outputs {
                bytes.extend_from_slice(bytemuck::cast_slice::<f32, u8>(&output.read()?));
            }
            std::fs::write(request["out"].as_str().ok_or("no file to write to")?, bytes)?;
            let iters = case.iterations(gpu, request["target_ms"].as_f64().ok_or("no target_ms")? * 1e-3)?;
            prepared.push((case, iters));
            Ok(json!({ "handle": prepared.len() - 1, "iters": iters, "secs": first }))
        }
        Some("time") => {
            let handle = request["handle"].as_u64().ok_or("no handle")? as usize;
            let (case, iters) = prepared.get(handle).ok_or("no such handle")?;
            let secs = case.run(gpu, *iters)? / *iters as f64;
            Ok(json!({ "handle": handle, "iters": iters, "secs": secs }))
        }
        _ => Err("no such command".into()),
    }
}

#[derive(Clone)]
struct Case {
    op: String,
    variant: String,
    m: usize,
    k: usize,
    n: usize,
    /// Of a convolution.
    taps: usize,
    geometry: ConvGeometry,
}

impl Case {
    fn parse(request: &Value) -> Result<Case, Failure> {
        let case = &request["case"];
        let size = |name: &str| case[name].as_u64().map(|s| s as usize).ok_or(format!("the case lacks {name}"));
        let op = case["op"].as_str().ok_or("the case lacks op")?.to_owned();
        let variant = request["variant"].as_str().unwrap_or_default().to_owned();
        let (mut taps, mut geometry) = (1, ConvGeometry::default());
        if op.starts_with("conv") {
            taps = size("taps")?;
            geometry = geometry.stride(size("stride")?).dilation(size("dilation")?).padding(size("padding")?);
            geometry = geometry.groups(size("groups")?);
        }
        Ok(Case { op, variant, m: size("m")?, k: size("k")?, n: size("n")?, taps, geometry })
    }
}

/// Xorshift with the shifts 13, 7, 17: the upper 24 bits as numbers from -1 to 1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

type Record = Box<dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>>;

/// A case on the device: how one iteration is recorded, and where its results are.
struct Prepared {
    record: Record,
    outputs: Vec<Tensor>,
}

impl Prepared {
    /// `linear_bwd` keeps nothing of a forward pass: the gradient of g comes from x·v (variant `u`) or from dw (variant
    /// `dw`), a product over the batch or some passes over the weight. Without a variant it is what a trial finds
    /// faster.
    fn new(gpu: &Gpu, case: &Case) -> Result<Prepared, Failure> {
        if case.op != "linear_bwd" || !case.variant.is_empty() {
            return Prepared::of_variant(gpu, case);
        }
        let trial = |variant: &str| -> Result<(f64, Prepared), Failure> {
            let case = Case { variant: variant.to_owned(), ..case.clone() };
            let prepared = Prepared::of_variant(gpu, &case)?;
            prepared.run(gpu, 1)?;
            Ok((prepared.run(gpu, 4)?, prepared))
        };
        let ((u, by_u), (dw, by_dw)) = (trial("u")?, trial("dw")?);
        Ok(if u <= dw { by_u } else { by_dw })
    }

    fn of_variant(gpu: &Gpu, case: &Case) -> Result<Prepared, Failure> {
        let &Case { m, k, n, .. } = case;
        let input = |seed, shape: &[usize]| gpu.upload(&numbers(seed, shape.iter().product()), shape);
        let output = |shape: &[usize]| gpu.zeros(shape, f32::DTYPE);
        let gain = |count| numbers(3, count).iter().map(|g| g + 1.5).collect::<Vec<f32>>();
        if !["", "u", "dw"].contains(&case.variant.as_str()) {
            return Err("not offered".into());
        }
        if let "conv1d_fwd" | "conv_transposed1d_fwd" = case.op.as_str() {
            let transposed = case.op == "conv_transposed1d_fwd";
            let (first, second) = if transposed { (k, n) } else { (n, k) };
            let v_shape = [first, second / case.geometry.groups.max(1), case.taps];
            let y_shape = if transposed { ConvGeometry::conv_transposed_shape } else { ConvGeometry::conv_shape };
            let y = output(&y_shape(&case.geometry, &[1, k, m], &v_shape)?)?;
            let (x, v, bias) = (input(1, &[1, k, m])?, input(2, &v_shape)?, input(4, &[n])?);
            let (g, geometry, outputs) = (gpu.upload(&gain(first), &[first])?, case.geometry, vec![y.clone()]);
            let record = move |ops: &mut Recorder<'_, '_>| {
                let conv = Conv::new(&x, WeightNorm::new(&v, &g)).bias(&bias).geometry(geometry);
                if transposed { ops.conv_transposed(conv, &y) } else { ops.conv(conv, &y) }
            };
            return Ok(Prepared { record: Box::new(record), outputs });
        }
        let v = input(2, &[n, k])?;
        let g = gpu.upload(&gain(n), &[n])?;
        match case.op.as_str() {
            "norm" => {
                let norms = output(&[n])?;
                let outputs = vec![norms.clone()];
                let record = move |ops: &mut Recorder<'_, '_>| ops.row_norms(WeightNorm::unit(&v), &norms);
                return Ok(Prepared { record: Box::new(record), outputs });
            }
            "rescale" => {
                let w = output(&[n, k])?;
                let outputs = vec![w.clone()];
                let record = move |ops: &mut Recorder<'_, '_>| ops.normalize(WeightNorm::new(&v, &g), &w);
                return Ok(Prepared { record: Box::new(record), outputs });
            }
            "matmul" | "linear_fwd" | "linear_bwd" | "linear_step" => {}
            _ => return Err("not offered".into()),
        }
        let x = input(1, &[m, k])?;
        let bias = input(4, &[n])?;
        let y = output(&[m, n])?;
        if case.op == "matmul" {
            let outputs = vec![y.clone()];
            let record = move |ops: &mut Recorder<'_, '_>| ops.linear(Linear::new(&x, &v), &y);
            return Ok(Prepared { record: Box::new(record), outputs });
        }
        if case.op == "linear_fwd" {
            let outputs = vec![y.clone()];
            let record =
                move |ops: &mut Recorder<'_, '_>| ops.linear(Linear::new(&x, WeightNorm::new(&v, &g)).bias(&bias), &y);
            return Ok(Prepared { record: Box::new(record), outputs });
        }
        let dy = input(5, &[m, n])?;
        let [dx, dv, dg, dbias] = [output(&[m, k])?, output(&[n, k])?, output(&[n])?, output(&[n])?];
        let (norms, u) = (output(&[n])?, output(&[m, n])?);
        let mut outputs = vec![dx.clone(), dv.clone(), dg.clone(), dbias.clone()];
        let step = case.op == "linear_step";
        if step {
            outputs.insert(0, y.clone());
        }
        if step || case.variant == "u" {
            let record = move |ops: &mut Recorder<'_, '_>| {
                let weight = WeightNorm::new(&v, &g);
                ops.linear(Linear::new(&x, weight).bias(step.then_some(&bias)).norms(&norms).u(&u), &y)?;
                let wanted = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
                ops.linear_backward(LinearBackward::new(&x, weight.norms(&norms), &dy).u(&u), &wanted)
            };
            return Ok(Prepared { record: Box::new(record), outputs });
        }
        let dw = gpu.zeros(&[n, k], DType::F32)?;
        let record = move |ops: &mut Recorder<'_, '_>| {
            ops.row_norms(WeightNorm::unit(&v), &norms)?;
            let weight = WeightNorm::new(&v, &g).norms(&norms);
            ops.linear_backward(LinearBackward::new(&x, &v, &dy), &Gradients::default().dv(&dw).dbias(&dbias))?;
            ops.normalize_backward(NormalizeBackward::new(&dw, weight), &Gradients::default().dv(&dv).dg(&dg))?;
            ops.linear_backward(LinearBackward::new(&x, weight, &dy), &Gradients::default().dx(&dx))
        };
        Ok(Prepared { record: Box::new(record), outputs })
    }

    /// Seconds of `count` iterations, with the recording and until the last is done.
    fn run(&self, gpu: &Gpu, count: usize) -> Result<f64, Failure> {
        let start = Instant::now();
        let mut left = count;
        while left > 0 {
            let now = left.min(ITERATIONS_PER_SUBMISSION);
            let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut ops = gpu.record(&mut encoder);
            (0..now).try_for_each(|_| (self.record)(&mut ops))?;
            drop(ops);
            gpu.queue().submit([encoder.finish()]);
            left -= now;
        }
        gpu.device().poll(wgpu::PollType::wait_indefinitely())?;
        gpu.check()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Iterations that last about so many seconds, estimated twice: a longer run keeps the queue busy.
    fn iterations(&self, gpu: &Gpu, seconds: f64) -> Result<usize, Failure> {
        let estimate = |one: f64| (seconds / one.max(1e-7)).clamp(1.0, 5000.0) as usize;
        let rough = estimate(self.run(gpu, 1)?);
        let probe = rough.div_ceil(4);
        Ok(estimate(self.run(gpu, probe)? / probe as f64))
    }
}
