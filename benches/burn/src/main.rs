//! Burn on its wgpu backend, its operators put together as a user would: answers the protocol of `../peer.rs`.
use std::io::{BufRead, Write};
use std::time::Instant;

use burn::tensor::module::{conv_transpose1d, conv1d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use serde_json::{Value, json};

fn main() {
    let device = Device::wgpu(DeviceKind::Cpu);
    let mut prepared = vec![];
    for line in std::io::stdin().lock().lines() {
        let answer = line.map_err(|e| e.to_string()).and_then(|line| answer(&device, &mut prepared, &line));
        println!("{}", answer.unwrap_or_else(|e| json!({ "error": e })));
        std::io::stdout().flush().expect("someone reads");
    }
}

fn answer(device: &Device, prepared: &mut Vec<(Case, usize)>, line: &str) -> Result<Value, String> {
    let request: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    match request["cmd"].as_str() {
        Some("info") => Ok(json!({ "info": { "library": "burn 0.22, fusion and autotune", "device": format!("{device:?}") } })),
        Some("clear") => {
            prepared.clear();
            device.memory_cleanup();
            Ok(json!({}))
        }
        Some("setup") => {
            let start = Instant::now();
            let mut case = Case::new(device, &request["case"])?;
            case.run(1);
            let first = start.elapsed().as_secs_f64();
            let out = case.out.iter().flat_map(|t| t.clone().into_data().to_vec::<f32>().expect("f32"));
            let bytes: Vec<u8> = out.flat_map(f32::to_ne_bytes).collect();
            std::fs::write(request["out"].as_str().ok_or("no file to write to")?, bytes).map_err(|e| e.to_string())?;
            let target = request["target_ms"].as_f64().ok_or("no target_ms")? * 1e-3;
            // Twice: autotune runs in the first calls.
            let rough = (target / case.run(2)).clamp(1.0, 100.0) as usize;
            let iters = (target / case.run(rough.div_ceil(2))).clamp(1.0, 5000.0) as usize;
            prepared.push((case, iters));
            Ok(json!({ "handle": prepared.len() - 1, "iters": iters, "secs": first }))
        }
        Some("time") => {
            let handle = request["handle"].as_u64().ok_or("no handle")? as usize;
            let (case, iters) = prepared.get_mut(handle).ok_or("no such handle")?;
            let iters = *iters;
            Ok(json!({ "handle": handle, "iters": iters, "secs": case.run(iters) }))
        }
        _ => Err("no such command".to_owned()),
    }
}

struct Case {
    device: Device,
    op: String,
    x: Tensor<2>,
    images: Tensor<3>,
    v: Tensor<2>,
    g: Tensor<2>,
    bias: Tensor<2>,
    dy: Tensor<2>,
    geometry: Geometry,
    out: Vec<Tensor<1>>,
}

#[derive(Clone, Copy, Default)]
struct Geometry {
    positions: usize,
    channels: [usize; 2],
    taps: usize,
    stride: usize,
    dilation: usize,
    padding: usize,
    groups: usize,
}

/// As `peer.rs` has them.
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

impl Case {
    fn new(device: &Device, case: &Value) -> Result<Case, String> {
        let op = case["op"].as_str().ok_or("the case lacks op")?.to_owned();
        let size = |name: &str| case[name].as_u64().map(|s| s as usize).ok_or(format!("the case lacks {name}"));
        let [m, k, n] = [size("m")?, size("k")?, size("n")?];
        let conv = op.starts_with("conv");
        let geometry = match conv {
            true => Geometry {
                positions: m,
                channels: [k, n],
                taps: size("taps")?,
                stride: size("stride")?,
                dilation: size("dilation")?,
                padding: size("padding")?,
                groups: size("groups")?,
            },
            false => Geometry::default(),
        };
        let transposed = op == "conv_transposed1d_fwd";
        // Rows of v, and what a row holds.
        let (rows, length) = match (conv, transposed) {
            (false, _) => (n, k),
            (true, false) => (n, k / geometry.groups * geometry.taps),
            (true, true) => (k, n / geometry.groups * geometry.taps),
        };
        let matrix = |seed, [a, b]: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(numbers(seed, a * b), [a, b]), device)
        };
        let gain: Vec<f32> = numbers(3, rows).iter().map(|g| g + 1.5).collect();
        let images = if conv { [1, k, m] } else { [1, 1, 1] };
        let image_data = TensorData::new(numbers(1, images.iter().product()), images);
        match op.as_str() {
            "norm" | "rescale" | "matmul" | "linear_fwd" | "linear_step" | "conv1d_fwd" | "conv_transposed1d_fwd" => {}
            _ => return Err("not offered".to_owned()),
        }
        Ok(Case {
            x: matrix(1, if conv || m == 0 { [1, 1] } else { [m, k] }),
            images: Tensor::from_data(image_data, device),
            v: matrix(2, [rows, length]),
            g: Tensor::from_data(TensorData::new(gain, [rows, 1]), device),
            bias: matrix(4, [1, n]),
            dy: matrix(5, if conv || m == 0 { [1, 1] } else { [m, n] }),
            geometry,
            op,
            device: device.clone(),
            out: vec![],
        })
    }

    fn once(&self) -> Vec<Tensor<1>> {
        let norm = || self.v.clone().square().sum_dim(1).sqrt();
        let w = || self.v.clone() * (self.g.clone() / norm());
        let y = |w: Tensor<2>| self.x.clone().matmul(w.transpose()) + self.bias.clone();
        let flat = |t: Tensor<2>| t.flatten::<1>(0, 1);
        match self.op.as_str() {
            "norm" => vec![flat(norm())],
            "rescale" => vec![flat(w())],
            "matmul" => vec![flat(self.x.clone().matmul(self.v.clone().transpose()))],
            "linear_fwd" => vec![flat(y(w()))],
            "linear_step" => {
                let norm = norm();
                let scale = self.g.clone() / norm.clone();
                let w = self.v.clone() * scale.clone();
                let y = y(w.clone());
                let dx = self.dy.clone().matmul(w);
                let dw = self.dy.clone().transpose().matmul(self.x.clone());
                let dg = (dw.clone() * self.v.clone()).sum_dim(1) / norm.clone();
                let dv = scale * (dw - self.v.clone() * (dg.clone() / norm));
                [y, dx, dv, dg, self.dy.clone().sum_dim(0)].map(flat).to_vec()
            }
            _ => {
                let Geometry { channels: [ins, outs], taps, stride, dilation, padding, groups, .. } = self.geometry;
                let bias = Some(self.bias.clone().flatten::<1>(0, 1));
                let y = if self.op == "conv1d_fwd" {
                    let w = w().reshape([outs, ins / groups, taps]);
                    let options = ConvOptions::new([stride], [padding], [dilation], groups);
                    conv1d(self.images.clone(), w, bias, options)
                } else {
                    let w = w().reshape([ins, outs / groups, taps]);
                    let options = ConvTransposeOptions::new([stride], [padding], [0], [dilation], groups);
                    conv_transpose1d(self.images.clone(), w, bias, options)
                };
                vec![y.flatten::<1>(0, 2)]
            }
        }
    }

    /// Seconds of one of `count` runs.
    fn run(&mut self, count: usize) -> f64 {
        let start = Instant::now();
        for _ in 0..count {
            // The results stay alive until the pending operations are handed over.
            let out = self.once();
            self.device.flush().expect("a device that works");
            self.out = out;
        }
        self.device.sync().expect("a device that works");
        start.elapsed().as_secs_f64() / count as f64
    }
}
