//! The digits are those of UCI, and each epoch sees them once.
use digits::data::{CLASSES, Digits, PIXELS, TRAINING, order, shapes, start};

#[test]
fn digits_are_all_there() {
    let Digits { pixels, labels } = Digits::shipped();
    assert_eq!((labels.len(), pixels.len()), (1797, 1797 * PIXELS));
    // As scikit-learn counts them.
    let count = |label: u32| labels.iter().filter(|&&l| l == label).count();
    let counts: Vec<usize> = (0..CLASSES as u32).map(count).collect();
    assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    assert_eq!(pixels.iter().map(|&ink| f64::from(ink) * 16.0).sum::<f64>(), 561_718.0);
    assert!(pixels.iter().all(|&ink| (0.0..=1.0).contains(&ink) && (ink * 16.0).fract() == 0.0));
    // The first is a zero, whose second row is 0 0 13 15 10 15 5 0.
    assert_eq!(labels[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(pixels[8..16], [0.0, 0.0, 13.0, 15.0, 10.0, 15.0, 5.0, 0.0].map(|ink: f32| ink / 16.0));
    // FNV-1a of the file, which tells any other mistake.
    let bytes = include_bytes!("../../data/digits.txt");
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    assert_eq!(hash, 0xa7d1_c127_2991_76c1);
}

#[test]
fn digits_come_once_an_epoch() {
    let (epochs, batch) = (3, 64);
    let all = order(1, epochs, batch);
    assert_eq!(all.len(), epochs * 20 * batch);
    let mut epochs: Vec<Vec<usize>> = all.chunks(20 * batch).map(<[usize]>::to_vec).collect();
    assert!(epochs[0] != epochs[1] && all[..20 * batch] != order(2, 1, batch) && all == order(1, 3, batch));
    for epoch in &mut epochs {
        epoch.sort_unstable();
        assert!(epoch.windows(2).all(|pair| pair[0] < pair[1]) && epoch.iter().all(|&image| image < TRAINING));
    }
}

#[test]
fn digits_start_as_he_has_it() {
    let layers = start(7);
    for (v, shape) in layers.iter().zip(shapes()) {
        assert_eq!(v.len(), shape.iter().product());
        let limit = (6.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
        let most = v.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(most <= limit && most > 0.9 * limit, "{most} of {limit}");
    }
    assert_ne!(layers[1], start(8)[1]);
}
