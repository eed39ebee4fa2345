//! PyTorch's cases on the GPU, forward and backward.
use weightnorm::{
    Activation, Axis, Cell, Conv, Cosine, CosineBackward, DType, Dora, DoraBackward, DoraWeight, Gpu, Gradients,
    Linear, LinearBackward, NormalizeBackward, Recurrent, Tensor, Tile, WeightNorm, cpu,
};

use crate::common::recurrent::{Off, tracked};
use crate::common::{self, Golden, Op, compare, dot_bound, norm_bound, weight_bound};
use crate::common::{conv_terms, dg_bound, dv_bound, dx_bound, linear_terms, normalize_terms, sum_bound};
use crate::data::Guarded;
use crate::{Extent, Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    let files = match common::golden_files(&common::golden_dir()) {
        Ok(files) => files,
        Err(error) => return suite.test("golden", Needs::Nothing, move |_| Err(error.into())),
    };
    for path in files {
        let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        match Golden::load(&path) {
            Err(error) => suite.test(&format!("golden::{name}"), Needs::Nothing, move |_| Err(error.into())),
            Ok(case) if case.op == Op::WeightNorm => {
                suite.test(&format!("golden::{name}"), Needs::Nothing, move |gpu| weight_norm(gpu, &case));
            }
            Ok(case) if matches!(case.op, Op::Cosine | Op::Dora) => {
                let check: fn(&Gpu, &Golden) -> Outcome = if case.op == Op::Cosine { cosine } else { dora };
                suite.test(&format!("golden::{name}"), Needs::Nothing, move |gpu| check(gpu, &case));
            }
            Ok(case) => {
                let check: fn(&Gpu, &Golden, Extent) -> Outcome = match case.op {
                    Op::Linear => linear,
                    Op::Conv | Op::ConvTransposed => conv,
                    Op::Recurrent(_) => recurrent,
                    _ => continue,
                };
                // By one tile, and by those that the crate chooses: each takes pipelines of its own.
                let (name, copy) = (format!("golden::{name}"), Golden::load(&path));
                suite.test(&name, Needs::Nothing, move |gpu| check(gpu, &case, Extent::Few));
                suite.test(&format!("{name}_in_full"), Needs::Time, move |gpu| check(gpu, &copy?, Extent::All));
            }
        }
    }
    suite.test("golden_catches_a_wrong_value", Needs::Nothing, catches_a_wrong_value);
}

/// The negative control: one element of each kind of output changed by a hundredth.
fn catches_a_wrong_value(gpu: &Gpu) -> Outcome {
    for (file, names, check) in [
        ("wn_middle_3x5x17", &["norm", "w", "dv", "dg"][..], weight_norm as fn(&Gpu, &Golden) -> Outcome),
        ("linear_33x257x129", &["norm", "y", "dx", "dv", "dg", "db"], |gpu, case| linear(gpu, case, Extent::Few)),
        ("lstm_T7_B5", &["y", "c_n", "dh0", "dv_hh", "dg_ih"], |gpu, case| recurrent(gpu, case, Extent::Few)),
    ] {
        let path = common::own_golden_dir().join(format!("{file}.safetensors"));
        for &name in names {
            let mut case = Golden::load(&path)?;
            let values = &mut case.file.tensors.get_mut(name).ok_or(name)?.data;
            let largest = values.iter().fold(0f64, |most, value| most.max(value.abs()));
            values[3] += 0.01 * largest;
            let message = |error: Failed| error.message().unwrap_or_default().to_string();
            let result = check(gpu, &case).map_err(message);
            if !result.as_ref().is_err_and(|e| e.starts_with(&format!("{name}: 1 of"))) {
                return Err(format!("{file}, {name}: {result:?}").into());
            }
        }
    }
    Ok(())
}

/// A tensor of a file on the GPU, in its own storage type.
fn upload(gpu: &Gpu, tensor: &common::Tensor) -> Result<Tensor, weightnorm::Error> {
    use safetensors::Dtype;
    match tensor.dtype {
        Dtype::F16 => gpu.upload::<half::f16>(&cast(&tensor.bytes), &tensor.shape),
        Dtype::BF16 => gpu.upload::<half::bf16>(&cast(&tensor.bytes), &tensor.shape),
        _ => gpu.upload::<f32>(&cast(&tensor.bytes), &tensor.shape),
    }
}

fn cast<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// The elements as f64.
pub fn read(tensor: &Tensor) -> Result<Vec<f64>, weightnorm::Error> {
    Ok(match tensor.dtype() {
        DType::F32 => cpu::widen(&tensor.read::<f32>()?),
        DType::F16 => cpu::widen(&tensor.read::<half::f16>()?),
        DType::Bf16 => cpu::widen(&tensor.read::<half::bf16>()?),
    })
}

fn named(name: &str, result: Result<f64, String>) -> Result<(), String> {
    result.map(drop).map_err(|e| format!("{name}: {e}"))
}

fn weight_norm(gpu: &Gpu, case: &Golden) -> Outcome {
    let (v, g) = (upload(gpu, case.tensor("v")?)?, upload(gpu, case.tensor("g")?)?);
    let chain = v.len() / g.len().max(1);
    let norms = read(&gpu.row_norms(WeightNorm::unit(&v).axis(case.axis).eps(case.eps))?)?;
    let expected = &case.tensor("norm")?.data;
    let bound = |i: usize| norm_bound(chain, expected[i]) + case.eps_slack(expected[i]);
    named("norm", compare(&norms, expected, Some(DType::F32), bound))?;
    let weight = WeightNorm::new(&v, &g).axis(case.axis).eps(case.eps);
    let dw = case.tensor("dw")?;
    let (v64, g64) = (case.tensor("v")?, case.tensor("g")?);
    let terms = normalize_terms(&dw.data, &v64.data, &v64.shape, Some(&g64.data), case.axis, case.eps);
    let (dv, dg) = gpu.normalize_backward(NormalizeBackward::new(&upload(gpu, dw)?, weight))?;
    let expected = &case.tensor("dg")?.data;
    let bound = |i: usize| dg_bound(chain, chain, terms.1[i], expected[i]);
    named("dg", compare(&read(&dg)?, expected, Some(DType::F32), bound))?;
    let expected = &case.tensor("dv")?.data;
    let bound = |i: usize| dv_bound(chain, chain, terms.0[i], expected[i], case.dtype);
    named("dv", compare(&read(&dv)?, expected, Some(case.dtype), bound))?;

    let w = gpu.normalize(weight)?;
    let expected = &case.tensor("w")?.data;
    let bound = |i: usize| weight_bound(chain, expected[i], case.dtype);
    named("w", compare(&read(&w)?, expected, Some(case.dtype), bound))?;
    gpu.normalize_in_place(weight)?;
    named("w", compare(&read(&v)?, expected, Some(case.dtype), bound))?;
    Ok(())
}

fn linear(gpu: &Gpu, case: &Golden, extent: Extent) -> Outcome {
    let tile = extent.choose(None, Some(Tile::Tile32x32));
    // Few: none at a multiple of four words, so that all are read as most tests have it.
    let offset = extent.choose(0, 4);
    let upload = |gpu: &Gpu, tensor: &common::Tensor| match extent {
        Extent::All => upload(gpu, tensor),
        Extent::Few => {
            let of = upload(gpu, tensor)?;
            Ok(Guarded::holding(gpu, &tensor.data, of.shape(), of.dtype(), offset)?.tensor)
        }
    };
    let (x, v) = (case.tensor("x")?, case.tensor("v")?);
    let g = case.tensor("g")?;
    let bias = case.optional("b").map(|b| upload(gpu, b)).transpose()?;
    let expected = &case.tensor("y")?.data;
    // Σ |x·w|, for the bound.
    let w = cpu::normalize(&v.data, &v.shape, Some(&g.data), case.axis, case.eps)?;
    let magnitudes = |values: &[f64]| values.iter().map(|a| a.abs()).collect::<Vec<_>>();
    let sums = cpu::linear(&magnitudes(&x.data), &x.shape, &magnitudes(&w), &v.shape, None, Activation::None)?;
    let chain = v.shape[1].max(v.data.len() / g.data.len().max(1));
    let bound = |i: usize| dot_bound(chain, sums[i], expected[i], case.dtype);

    let zeros = |shape: &[usize], dtype| {
        let zeros = vec![0.0; shape.iter().product()];
        Ok::<_, weightnorm::Error>(Guarded::holding(gpu, &zeros, shape, dtype, offset)?.tensor)
    };
    let has_u = case.axis != Axis::Kept(1);
    let (x, v, g) = (upload(gpu, x)?, upload(gpu, v)?, upload(gpu, g)?);
    let weight = WeightNorm::new(&v, &g).axis(case.axis).eps(case.eps);
    let (norms, u) = (zeros(g.shape(), DType::F32)?, zeros(case.tensor("y")?.shape.as_slice(), DType::F32)?);
    let u = has_u.then_some(&u);
    let y = gpu.linear(Linear::new(&x, weight).bias(bias.as_ref()).norms(&norms).u(u).tile(tile))?;
    named("y", compare(&read(&y)?, expected, Some(case.dtype), bound))?;
    let expected_norms = &case.tensor("norm")?.data;
    let norm_slack =
        |i: usize| norm_bound(v.len() / g.len().max(1), expected_norms[i]) + case.eps_slack(expected_norms[i]);
    named("norm", compare(&read(&norms)?, expected_norms, Some(DType::F32), norm_slack))?;
    // The same with the norms known, of few cases for the axis alone whose scale is a factor of the sums.
    if extent == Extent::All || (bias.is_some() && case.dtype == DType::F32 && case.axis == Axis::Kept(0)) {
        let y = gpu.linear(Linear::new(&x, weight.norms(&norms)).bias(bias.as_ref()).tile(tile))?;
        named("y", compare(&read(&y)?, expected, Some(case.dtype), bound))?;
    }

    let dy = upload(gpu, case.tensor("dy")?)?;
    let like = |of: &Tensor| zeros(of.shape(), of.dtype());
    let (dx, dv, dg, dbias) = (like(&x)?, like(&v)?, like(&g)?, zeros(&[v.shape()[0]], DType::F32)?);
    let wanted = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let backward = LinearBackward::new(&x, weight.norms(&norms), &dy).u(u).tile(tile);
    gpu.record(&mut encoder).linear_backward(backward, &wanted)?;
    gpu.queue().submit([encoder.finish()]);
    gradients_agree(case, [&dx, &dv, &dg, &dbias])
}

fn cosine(gpu: &Gpu, case: &Golden) -> Outcome {
    let [x, v, g, dy] = ["x", "v", "g", "dy"].map(|name| case.tensor(name));
    let (x, v, g, dy) = (x?, v?, g?, dy?);
    let shape = |t: &common::Tensor| [t.shape[0], t.shape[1]];
    let types = [case.dtype; 3];
    let bounds = common::cosine::cosine_bounds(
        (&x.data, &shape(x)),
        (&v.data, &shape(v)),
        Some(&g.data),
        case.eps,
        &dy.data,
        types,
    );
    let (x, v, g) = (upload(gpu, x)?, upload(gpu, v)?, upload(gpu, g)?);
    let weight = WeightNorm::new(&v, &g).eps(case.eps);
    let (y, saved) = gpu.cosine_saved(Cosine::new(&x, weight).tile(Tile::Tile32x32))?;
    let dy = upload(gpu, dy)?;
    let request = CosineBackward::new(&x, weight, &dy).saved(&saved).tile(Tile::Tile32x32);
    let got = gpu.cosine_backward(request)?;
    let checks = [
        ("y", &y, &bounds.y.1),
        ("dx", &got.dx, &bounds.dx.1),
        ("dv", &got.dv, &bounds.dv.1),
        ("dg", &got.dg, &bounds.dg.1),
    ];
    for (name, tensor, bounds) in checks {
        let expected = &case.tensor(name)?.data;
        named(name, compare(&read(tensor)?, expected, Some(tensor.dtype()), |i| bounds[i]))?;
    }
    Ok(())
}

fn dora(gpu: &Gpu, case: &Golden) -> Outcome {
    let [x, w0, a, b, m, dy] = ["x", "w0", "a", "b", "m", "dy"].map(|name| case.tensor(name));
    let (x, w0, a, b, m, dy) = (x?, w0?, a?, b?, m?, dy?);
    let of = case.dora_weight()?;
    let bounds =
        |through| common::dora::dora_bounds((&x.data, &x.shape), &of, None, &dy.data, through, [case.dtype; 3]);
    let scaling = of.scaling as f32;
    let (x, w0, a, b) = (upload(gpu, x)?, upload(gpu, w0)?, upload(gpu, a)?, upload(gpu, b)?);
    let (m, dy) = (upload(gpu, m)?, upload(gpu, dy)?);
    let weight = DoraWeight::new(&w0, &a, &b, &m, scaling).eps(case.eps);
    let (y, saved) = gpu.dora_saved(Dora::new(&x, weight).tile(Tile::Tile32x32))?;
    let check = |name: &str, tensor: &Tensor, bounds: &[f64]| -> Outcome {
        let expected = &case.tensor(name)?.data;
        Ok(named(name, compare(&read(tensor)?, expected, Some(tensor.dtype()), |i| bounds[i]))?)
    };
    for (through, da, db) in [(false, "da", "db"), (true, "da_full", "db_full")] {
        let bounds = bounds(through);
        check("norm", &saved.norms, &bounds.norms.1)?;
        check("y", &y, &bounds.y.1)?;
        let request = DoraBackward::new(&x, weight, &dy).saved(&saved).through_norms(through);
        let got = gpu.dora_backward(request.tile(Tile::Tile32x32))?;
        check("dx", &got.dx, &bounds.dx.1)?;
        check("dm", &got.dmagnitude, &bounds.dmagnitude.1)?;
        check(da, &got.da, &bounds.da.1)?;
        check(db, &got.db, &bounds.db.1)?;
    }
    Ok(())
}

fn conv(gpu: &Gpu, case: &Golden, extent: Extent) -> Outcome {
    let tile = extent.choose(None, Some(Tile::Tile32x32));
    let transposed = case.op == Op::ConvTransposed;
    let (x, v, g, dy) = (case.tensor("x")?, case.tensor("v")?, case.tensor("g")?, &case.tensor("dy")?.data);
    let bias = case.optional("b");
    let weight = cpu::Weight::Normalized { v: &v.data, g: Some(&g.data), axis: case.axis, eps: case.eps };
    let (sums, _) = conv_terms(transposed, &case.geometry, (&x.data, &x.shape), weight, &v.shape, None, dy);
    let expected = &case.tensor("y")?.data;
    let bound = |i: usize| dot_bound(v.data.len(), sums[i], expected[i], case.dtype);
    let bias = bias.map(|b| upload(gpu, b)).transpose()?;
    let (x, v, g) = (upload(gpu, x)?, upload(gpu, v)?, upload(gpu, g)?);
    let norms = gpu.zeros(g.shape(), DType::F32)?;
    let weight = WeightNorm::new(&v, &g).axis(case.axis).eps(case.eps);
    // In full a second time with the norms that the first one found.
    for (weight, found) in extent.of([(weight, Some(&norms)), (weight.norms(&norms), None)], 2) {
        let request = Conv::new(&x, weight).bias(bias.as_ref()).geometry(case.geometry).norms(found).tile(tile);
        let y = if transposed { gpu.conv_transposed(request)? } else { gpu.conv(request)? };
        named("y", compare(&read(&y)?, expected, Some(case.dtype), bound))?;
    }
    let expected = &case.tensor("norm")?.data;
    let bound = |i: usize| norm_bound(v.len() / g.len().max(1), expected[i]) + case.eps_slack(expected[i]);
    named("norm", compare(&read(&norms)?, expected, Some(DType::F32), bound))?;

    let dy = upload(gpu, case.tensor("dy")?)?;
    let zeros = |of: &Tensor| gpu.zeros(of.shape(), of.dtype());
    let outs = case.tensor("y")?.shape[1];
    let (dx, dv, dg, dbias) = (zeros(&x)?, zeros(&v)?, zeros(&g)?, gpu.zeros(&[outs], DType::F32)?);
    let wanted = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
    let request = Conv::new(&x, weight).geometry(case.geometry).tile(tile);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let mut ops = gpu.record(&mut encoder);
    if transposed {
        ops.conv_transposed_backward(request, &dy, &wanted)?;
    } else {
        ops.conv_backward(request, &dy, &wanted)?;
    }
    drop(ops);
    gpu.queue().submit([encoder.finish()]);
    let (x, v, g, dy) = (case.tensor("x")?, case.tensor("v")?, case.tensor("g")?, case.tensor("dy")?);
    let weight = cpu::Weight::Normalized { v: &v.data, g: Some(&g.data), axis: case.axis, eps: case.eps };
    let (_, terms) = conv_terms(transposed, &case.geometry, (&x.data, &x.shape), weight, &v.shape, None, &dy.data);
    agree(case, [&dx, &dv, &dg, &dbias], &terms, v.data.len() + dy.data.len())
}

fn recurrent(gpu: &Gpu, case: &Golden, extent: Extent) -> Outcome {
    let Op::Recurrent(cell) = case.op else { return Err("no recurrent cells".into()) };
    let tensor = |name: &str| -> Result<Tensor, Failed> { Ok(upload(gpu, case.tensor(name)?)?) };
    let optional = |name: &str| case.optional(name).map(|tensor| upload(gpu, tensor)).transpose();
    let x = tensor("x")?;
    let [v_input, g_input, v_hidden, g_hidden] = ["v_ih", "g_ih", "v_hh", "g_hh"].map(tensor);
    let (v_input, g_input, v_hidden, g_hidden) = (v_input?, g_input?, v_hidden?, g_hidden?);
    let [bias, hidden_bias, h0, c] = ["b_ih", "b_hh", "h0", "c0"].map(optional);
    let (bias, hidden_bias, h0, c) = (bias?, hidden_bias?, h0?, c?);
    let weight = |v, g| WeightNorm::new(v, g).axis(case.axis).eps(case.eps);
    let layer = Recurrent::new(cell, &x, weight(&v_input, &g_input), weight(&v_hidden, &g_hidden))
        .bias(&bias)
        .hidden_bias(&hidden_bias)
        .h0(&h0)
        .tile(extent.choose(None, Some(Tile::Tile32x32)));
    let (y, saved) = gpu.recurrent_saved(layer.c(&c))?;
    let off = tracked(&case.recurrent(cell)?, (&case.tensor("dy")?.data, None), 2f64.powi(-24), Some(DType::F32));
    let near = |name: &str, got: &[f64], off: &[Off]| match case.optional(name) {
        Some(expected) => named(name, compare(got, &expected.data, Some(DType::F32), |i| off[i].e)),
        None => Ok(()),
    };
    let values = read(&y)?;
    let last = values.len() - values.len() / x.shape()[0];
    near("y", &values, &off.y)?;
    near("h_n", &values[last..], &off.y[last..])?;
    c.as_ref().map_or(Ok(()), |c| near("c_n", &read(c)?, &off.c).map_err(Failed::from))?;
    // The way back of one cell takes a dozen pipelines.
    if extent == Extent::Few && cell != Cell::Lstm {
        return Ok(());
    }
    let dy = tensor("dy")?;
    let gradients = gpu.recurrent_backward(layer.c(&c).saved(&saved).output(&y), &dy)?;
    near("dx", &read(&gradients.input.dx)?, &off.dx)?;
    near("dh0", &read(&gradients.hidden.dx)?, &off.dh0)?;
    gradients.dc.map_or(Ok(()), |dc| near("dc0", &read(&dc)?, &off.dc).map_err(Failed::from))?;
    for (of, got, off) in [("ih", gradients.input, off.input), ("hh", gradients.hidden, off.hidden)] {
        near(&format!("dv_{of}"), &read(&got.dv)?, &off.dv)?;
        near(&format!("dg_{of}"), &read(&got.dg.ok_or("no dg")?)?, &off.dg)?;
        near(&format!("db_{of}"), &read(&got.dbias)?, &off.dbias)?;
    }
    Ok(())
}

fn gradients_agree(case: &Golden, [dx, dv, dg, dbias]: [&Tensor; 4]) -> Outcome {
    let (x, v, g, dy) = (case.tensor("x")?, case.tensor("v")?, case.tensor("g")?, case.tensor("dy")?);
    let weight = cpu::Weight::Normalized { v: &v.data, g: Some(&g.data), axis: case.axis, eps: case.eps };
    let terms = linear_terms(&x.data, weight, &v.shape, &dy.data);
    agree(case, [dx, dv, dg, dbias], &terms, x.shape[0] + v.shape[0] + v.shape[1])
}

/// dx, dv, dg and dbias, whose sums have `chain` terms at most.
fn agree(case: &Golden, [dx, dv, dg, dbias]: [&Tensor; 4], terms: &cpu::LinearGradients, chain: usize) -> Outcome {
    let (v, g) = (case.tensor("v")?, case.tensor("g")?);
    let norm_chain = v.data.len() / g.data.len().max(1);
    let dtype = Some(case.dtype);
    let expected = &case.tensor("dx")?.data;
    let bound = |i: usize| dx_bound(norm_chain, chain, terms.dx[i], expected[i], case.dtype);
    named("dx", compare(&read(dx)?, expected, dtype, bound))?;
    let expected = &case.tensor("dv")?.data;
    let bound = |i: usize| dv_bound(norm_chain, chain, terms.dv[i], expected[i], case.dtype);
    named("dv", compare(&read(dv)?, expected, dtype, bound))?;
    let dg_terms = terms.dg.as_ref().ok_or("no dg")?;
    let expected = &case.tensor("dg")?.data;
    let bound = |i: usize| dg_bound(norm_chain, chain, dg_terms[i], expected[i]);
    named("dg", compare(&read(dg)?, expected, Some(DType::F32), bound))?;
    if let Some(expected) = case.optional("db") {
        let bound = |i: usize| sum_bound(chain, terms.dbias[i], expected.data[i], DType::F32);
        named("db", compare(&read(dbias)?, &expected.data, Some(DType::F32), bound))?;
    }
    Ok(())
}
