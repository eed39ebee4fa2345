//! The text is the one that data/README.md describes, and what is drawn follows the probabilities.
use characters::data::{Start, Text, shapes};
use characters::write::draw;

#[test]
fn characters_are_all_there() {
    let text = Text::shipped();
    assert_eq!((text.codes.len(), text.alphabet.len()), (184_177, 76));
    assert!(text.alphabet.iter().all(|c| c.is_ascii()) && text.alphabet[..2] == ['\n', ' ']);
    let first: String = text.codes[..80].iter().map(|&code| text.alphabet[code]).collect();
    assert_eq!(first, "ADVENTURE I. A SCANDAL IN BOHEMIA\nI.\nTo Sherlock Holmes she is always THE woman.");
    assert_eq!((text.training().start, text.training().end), (0, text.held_out().start));
    assert_eq!((text.held_out().end, text.held_out().len()), (184_177, 9_209));
    // FNV-1a of the file, which tells any mistake.
    let bytes = include_bytes!("../../data/holmes.txt");
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    assert_eq!((bytes.len(), hash), (185_013, 0x21aa18773e35c3e));
}

#[test]
fn characters_start_as_pytorch_has_it() {
    let Start { weights, biases } = Start::new(7, 24, 76);
    let limit = (1.0f64 / 24.0).sqrt() as f32;
    for (v, shape) in weights.iter().zip(shapes(24, 76)) {
        assert_eq!(v.len(), shape[0] * shape[1]);
        let most = v.iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(most <= limit && most > 0.9 * limit, "{most} of {limit}");
    }
    // The second gate is the one that forgets.
    assert_eq!(biases[0], [[0.0; 24], [1.0; 24], [0.0; 24], [0.0; 24]].concat());
    assert_eq!(biases[1], [0.0; 76]);
    assert_ne!(weights, Start::new(8, 24, 76).weights);
}

#[test]
fn characters_are_drawn_by_their_probabilities() {
    // Of e⁰, e¹ and e² by temperature 1, and 1, e² and e⁴ by ½.
    let logits = [0.0, 1.0, 2.0];
    for (temperature, shares) in [(1.0, [0.090, 0.245, 0.665]), (0.5, [0.016, 0.117, 0.867])] {
        let mut counts = [0; 3];
        (0..1000).for_each(|i| counts[draw(&logits, temperature, (f64::from(i) + 0.5) / 1000.0)] += 1);
        for (count, share) in counts.into_iter().zip(shares) {
            assert!((f64::from(count) / 1000.0 - share).abs() < 2e-3, "{counts:?} at {temperature}");
        }
    }
    assert_eq!(draw(&[f32::NAN; 3], 1.0, 0.5), 2);
}
