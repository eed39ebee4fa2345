//! Whatever a caller gets wrong is a typed error, never a panic.
use weightnorm::{Activation, ArgumentError, Axis, Eps, Error, LimitError, cpu};

use crate::ranges;

/// The same check for the operators that take a tensor and an axis.
fn all(v: &[f64], shape: &[usize], axis: Axis, eps: Eps) -> Error {
    let error = cpu::row_norms(v, shape, axis, eps).unwrap_err();
    // By their text: an error that holds a NaN does not equal itself.
    assert_eq!(cpu::normalize(v, shape, None, axis, eps).unwrap_err().to_string(), error.to_string());
    assert_eq!(cpu::decompose(v, shape, axis, eps).unwrap_err().to_string(), error.to_string());
    assert_eq!(cpu::normalize_backward(v, v, shape, None, axis, eps).unwrap_err().to_string(), error.to_string());
    error
}

#[test]
fn row_norms_rejects_a_missing_axis() {
    assert_eq!(
        all(&[1.0; 6], &[2, 3], Axis::Kept(2), Eps::None),
        Error::Argument(ArgumentError::Axis { axis: 2, rank: 2 })
    );
    assert_eq!(all(&[1.0], &[], Axis::Kept(0), Eps::None), Error::Argument(ArgumentError::Axis { axis: 0, rank: 0 }));
    assert_eq!(
        all(&[], &[0], Axis::Kept(usize::MAX), Eps::None),
        Error::Argument(ArgumentError::Axis { axis: usize::MAX, rank: 1 })
    );
}

#[test]
fn row_norms_rejects_a_wrong_length() {
    let expected = Error::Argument(ArgumentError::Length { got: 5, expected: 6, shape: vec![2, 3] });
    assert_eq!(all(&[1.0; 5], &[2, 3], Axis::Kept(0), Eps::None), expected);
    assert_eq!(all(&[1.0; 5], &[2, 3], Axis::Whole, Eps::None), expected);
    assert!(matches!(
        all(&[1.0], &[2, 0], Axis::Kept(0), Eps::None),
        Error::Argument(ArgumentError::Length { got: 1, expected: 0, .. })
    ));
}

#[test]
fn row_norms_rejects_a_bad_eps() {
    for e in [0.0, -1e-6, f32::NAN, f32::INFINITY, 1e-40, 1.8e38] {
        for eps in [Eps::InsideSqrt(e), Eps::Clamp(e), Eps::After(e)] {
            assert!(
                matches!(all(&[1.0], &[1], Axis::Kept(0), eps), Error::Argument(ArgumentError::Eps { .. })),
                "{eps:?}"
            );
        }
    }
}

/// Sizes whose product overflows, also where a size of 0 makes the tensor empty.
#[test]
fn row_norms_rejects_what_is_too_large() {
    for shape in [&[usize::MAX, 2][..], &[1 << 40], &[1 << 40, 0], &[usize::MAX, usize::MAX, 0], &[0, 1 << 16, 1 << 16]]
    {
        for axis in [Axis::Kept(0), Axis::Whole] {
            assert!(
                matches!(all(&[], shape, axis, Eps::None), Error::Limit(LimitError::TensorTooLarge { what: "v", .. })),
                "{shape:?}"
            );
        }
    }
}

#[test]
fn normalize_rejects_a_g_that_does_not_fit() {
    for (axis, g, norms) in [
        (Axis::Kept(0), 3, "[2, 1], or flat [2]"),
        (Axis::Kept(0), 1, "[2, 1], or flat [2]"),
        (Axis::Kept(1), 2, "[1, 3], or flat [3]"),
        (Axis::Whole, 2, "[1, 1], or flat [1]"),
        (Axis::Whole, 0, "[1, 1], or flat [1]"),
    ] {
        let error = cpu::normalize(&[1.0; 6], &[2, 3], Some(&vec![1.0; g]), axis, Eps::None).unwrap_err();
        let expected =
            |op| Error::Argument(ArgumentError::Shape { op, arg: "g", got: vec![g], expected: norms.into() });
        assert_eq!(error, expected("normalize"));
        let (v, g) = ([1.0; 6], vec![1.0; g]);
        let error = cpu::normalize_backward(&v, &v, &[2, 3], Some(&g), axis, Eps::None).unwrap_err();
        assert_eq!(error, expected("normalize_backward"));
    }
}

#[test]
fn linear_rejects_what_does_not_fit() {
    let linear = |x: usize, x_shape: &[usize], w: usize, w_shape: &[usize], bias: Option<usize>| {
        let bias = bias.map(|n| vec![0.0; n]);
        cpu::linear(&vec![0.0; x], x_shape, &vec![0.0; w], w_shape, bias.as_deref(), Activation::None).unwrap_err()
    };
    let shape = |error: Error| match error {
        Error::Argument(ArgumentError::Shape { op: "linear", arg, got, expected }) => (arg, got, expected),
        other => panic!("{other:?}"),
    };
    assert_eq!(shape(linear(6, &[2, 3], 6, &[6], None)), ("w", vec![6], "[out, in]".into()));
    assert_eq!(shape(linear(6, &[2, 3], 6, &[1, 2, 3], None)), ("w", vec![1, 2, 3], "[out, in]".into()));
    assert_eq!(shape(linear(6, &[2, 3], 8, &[2, 4], None)), ("x", vec![2, 3], "[.., 4]".into()));
    assert_eq!(shape(linear(1, &[], 8, &[2, 4], None)), ("x", vec![], "[.., 4]".into()));
    assert_eq!(shape(linear(6, &[2, 3], 12, &[4, 3], Some(3))), ("bias", vec![3], "[4]".into()));
    assert_eq!(
        linear(5, &[2, 3], 12, &[4, 3], None),
        Error::Argument(ArgumentError::Length { got: 5, expected: 6, shape: vec![2, 3] })
    );
    assert_eq!(
        linear(6, &[2, 3], 11, &[4, 3], None),
        Error::Argument(ArgumentError::Length { got: 11, expected: 12, shape: vec![4, 3] })
    );
    // Empty inputs, yet a y of 2³² elements.
    assert!(matches!(
        linear(0, &[1 << 16, 0], 0, &[1 << 16, 0], None),
        Error::Limit(LimitError::TensorTooLarge { what: "y", .. })
    ));
    assert!(matches!(
        linear(0, &[usize::MAX, 2, 0], 0, &[1, 0], None),
        Error::Limit(LimitError::TensorTooLarge { what: "x", .. })
    ));
}

#[test]
fn normalize_backward_rejects_a_dw_that_does_not_fit() {
    let error = cpu::normalize_backward(&[1.0; 5], &[1.0; 6], &[2, 3], None, Axis::Kept(0), Eps::None).unwrap_err();
    assert_eq!(error, Error::Argument(ArgumentError::Length { got: 5, expected: 6, shape: vec![2, 3] }));
}

#[test]
fn linear_backward_and_saved_reject_what_does_not_fit() {
    let v = [1.0; 6];
    let backward = |x_shape: &[usize], weight, w_shape: &[usize], dy: usize| {
        let x = vec![0.0; x_shape.iter().product()];
        cpu::linear_backward(&x, x_shape, weight, w_shape, None, Activation::None, &vec![0.0; dy]).unwrap_err()
    };
    let normalized = |g, axis| cpu::Weight::Normalized { v: &v, g, axis, eps: Eps::None };
    let shape = |arg, got: &[usize], expected: &str| {
        Error::Argument(ArgumentError::Shape { op: "linear_backward", arg, got: got.into(), expected: expected.into() })
    };
    let plain = cpu::Weight::Plain(&v);
    assert_eq!(backward(&[2, 3], plain, &[6], 4), shape("w", &[6], "[out, in]"));
    assert_eq!(backward(&[2, 3], normalized(None, Axis::Whole), &[6], 4), shape("v", &[6], "[out, in]"));
    assert_eq!(backward(&[2, 2], plain, &[2, 3], 4), shape("x", &[2, 2], "[.., 3]"));
    assert_eq!(
        backward(&[4, 3], plain, &[2, 3], 7),
        Error::Argument(ArgumentError::Length { got: 7, expected: 8, shape: vec![4, 2] })
    );
    assert_eq!(
        backward(&[4, 3], plain, &[3, 3], 12),
        Error::Argument(ArgumentError::Length { got: 6, expected: 9, shape: vec![3, 3] })
    );
    assert_eq!(
        backward(&[4, 3], normalized(None, Axis::Kept(2)), &[2, 3], 8),
        Error::Argument(ArgumentError::Axis { axis: 2, rank: 2 })
    );
    assert!(matches!(
        backward(&[4, 3], normalized(Some(&[1.0; 3]), Axis::Kept(0)), &[2, 3], 8),
        Error::Argument(ArgumentError::Shape { arg: "g", .. })
    ));

    let saved = |x_shape: &[usize], v_shape: &[usize], axis, eps| {
        let x = vec![0.0; x_shape.iter().product()];
        cpu::linear_saved(&x, x_shape, &v, v_shape, axis, eps).unwrap_err()
    };
    assert!(matches!(
        saved(&[2, 3], &[6], Axis::Whole, Eps::None),
        Error::Argument(ArgumentError::Shape { op: "linear_saved", arg: "v", .. })
    ));
    assert!(matches!(
        saved(&[2, 2], &[2, 3], Axis::Kept(1), Eps::None),
        Error::Argument(ArgumentError::Shape { arg: "x", .. })
    ));
    assert_eq!(
        saved(&[2, 3], &[2, 3], Axis::Kept(2), Eps::None),
        Error::Argument(ArgumentError::Axis { axis: 2, rank: 2 })
    );
    assert_eq!(
        saved(&[2, 3], &[2, 3], Axis::Kept(1), Eps::Clamp(0.0)),
        Error::Argument(ArgumentError::Eps { eps: 0.0 })
    );
}

#[test]
fn batch_operators_reject_what_does_not_fit() {
    let empty = "a batch of at least one row";
    let shape = |op, arg, got: &[usize], expected: &str| {
        Error::Argument(ArgumentError::Shape { op, arg, got: got.into(), expected: expected.into() })
    };
    let error = cpu::data_dependent_init(&[], &[0, 3], &[1.0; 6], &[2, 3], Eps::None).unwrap_err();
    assert_eq!(error, shape("data_dependent_init", "x", &[0, 3], empty));
    cpu::data_dependent_init(&[1.0; 2], &[1, 2], &[1.0; 6], &[2, 3], Eps::None).unwrap_err();

    let op = "mean_only_batch_norm";
    let norm = |t: &[usize], bias: usize| {
        let data = vec![0.0; t.iter().product()];
        cpu::mean_only_batch_norm(&data, t, Some(&vec![0.0; bias])).unwrap_err()
    };
    assert_eq!(norm(&[0, 3], 3), shape(op, "t", &[0, 3], empty));
    assert_eq!(norm(&[], 1), shape(op, "t", &[], "[.., features]"));
    assert_eq!(norm(&[2, 3], 2), shape(op, "bias", &[2], "[3]"));
    let error = cpu::subtract_running_mean(&[0.0; 6], &[2, 3], &[0.0; 2], None).unwrap_err();
    assert_eq!(error, shape("subtract_running_mean", "running", &[2], "[3]"));
    let error = cpu::mean_only_batch_norm_backward(&[0.0; 5], &[2, 3]).unwrap_err();
    assert_eq!(error, Error::Argument(ArgumentError::Length { got: 5, expected: 6, shape: vec![2, 3] }));
    assert!(matches!(
        cpu::mean_only_batch_norm_backward(&[], &[usize::MAX, 2, 0]).unwrap_err(),
        Error::Limit(LimitError::TensorTooLarge { what: "dy", .. })
    ));
    let error = cpu::update_running_mean(&mut [0.0; 2], &[0.0; 3], 0.1).unwrap_err();
    assert_eq!(error, shape("update_running_mean", "mean", &[3], "[2]"));
}

#[test]
fn numbers_out_of_range_are_refused() {
    for slope in ranges::BAD_SLOPES {
        let slope_of = Activation::LeakyRelu(slope);
        let error = cpu::linear(&[1.0; 3], &[1, 3], &[1.0; 3], &[1, 3], None, slope_of).unwrap_err();
        assert_eq!(error.to_string(), format!("linear: the slope of leaky ReLU is {slope:?}, expected a finite f32"));
    }
    for slope in [-1e30, 0.0, 1.0, f32::MAX] {
        cpu::linear(&[1.0; 3], &[1, 3], &[1.0; 3], &[1, 3], None, Activation::LeakyRelu(slope)).unwrap();
    }
    let mut running = [2.0];
    for momentum in ranges::bad_momenta() {
        let error = cpu::update_running_mean(&mut running, &[1.0], momentum).unwrap_err();
        let text = format!("update_running_mean: the momentum is {momentum:?}, expected a number from 0 to 1");
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(running, [2.0]);
    for momentum in [0.0, 1.0] {
        cpu::update_running_mean(&mut running, &[1.0], momentum).unwrap();
    }
    assert_eq!(running, [1.0]);
}
