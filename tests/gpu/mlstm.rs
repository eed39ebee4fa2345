//! Multiplicative LSTMs against the reference.
use weightnorm::{ArgumentError, Axis, Cell, DType, Error, Gpu, Recurrent, RecurrentSaved, Weight, WeightNorm, cpu};

use crate::common::compare;
use crate::common::recurrent::tracked_mlstm;
use crate::data::{all, must_fail, random};
use crate::device::recorded;
use crate::golden::read;
use crate::recurrent::{Case, made};
use crate::{Extent, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("mlstm_equals_cpu", equals_cpu);
    suite.test("mlstm_rejected", Needs::Nothing, rejects);
}

fn equals_cpu(gpu: &Gpu, extent: Extent) -> Outcome {
    let case = Case::new(Cell::Lstm);
    check(gpu, &case, 0.0)?;
    must_fail("a weight off by 0.1", check(gpu, &case, 0.1).map_err(|_| String::new()))?;
    if extent == Extent::Few {
        return Ok(());
    }
    let free = Case { tile: None, ..case.clone() };
    all(
        [
            Case { axis: None, biases: false, ..case.clone() },
            Case { states: false, ..case.clone() },
            Case { batch: 1, units: 64, ..free.clone() },
            Case { batch: 70, units: 40, length: 2, ..free.clone() },
            Case { dtypes: [DType::F16, DType::Bf16, DType::F16], ..case.clone() },
            Case { dtypes: [DType::F32, DType::F16, DType::F32], states: false, ..free },
        ],
        |case| check(gpu, case, 0.0),
    )
}

/// `off`: what a number of Um is off by.
fn check(gpu: &Gpu, case: &Case, off: f64) -> Outcome {
    let (numbers, of) = (case.numbers(), case.upload(gpu)?);
    let [_, v_type, y_type] = case.dtypes;
    let shapes = [[case.units, case.features], [case.units, case.units]];
    let v = [0, 1].map(|i| random(12 + i as u64, shapes[i].iter().product(), v_type));
    let g = [14, 15].map(|seed| random(seed, case.units, DType::F32));
    let [w_m, u_m] = [0, 1].map(|i| made(gpu, &v[i], &shapes[i], v_type));
    let [w_g, u_g] = [0, 1].map(|i| made(gpu, &g[i], &[case.units], DType::F32));
    let (w_m, u_m, w_g, u_g) = (w_m?, u_m?, w_g?, u_g?);
    let weight = |v, g| -> Weight<'_> {
        match case.axis {
            None => Weight::Plain(v),
            Some(_) => WeightNorm::new(v, g).eps(case.eps).into(),
        }
    };
    let (input, hidden) = (weight(&of.v[0], &of.g[0]), weight(&of.v[1], &of.g[1]));
    let layer = Recurrent::mlstm(&of.x, input, hidden, [weight(&w_m, &w_g), weight(&u_m, &u_g)]).tile(case.tile);
    let layer = if case.biases { layer.bias(&of.biases[0]).hidden_bias(&of.biases[1]) } else { layer };
    let layer = if case.states { layer.h0(&of.h0).c(&of.c) } else { layer };
    let y = gpu.zeros(&[case.length, case.batch, case.units], y_type)?;
    let count = recorded(gpu, |ops| ops.recurrent(layer, &y))?;
    // z and Wm·x, the norms of U and Um, two for each step.
    let norms = if case.axis.is_some() { 2 } else { 0 };
    assert_eq!(count, 2 + norms + 2 * case.length as u64);

    let reference = case.reference(&numbers);
    let mut v = v;
    v[1][0] += off;
    let of_m = [0, 1].map(|i| match case.axis {
        None => cpu::Weight::Plain(&v[i]),
        Some(_) => cpu::Weight::Normalized { v: &v[i], g: Some(&g[i]), axis: Axis::Kept(0), eps: case.eps },
    });
    let expected = cpu::mlstm(&reference, of_m)?;
    let [of_y, of_c] = tracked_mlstm(&reference, of_m, 2f64.powi(-24), y_type);
    compare(&read(&y)?, &expected.y, Some(y_type), |i| of_y[i].e).map_err(|e| format!("y: {e}"))?;
    if let Some(c) = expected.c.filter(|_| case.states) {
        compare(&read(&of.c)?, &c, Some(DType::F32), |i| of_c[i].e).map_err(|e| format!("c: {e}"))?;
    }
    Ok(())
}

fn rejects(gpu: &Gpu) -> Outcome {
    let case = Case::new(Cell::Lstm);
    let of = case.upload(gpu)?;
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32);
    let (w_m, u_m, g) = (zeros(&[6, 7])?, zeros(&[6, 6])?, zeros(&[6])?);
    let layer = |of_m| Recurrent::mlstm(&of.x, &of.v[0], &of.v[1], of_m);
    let right = layer([(&w_m).into(), (&u_m).into()]);
    let saved = RecurrentSaved::new(&right, |shape| gpu.zeros(shape, DType::F32))?;
    let last_axis = WeightNorm::new(&u_m, &g).axis(Axis::Kept(1));
    all(
        [
            ("saved", right.saved(&saved)),
            ("shape", layer([(&u_m).into(), (&u_m).into()])),
            ("axis", layer([(&w_m).into(), last_axis.into()])),
        ],
        |(what, layer)| match gpu.recurrent(*layer) {
            Err(Error::Argument(ArgumentError::Shape { .. })) => Ok(()),
            other => Err(format!("{what}: {:?}", other.map(drop)).into()),
        },
    )
}
