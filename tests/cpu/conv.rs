//! Convolutions on the CPU: by hand, against loops over a padded input, and what relates them to each other.
use proptest::prelude::*;
use weightnorm::{Activation, ArgumentError, Axis, ConvGeometry, Eps, Error, PadMode, cpu};

fn conv(x: &[f64], x_shape: &[usize], w: &[f64], w_shape: &[usize], geometry: ConvGeometry) -> Vec<f64> {
    cpu::conv(x, x_shape, w, w_shape, None, &geometry, &cpu::ConvEnds::default()).unwrap()
}

fn transposed(x: &[f64], x_shape: &[usize], w: &[f64], w_shape: &[usize], geometry: ConvGeometry) -> Vec<f64> {
    cpu::conv_transposed(x, x_shape, w, w_shape, None, &geometry, &cpu::ConvEnds::default()).unwrap()
}

const PLAIN: fn() -> ConvGeometry = ConvGeometry::default;

#[test]
fn conv_by_hand() {
    let x = [1.0, 2.0, 3.0, 4.0];
    let w = [1.0, 10.0, 100.0];
    assert_eq!(conv(&x, &[1, 1, 4], &w, &[1, 1, 3], PLAIN()), [321.0, 432.0]);
    assert_eq!(conv(&x, &[1, 1, 4], &w, &[1, 1, 3], PLAIN().padding((2, 0))), [100.0, 210.0, 321.0, 432.0]);
    assert_eq!(conv(&x, &[1, 1, 4], &w, &[1, 1, 3], PLAIN().padding(1).stride(2)), [210.0, 432.0]);
    assert_eq!(conv(&x, &[1, 1, 4], &w, &[1, 1, 3], PLAIN().padding(2).dilation(2)), [310.0, 420.0, 31.0, 42.0]);
    let of = |mode| conv(&x, &[1, 1, 4], &w, &[1, 1, 3], PLAIN().padding((2, 1)).pad_mode(mode));
    assert_eq!(of(PadMode::Reflect), [123.0, 212.0, 321.0, 432.0, 343.0]);
    assert_eq!(of(PadMode::Replicate), [111.0, 211.0, 321.0, 432.0, 443.0]);
    let y = cpu::conv(
        &x,
        &[1, 1, 4],
        &w,
        &[1, 1, 3],
        Some(&[-400.0]),
        &PLAIN(),
        &cpu::ConvEnds { activation: Activation::Relu, ..Default::default() },
    )
    .unwrap();
    assert_eq!(y, [0.0, 32.0]);
    // Two groups, two outputs of each.
    let x = [1.0, 2.0, 3.0, 4.0];
    assert_eq!(
        conv(&x, &[1, 2, 2], &[1.0, 10.0, 2.0, 20.0], &[4, 1, 1], PLAIN().groups(2)),
        [1.0, 2.0, 10.0, 20.0, 6.0, 8.0, 60.0, 80.0]
    );
    // 2-D: a corner and a shift.
    let x: Vec<f64> = (0..6).map(f64::from).collect();
    assert_eq!(conv(&x, &[1, 1, 2, 3], &[1.0, 10.0], &[1, 1, 2, 1], PLAIN()), [30.0, 41.0, 52.0]);
    let wide = PLAIN().padding([(0, 0), (1, 0)]).stride([1, 3]);
    assert_eq!(conv(&x, &[1, 1, 2, 3], &[1.0, 10.0], &[1, 1, 1, 2], wide), [0.0, 30.0]);
}

/// y = act(scale · (sums of act_in(x) + bias + residual) + onto).
#[test]
fn conv_ends_by_hand() {
    let (x, w) = ([1.0, -2.0, 3.0, 4.0], [1.0, 10.0]);
    let plain = cpu::ConvEnds::default();
    let of = |ends: cpu::ConvEnds| cpu::conv(&x, &[1, 1, 4], &w, &[1, 1, 2], Some(&[0.5]), &PLAIN(), &ends).unwrap();
    assert_eq!(of(plain), [-18.5, 28.5, 43.5]);
    assert_eq!(of(cpu::ConvEnds { input_activation: Activation::LeakyRelu(0.5), ..plain }), [-8.5, 29.5, 43.5]);
    let all = cpu::ConvEnds {
        residual: Some(&[1.0, 2.0, 3.0]),
        scale: 2.0,
        onto: Some(&[5.0, -70.0, 7.0]),
        activation: Activation::Relu,
        ..plain
    };
    assert_eq!(of(all), [0.0, 0.0, 100.0]);
    let snake = |x: f64, alpha: f64| x + (alpha * x).sin() * (alpha * x).sin() / (alpha + 1e-9);
    assert_eq!(of(cpu::ConvEnds { snake: Some(&[-0.3]), ..plain })[1], snake(28.5, -0.3));
    let entered = of(cpu::ConvEnds { input_snake: Some(&[0.7]), ..plain });
    assert_eq!(entered[2], snake(3.0, 0.7) + 10.0 * snake(4.0, 0.7) + 0.5);
    let wrong = cpu::ConvEnds { residual: Some(&[1.0]), ..plain };
    cpu::conv_transposed(&x, &[1, 1, 4], &w, &[1, 1, 2], None, &PLAIN(), &wrong).unwrap_err();
}

/// The gradients through an activation of x are differences of the forward pass.
#[test]
fn conv_gradients_go_through_the_activation_of_x() {
    let (x, w) = ([1.0, -2.0, 0.3, -0.4, 0.9, 2.0], [0.5, -1.5, 2.0, 1.0]);
    for (transposed, activation) in [(false, Activation::Elu), (true, Activation::Gelu), (false, Activation::Silu)] {
        let ends = cpu::ConvEnds { input_activation: activation, ..Default::default() };
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            let conv = if transposed { cpu::conv_transposed } else { cpu::conv };
            conv(x, &[1, 1, 6], w, &[1, 1, 4], None, &PLAIN(), &ends).unwrap().iter().sum()
        };
        let backward = if transposed { cpu::conv_transposed_backward } else { cpu::conv_backward };
        let dy = vec![1.0; if transposed { 9 } else { 3 }];
        let weight = cpu::Weight::Plain(&w);
        let d = backward(&x, &[1, 1, 6], weight, &[1, 1, 4], &dy, &PLAIN(), activation).unwrap();
        let step = 1e-6;
        let shifted = |values: &[f64], i: usize, by: f64| {
            let mut values = values.to_vec();
            values[i] += by;
            values
        };
        for i in 0..6 {
            let difference = loss(&shifted(&x, i, step), &w) - loss(&shifted(&x, i, -step), &w);
            assert!((d.dx[i] - difference / (2.0 * step)).abs() < 1e-8, "{activation:?} dx {i}");
        }
        for i in 0..4 {
            let difference = loss(&x, &shifted(&w, i, step)) - loss(&x, &shifted(&w, i, -step));
            assert!((d.dv[i] - difference / (2.0 * step)).abs() < 1e-8, "{activation:?} dv {i}");
        }
    }
}

#[test]
fn conv_transposed_by_hand() {
    let (x, w) = ([1.0, 2.0], [1.0, 10.0, 100.0]);
    assert_eq!(transposed(&x, &[1, 1, 2], &w, &[1, 1, 3], PLAIN()), [1.0, 12.0, 120.0, 200.0]);
    assert_eq!(transposed(&x, &[1, 1, 2], &w, &[1, 1, 3], PLAIN().stride(2)), [1.0, 10.0, 102.0, 20.0, 200.0]);
    let cut = PLAIN().stride(2).padding((1, 2)).output_padding(1);
    assert_eq!(transposed(&x, &[1, 1, 2], &w, &[1, 1, 3], cut), [10.0, 102.0, 20.0]);
    let apart = PLAIN().stride(3).dilation(2);
    assert_eq!(transposed(&x, &[1, 1, 2], &w, &[1, 1, 3], apart), [1.0, 0.0, 10.0, 2.0, 100.0, 20.0, 0.0, 200.0]);
    // Axis 0 of w is in: two inputs, one output.
    assert_eq!(transposed(&x, &[1, 2, 1], &[1.0, 10.0, 3.0, 30.0], &[2, 1, 2], PLAIN()), [7.0, 70.0]);
    let y = cpu::conv_transposed(&x, &[1, 1, 2], &w, &[1, 1, 3], Some(&[0.5]), &PLAIN(), &cpu::ConvEnds::default())
        .unwrap();
    assert_eq!(y, [1.5, 12.5, 120.5, 200.5]);
}

/// A convolution of any kind, with small integers, whose sums are exact.
#[derive(Debug, Clone)]
struct Case {
    geometry: ConvGeometry,
    x_shape: Vec<usize>,
    w_shape: Vec<usize>,
    seed: u64,
}

impl Case {
    fn integers(&self, salt: u64, count: usize) -> Vec<f64> {
        let mut state = (self.seed ^ (salt << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f64 % 9.0 - 4.0
        };
        (0..count).map(next).collect()
    }

    fn x(&self) -> Vec<f64> {
        self.integers(1, self.x_shape.iter().product())
    }

    fn w(&self) -> Vec<f64> {
        self.integers(2, self.w_shape.iter().product())
    }
}

fn cases(two: bool) -> impl Strategy<Value = Case> {
    let axis = || (1usize..5, 1usize..4, 1usize..4, 0usize..4, 0usize..4, 0usize..9);
    (axis(), axis(), (1usize..4, 1usize..4, 1usize..4, 0usize..3), 0usize..3, any::<u64>()).prop_map(
        move |(y, x, (groups, outs, ins, batch), mode, seed)| {
            let mode = [PadMode::Zero, PadMode::Reflect, PadMode::Replicate][mode];
            let geometry = PLAIN().groups(groups).pad_mode(mode);
            // As many positions as the padding and the kernel need at least.
            let size = |(k, _, d, l, r, more): (usize, usize, usize, usize, usize, usize)| {
                (d * (k - 1) + 1).saturating_sub(l + r).max(l.max(r) + 1) + more
            };
            let geometry = if two {
                let geometry = geometry.stride([y.1, x.1]).dilation([y.2, x.2]);
                geometry.padding([(y.3, y.4), (x.3, x.4)])
            } else {
                geometry.stride(x.1).dilation(x.2).padding((x.3, x.4))
            };
            let (sizes, kernel) = ([size(y), size(x)], [y.0, x.0]);
            let from = usize::from(!two);
            Case {
                geometry,
                x_shape: [&[batch, groups * ins], &sizes[from..]].concat(),
                w_shape: [&[groups * outs, ins], &kernel[from..]].concat(),
                seed,
            }
        },
    )
}

/// The input with its padding written out, along one axis of `inner` elements each.
fn padded(x: &[f64], size: usize, inner: usize, (before, after): (usize, usize), mode: PadMode) -> Vec<f64> {
    let row = |outer: usize, t: isize| -> Vec<f64> {
        let last = size as isize - 1;
        let t = match mode {
            PadMode::Zero if t < 0 || t > last => return vec![0.0; inner],
            PadMode::Reflect if t < 0 => -t,
            PadMode::Reflect if t > last => last - (t - last),
            _ => t.clamp(0, last),
        };
        x[(outer * size + t as usize) * inner..][..inner].to_vec()
    };
    let range = -(before as isize)..(size + after) as isize;
    (0..x.len() / (size * inner)).flat_map(|outer| range.clone().flat_map(move |t| row(outer, t))).collect()
}

/// By explicit padding and plain loops in 1-D.
fn naive(case: &Case, strides: (usize, usize), sides: (usize, usize)) -> Vec<f64> {
    let (stride, dilation) = strides;
    let &[batch, _, size] = &case.x_shape[..] else { panic!("1-D") };
    let &[outs, ins, k] = &case.w_shape[..] else { panic!("1-D") };
    let (x, w) = (padded(&case.x(), size, 1, sides, case.geometry.pad_mode), case.w());
    let long = size + sides.0 + sides.1;
    let groups = case.geometry.groups;
    let count = (long - dilation * (k - 1) - 1) / stride + 1;
    let mut y = vec![];
    for b in 0..batch {
        for j in 0..outs {
            for u in 0..count {
                let mut sum = 0.0;
                for i in 0..ins {
                    let channel = j / (outs / groups) * ins + i;
                    for tap in 0..k {
                        let at = (b * groups * ins + channel) * long + u * stride + tap * dilation;
                        sum += x[at] * w[(j * ins + i) * k + tap];
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn one<T: Copy>(value: weightnorm::PerAxis<T>) -> T {
    let weightnorm::PerAxis::All(value) = value else { panic!("1-D") };
    value
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn conv_equals_loops_over_a_padded_input(case in cases(false)) {
        let (stride, dilation) = (one(case.geometry.stride), one(case.geometry.dilation));
        let expected = naive(&case, (stride, dilation), one(case.geometry.padding));
        prop_assert_eq!(conv(&case.x(), &case.x_shape, &case.w(), &case.w_shape, case.geometry), expected);
    }

    /// Exactly: Σ c·F(a) = Σ a·D(c) = Σ v·W(c, a), in every padding mode.
    #[test]
    fn conv_gradients_are_its_transposes(case in prop_oneof![cases(false), cases(true)]) {
        let (x, w) = (case.x(), case.w());
        let y = conv(&x, &case.x_shape, &w, &case.w_shape, case.geometry);
        let dy = case.integers(3, y.len());
        let weight = cpu::Weight::Plain(&w);
        let d = cpu::conv_backward(&x, &case.x_shape, weight, &case.w_shape, &dy, &case.geometry, Activation::None).unwrap();
        let all = dot(&y, &dy);
        prop_assert_eq!((dot(&d.dx, &x), dot(&d.dv, &w)), (all, all));
        prop_assert_eq!(d.dbias.iter().sum::<f64>(), dy.iter().sum::<f64>());
    }

    /// A transposed convolution is what takes dy of a convolution to dx, and its own gradients are its transposes.
    #[test]
    fn conv_transposed_is_the_gradient_of_conv(case in prop_oneof![cases(false), cases(true)]) {
        let geometry = case.geometry.pad_mode(PadMode::Zero);
        let y_shape = geometry.conv_shape(&case.x_shape, &case.w_shape).unwrap();
        let (dy, w) = (case.integers(3, y_shape.iter().product()), case.w());
        let weight = cpu::Weight::Plain(&w);
        let d = cpu::conv_backward(&case.x(), &case.x_shape, weight, &case.w_shape, &dy, &geometry, Activation::None).unwrap();
        // What the stride left over at the end comes back by the output padding.
        let short = geometry.conv_transposed_shape(&y_shape, &case.w_shape);
        let rank = case.x_shape.len() - 2;
        let mut more = [0; 2];
        if let Ok(short) = short {
            for axis in 0..rank {
                more[2 - rank + axis] = case.x_shape[2 + axis] - short[2 + axis];
            }
        } else {
            return Ok(()); // nothing would be left without it
        }
        let geometry = if rank == 1 { geometry.output_padding(more[1]) } else { geometry.output_padding(more) };
        prop_assert_eq!(geometry.conv_transposed_shape(&y_shape, &case.w_shape).unwrap(), case.x_shape.clone());
        let y = transposed(&dy, &y_shape, &w, &case.w_shape, geometry);
        prop_assert_eq!(&y, &d.dx);
        let e = case.integers(4, y.len());
        let d = cpu::conv_transposed_backward(&dy, &y_shape, weight, &case.w_shape, &e, &geometry, Activation::None).unwrap();
        let all = dot(&y, &e);
        prop_assert_eq!((dot(&d.dx, &dy), dot(&d.dv, &w)), (all, all));
        prop_assert_eq!(d.dbias.iter().sum::<f64>(), e.iter().sum::<f64>());
    }

    /// Groups are convolutions beside each other.
    #[test]
    fn conv_of_groups_is_a_concatenation(case in cases(false)) {
        let &[batch, channels, size] = &case.x_shape[..] else { panic!("1-D") };
        let groups = case.geometry.groups;
        let (x, w) = (case.x(), case.w());
        let single = case.geometry.groups(1);
        let shape = case.geometry.conv_shape(&case.x_shape, &case.w_shape).unwrap();
        let (per_in, per_out) = (channels / groups, case.w_shape[0] / groups);
        let mut expected = vec![0.0; shape.iter().product()];
        for group in 0..groups {
            let part: Vec<f64> =
                (0..batch).flat_map(|b| x[(b * channels + group * per_in) * size..][..per_in * size].to_vec()).collect();
            let w_part = &w[group * w.len() / groups..][..w.len() / groups];
            let w_shape = [per_out, per_in, case.w_shape[2]];
            let y = conv(&part, &[batch, per_in, size], w_part, &w_shape, single);
            let (long, rows) = (shape[2], per_out * shape[2]);
            for b in 0..batch {
                let to = (b * shape[1] + group * per_out) * long;
                expected[to..][..rows].copy_from_slice(&y[b * rows..][..rows]);
            }
        }
        prop_assert_eq!(conv(&x, &case.x_shape, &w, &case.w_shape, case.geometry), expected);
    }

    #[test]
    fn conv2d_of_height_1_is_conv1d(case in cases(false)) {
        let (stride, dilation) = (one(case.geometry.stride), one(case.geometry.dilation));
        let geometry = case.geometry.stride([1, stride]).dilation([1, dilation]);
        let geometry = geometry.padding([(0, 0), one(case.geometry.padding)]);
        let (x, w) = (&case.x_shape, &case.w_shape);
        let two = conv(&case.x(), &[x[0], x[1], 1, x[2]], &case.w(), &[w[0], w[1], 1, w[2]], geometry);
        prop_assert_eq!(two, conv(&case.x(), x, &case.w(), w, case.geometry));
    }
}

/// With one tap, channels last, it is a linear layer.
#[test]
fn conv_with_one_tap_is_linear() {
    let case = Case { geometry: PLAIN(), x_shape: vec![2, 5, 7], w_shape: vec![3, 5, 1], seed: 7 };
    let (x, w) = (case.x(), case.w());
    let rows: Vec<f64> =
        (0..14).flat_map(|m| (0..5).map(move |i| (m, i))).map(|(m, i)| x[m / 7 * 35 + i * 7 + m % 7]).collect();
    let y = cpu::linear(&rows, &[14, 5], &w, &[3, 5], None, Activation::None).unwrap();
    let expected: Vec<f64> = (0..42).map(|at| y[(at / 21 * 7 + at % 7) * 3 + at / 7 % 3]).collect();
    assert_eq!(conv(&x, &case.x_shape, &w, &case.w_shape, case.geometry), expected);
}

#[test]
fn conv_rejects_what_does_not_fit() {
    let fail = |x_shape: &[usize], w_shape: &[usize], geometry: ConvGeometry| {
        let elements = |shape: &[usize]| vec![0.0; shape.iter().map(|&d| d.min(99)).product::<usize>().min(9999)];
        let (x, w) = (elements(x_shape), elements(w_shape));
        cpu::conv(&x, x_shape, &w, w_shape, None, &geometry, &cpu::ConvEnds::default()).unwrap_err().to_string()
    };
    for (x, w, geometry, text) in [
        (&[1, 4, 9][..], &[6, 4][..], PLAIN(), "weight has shape [6, 4]"),
        (&[1, 5, 9], &[6, 4, 3], PLAIN(), "x has shape [1, 5, 9], expected [B, 4, T]"),
        (&[1, 4, 9], &[6, 4, 3], PLAIN().groups(2), "expected [B, 8, T]"),
        (&[1, 4, 9, 9], &[6, 4, 3], PLAIN(), "expected [B, 4, T]"),
        (&[1, 4, 9], &[6, 4, 3, 3], PLAIN(), "expected [B, 4, H, W]"),
        (&[1, 12, 9], &[6, 3, 3], PLAIN().groups(4), "a first axis that 4 groups divide"),
        (&[1, 4, 9], &[6, 4, 0], PLAIN(), "at least one tap"),
        (&[1, 4, 9], &[6, 4, 3], PLAIN().groups(0), "the number of groups is 0"),
        (&[1, 4, 9], &[6, 4, 3], PLAIN().stride(0), "the stride is 0"),
        (&[1, 4, 9], &[6, 4, 3], PLAIN().dilation(1 << 25), "the dilation is 33554432"),
        (&[1, 4, 9], &[6, 4, 3], PLAIN().stride([1, 1]), "the stride is 2"),
        (&[1, 4, 9], &[6, 4, 3], PLAIN().dilation(5), "11 positions with the padding"),
        (&[1, 4, 3], &[6, 4, 3], PLAIN().padding((0, 3)).pad_mode(PadMode::Reflect), "more than 3 positions"),
        (&[1, 4, 0], &[6, 4, 3], PLAIN().padding(2).pad_mode(PadMode::Replicate), "more than 2 positions"),
        (&[1, 4, 9], &[6, 4, 3], PLAIN().output_padding(1), "the output padding is 1"),
        (&[1, 4, usize::MAX], &[6, 4, 3], PLAIN(), "elements along an axis"),
    ] {
        let error = fail(x, w, geometry);
        assert!(error.starts_with("conv") || error.contains("elements"), "{error}");
        assert!(error.contains(text), "{error}: {text}");
    }
    let transposed = |geometry: ConvGeometry| {
        let (x, w) = ([0.0; 12], [0.0; 24]);
        cpu::conv_transposed(&x, &[1, 4, 3], &w, &[4, 2, 3], None, &geometry, &cpu::ConvEnds::default()).unwrap_err()
    };
    assert!(matches!(transposed(PLAIN().pad_mode(PadMode::Reflect)), Error::Argument(ArgumentError::Variant { .. })));
    assert!(matches!(
        transposed(PLAIN().stride(2).output_padding(2)),
        Error::Argument(ArgumentError::Number { what: "the output padding", .. })
    ));
    assert!(matches!(transposed(PLAIN().padding(3)), Error::Argument(ArgumentError::Shape { arg: "x", .. })));
    let (x, w) = ([0.0; 12], [0.0; 24]);
    let bias =
        cpu::conv(&x, &[1, 4, 3], &w, &[2, 4, 3], Some(&[0.0; 3]), &PLAIN(), &cpu::ConvEnds::default()).unwrap_err();
    assert!(matches!(bias, Error::Argument(ArgumentError::Shape { op: "conv", arg: "bias", .. })), "{bias}");
    let weight = cpu::Weight::Normalized { v: &w, g: None, axis: Axis::Kept(3), eps: Eps::None };
    let error =
        cpu::conv_backward(&x, &[1, 4, 3], weight, &[2, 4, 3], &[0.0; 2], &PLAIN(), Activation::None).unwrap_err();
    assert_eq!(error, ArgumentError::Axis { axis: 3, rank: 3 }.into());
    let error =
        cpu::conv_backward(&x, &[1, 4, 3], cpu::Weight::Plain(&w), &[2, 4, 3], &[0.0; 3], &PLAIN(), Activation::None);
    assert_eq!(error.unwrap_err(), ArgumentError::Length { got: 3, expected: 2, shape: vec![1, 2, 1] }.into());
}
