//! Numbers out of their range: every field of every optimizer with every bad value, and what the error says of it.
use weightnorm::{
    Activation, Adam, AdamState, Axis, DataDependentInit, Eps, Error, Gpu, Gradients, Linear, LinearBackward,
    MeanOnlyBatchNorm, Moments, NormalizeBackward, ParamGroup, Parameter, Recorder, SetMember, Sgd, SgdState,
    WeightNorm,
};

const NEVER: [f64; 5] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39, -1e300];

/// Bad values for a number that may be anything finite, 0 or more, from 0 to below 1, from 0 to 1; and what is
/// expected.
fn finite() -> (Vec<f64>, &'static str) {
    (NEVER.to_vec(), "a finite f32")
}

fn not_negative() -> (Vec<f64>, &'static str) {
    ([&NEVER[..], &[-1e-9, -1.0]].concat(), "a finite f32, 0 or more")
}

fn below_one() -> (Vec<f64>, &'static str) {
    ([&NEVER[..], &[-1e-9, 1.0, 1.5]].concat(), "a number from 0 to below 1")
}

fn part() -> (Vec<f64>, &'static str) {
    ([&NEVER[..], &[-1e-9, 1.0 + 1e-6, 2.0]].concat(), "a number from 0 to 1")
}

type Field<T> = (&'static str, fn(&mut T) -> &mut f64, (Vec<f64>, &'static str));

fn bad<T: Copy>(good: T, fields: &[Field<T>]) -> Vec<(T, String)> {
    let mut all = vec![];
    for (name, field, (values, expected)) in fields {
        for &value in values {
            let mut changed = good;
            *field(&mut changed) = value;
            all.push((changed, format!("{name} is {value:?}, expected {expected}")));
        }
    }
    all
}

pub fn bad_sgds() -> Vec<(Sgd, String)> {
    let fields: [Field<Sgd>; 6] = [
        ("the learning rate of g", |s| &mut s.g.learning_rate, not_negative()),
        ("the weight decay of g", |s| &mut s.g.weight_decay, not_negative()),
        ("the learning rate of v", |s| &mut s.v.learning_rate, not_negative()),
        ("the weight decay of v", |s| &mut s.v.weight_decay, not_negative()),
        ("the momentum", |s| &mut s.momentum, not_negative()),
        ("the dampening", |s| &mut s.dampening, finite()),
    ];
    [false, true].iter().flat_map(|&nesterov| bad(Sgd { nesterov, ..Sgd::new(0.1) }, &fields)).collect()
}

pub fn bad_adams() -> Vec<(Adam, String)> {
    let fields: [Field<Adam>; 7] = [
        ("the learning rate of g", |a| &mut a.g.learning_rate, not_negative()),
        ("the weight decay of g", |a| &mut a.g.weight_decay, not_negative()),
        ("the learning rate of v", |a| &mut a.v.learning_rate, not_negative()),
        ("the weight decay of v", |a| &mut a.v.weight_decay, not_negative()),
        ("beta1", |a| &mut a.beta1, below_one()),
        ("beta2", |a| &mut a.beta2, below_one()),
        ("eps", |a| &mut a.eps, not_negative()),
    ];
    let mut all: Vec<_> = [Adam::new(0.1), Adam::adamw(0.1, 0.1)].iter().flat_map(|&adam| bad(adam, &fields)).collect();
    // Finite numbers, of which a step makes an infinite one.
    let large = ParamGroup { learning_rate: 3e38, weight_decay: 0.0 };
    let decaying = ParamGroup { learning_rate: 1e30, weight_decay: 1e30 };
    let (adam, adamw) = (Adam::new(0.1), Adam { beta1: 0.0, ..Adam::adamw(0.1, 0.0) });
    let [corrected, decayed] = [3e38 / (1.0 - 0.9), 1e30 * 1e30].map(|a| format!("{a:?}, expected a finite f32"));
    all.extend([
        (Adam { g: large, ..adam }, format!("the learning rate of g / (1 - beta1^t) is {corrected}")),
        (Adam { v: large, ..adam }, format!("the learning rate of v / (1 - beta1^t) is {corrected}")),
        (Adam { g: decaying, ..adamw }, format!("the learning rate of g * its weight decay is {decayed}")),
        (Adam { v: decaying, ..adamw }, format!("the learning rate of v * its weight decay is {decayed}")),
    ]);
    all
}

/// Bad parts of a new batch in a running mean. (The GPU's is an f32.)
pub fn bad_momenta() -> Vec<f64> {
    part().0
}

/// Bad slopes of leaky ReLU.
pub const BAD_SLOPES: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// Records an operator with each bad number: the error says which, nothing is recorded, and no tensor changes.
pub fn are_refused(gpu: &Gpu) -> Result<(), String> {
    let tensor = |shape: &[usize]| gpu.upload(&vec![7f32; shape.iter().product()], shape).expect("a small tensor");
    let [v, dv, w, x, t, y] = [[4, 5], [4, 5], [4, 5], [3, 5], [3, 5], [3, 4]].map(|shape| tensor(&shape));
    let [g, dg, bias, mean] = [4, 4, 4, 5].map(|n| tensor(&[n]));
    let moments = |shape: &[usize]| Moments { first: tensor(shape), second: tensor(shape) };
    let (sgd_state, adam_state) = (
        SgdState { v: Some(tensor(&[4, 5])), g: Some(tensor(&[4])) },
        AdamState { v: moments(&[4, 5]), g: Some(moments(&[4])) },
    );
    let (weight, normalized) = (Parameter::new(&v, &dv).gain(&g, &dg), WeightNorm::new(&v, &g));
    let alone = Parameter::new(&v, &dv);

    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    let mut failures = vec![];
    let mut refused = |text: String, record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| {
        let result = record(&mut ops);
        if !result.as_ref().is_err_and(|e| e.to_string() == text) || ops.dispatch_count() != 0 {
            failures.push(format!("{result:?} after {} dispatches, expected {text:?}", ops.dispatch_count()));
        }
    };
    for (sgd, text) in bad_sgds() {
        let text = format!("sgd_step: {text}");
        refused(text.clone(), &|o| o.sgd_step(weight, &sgd_state, 1, &sgd));
        refused(text.clone(), &|o| o.sgd_step(alone, &sgd_state, 2, &sgd));
        refused(text, &|o| o.sgd_step(weight.normalize_direction(Axis::Kept(0), Eps::None), &sgd_state, 1, &sgd));
    }
    for (adam, text) in bad_adams() {
        let text = format!("adam_step: {text}");
        refused(text.clone(), &|o| o.adam_step(weight, &adam_state, 1, &adam));
        refused(text, &|o| o.adam_step(alone.normalize_direction(Axis::Whole, Eps::None), &adam_state, 1, &adam));
    }
    refused("sgd_step: steps count from 1".into(), &|o| o.sgd_step(weight, &sgd_state, 0, &Sgd::new(0.1)));
    refused("adam_step: steps count from 1".into(), &|o| o.adam_step(weight, &adam_state, 0, &Adam::new(0.1)));
    for slope in BAD_SLOPES {
        let leaky = Activation::LeakyRelu(slope);
        let text = format!("linear: the slope of leaky ReLU is {slope:?}, expected a finite f32");
        refused(text.clone(), &|o| o.linear(Linear::new(&x, normalized).bias(&bias).activation(leaky), &y));
        refused(text, &|o| o.linear(Linear::new(&x, &w).activation(leaky), &y));
    }
    for momentum in bad_momenta() {
        let momentum = momentum as f32;
        let text =
            format!("mean_only_batch_norm: the momentum is {:?}, expected a number from 0 to 1", f64::from(momentum));
        refused(text, &|o| o.mean_only_batch_norm(MeanOnlyBatchNorm::new(&x).running_mean(&mean, momentum), &t));
    }
    for e in [0.0, -1e-6, 1e-40, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        for eps in [Eps::InsideSqrt(e), Eps::Clamp(e), Eps::After(e)] {
            let text = format!("eps is {e:e}, expected a positive normal number of at most 2^126");
            let projected = weight.normalize_direction(Axis::Kept(0), eps);
            refused(text.clone(), &|o| o.sgd_step(projected, &sgd_state, 1, &Sgd::new(0.1)));
            refused(text.clone(), &|o| o.adam_step(projected, &adam_state, 1, &Adam::new(0.1)));
            refused(text.clone(), &|o| o.data_dependent_init(DataDependentInit::new(&x, &v).eps(eps), &g, &bias));
            let gradients = Gradients::default().dv(&w);
            refused(text.clone(), &|o| o.linear_backward(LinearBackward::new(&x, normalized.eps(eps), &y), &gradients));
            refused(text.clone(), &|o| {
                o.normalize_backward(NormalizeBackward::new(&dv, normalized.eps(eps)), &Gradients::default().dv(&w))
            });
            let member = gpu.weight_set(&[SetMember::new(normalized.eps(eps)).w(&w)]);
            let text = format!("member 0 of the set: {text}");
            if !member.as_ref().is_err_and(|e| e.to_string() == text) {
                return Err(format!("{member:?}, expected {text:?}"));
            }
        }
    }
    drop(ops);
    if let Some(first) = failures.first() {
        return Err(format!("{} numbers, the first: {first}", failures.len()));
    }
    gpu.queue().submit([encoder.finish()]);
    for tensor in [&v, &g, &w, &t, &y, &mean, &bias, &adam_state.v.first, sgd_state.g.as_ref().expect("made above")] {
        let words = tensor.read::<f32>().map_err(|e| e.to_string())?;
        if words.iter().any(|&a| a != 7.0) {
            return Err(format!("a tensor was written: {words:?}"));
        }
    }
    Ok(())
}
