//! Tiles by name, choices as text, and which tile computes what, on wgpu's `noop` backend.
use weightnorm::internals::Kind;
use weightnorm::{
    ArgumentError, DType, Error, Gpu, Gradients, LimitError, Linear, LinearBackward, LinearShape, Options, ParseError,
    Recorder, Tensor, Tile, Timing, TuningTable, WeightNorm,
};

fn adopt(choices: &str) -> Result<Gpu, Error> {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    Gpu::from_wgpu(device, queue, Options::default().kind(Kind::Gpu).tuning_table(choices.parse()?))
}

/// The first line of the choices of this device.
fn origin() -> String {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    Gpu::from_wgpu(device, queue, Options::default()).unwrap().tuning_table().to_string()
}

fn with(lines: &str) -> Result<Gpu, Error> {
    adopt(&format!("{}{lines}", origin()))
}

#[test]
fn tile_names_come_back() {
    for tile in Tile::ALL {
        assert_eq!(tile.to_string().parse(), Ok(tile));
    }
    assert_eq!(("tile64x64".parse(), "subgroup16".parse()), (Ok(Tile::Tile64x64), Ok(Tile::Subgroup16)));
    assert_eq!(format!("{:>9}|", Tile::Gemv8), "    gemv8|");
    for name in ["", "Tile64x64", "tile64x64 ", "subgroup128"] {
        match name.parse::<Tile>() {
            Err(Error::Parse(ParseError::Tile { got, expected })) => {
                assert_eq!(got, name);
                assert!(expected.starts_with("tile128x128, tile64x64, "), "{expected}");
            }
            other => panic!("{name:?}: {other:?}"),
        }
    }
}

const TEXT: &str = "\
weightnorm 9.9.9 | An adapter | driver 1 (a | b) | Vulkan
forward f32 f32 2 10 3 tile64x64
forward f32 f32 16 10 3 subgroup32
forward f16 f32 2 10 3 gemv8 split 16
input_gradient bf16 bf16 2 10 3 tile128x8
weight_gradient f16 bf16 512 512 16384 tile32x32 split 1024
";

#[test]
fn choices_come_back_in_order() {
    let choices: TuningTable = TEXT.parse().unwrap();
    assert_eq!((choices.len(), choices.to_string().as_str()), (5, TEXT));
    let mut lines: Vec<&str> = TEXT.lines().collect();
    lines[1..].reverse();
    let reversed: TuningTable = format!("\n{}\r\n\n", lines.join(" \r\n ")).parse().unwrap();
    assert_eq!(reversed, choices);
    assert_eq!(reversed.to_string(), TEXT);
    assert!(TuningTable::default().is_empty() && !choices.is_empty());
}

/// Each wrong line by its number.
#[test]
fn choices_of_another_form_are_refused() {
    let wrong = [
        ("forward f32 f32 2 10 3", "a product, two types, three sizes and a tile"),
        ("forward f32 f32 2 10 3 tile64x64 split", "forward, "),
        ("forward f32 f32 2 10 3 tile64x64 split 16 16", "forward, "),
        ("forward f32 f32 2 10 3 tile64x64 pieces 16", "forward, "),
        ("forward f32 f32 2 10 3 tile64x64 split -1", "forward, "),
        ("forward f32 f32 2 10 3 tile64x64 split 4294967296", "forward, "),
        ("forward f32 f32 2 10 -3 large", "forward, "),
        ("forward f32 f64 2 10 3 tile64x64", "forward, "),
        ("backward f32 f32 2 10 3 large", "forward, "),
        ("forward f32 f32 2 10 3 giant", "a tile of this version (no tile is called \"giant\""),
        ("forward  f32 f32 2 10 7 tile64x64", "one line for each product"),
    ];
    for (line, beginning) in wrong {
        let text =
            format!("weightnorm 0.1.0 | ..\nforward f32 f32 2 10 7 gemv8\n\n{line}\nforward f32 f32 2 10 8 gemv8");
        match text.parse::<TuningTable>() {
            Err(Error::Parse(ParseError::TuningTable { line: 4, got, expected })) if got == line => {
                assert!(expected.starts_with(beginning), "{line}: {expected}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
    for text in ["", "\n", "forward f32 f32 2 10 3 tile64x64", "weightnormal | .."] {
        assert!(
            matches!(text.parse::<TuningTable>(), Err(Error::Parse(ParseError::TuningTable { line: 1, .. }))),
            "{text:?}"
        );
    }
}

/// Of another version, adapter or driver: none of them, and no error. Of this one: all, if the device can run them.
#[test]
fn choices_belong_to_an_adapter() {
    let line = "forward f32 f32 2 10 3 tile64x64\n";
    assert!(with("").unwrap().tuning_table().is_empty());
    assert_eq!(with(line).unwrap().tuning_table().to_string(), origin() + line);
    let foreign = [
        origin().replace("noop", "other"),
        origin().replace(env!("CARGO_PKG_VERSION"), "0.0.0"),
        origin().replace('\n', " 2\n"),
    ];
    for origin in foreign {
        // Even what this device could not run.
        let gpu = adopt(&format!("{origin}{line}forward f32 f32 9 9 9 subgroup32\n")).unwrap();
        assert_eq!(gpu.tuning_table().to_string(), self::origin());
    }
    let no_lanes = with("forward f32 f32 2 10 3 subgroup32\n").map(drop);
    assert!(
        matches!(&no_lanes, Err(Error::Argument(ArgumentError::Variant { op: "tuning_table", got, .. })) if got == "Subgroup32"),
        "{no_lanes:?}"
    );
    for length in [0, u32::MAX] {
        let refused = with(&format!("forward f32 f32 2 10 3 gemv8 split {length}\n")).map(drop);
        assert!(
            matches!(refused, Err(Error::Argument(ArgumentError::Variant { op: "tuning_table", .. }))),
            "{refused:?}"
        );
    }
}

/// The tensors of a layer: x, v, g, y, dx, dv, u, norms.
struct Layer {
    gpu: Gpu,
    tensors: [Tensor; 8],
}

const BATCH: usize = 70;
const INS: usize = 100;
const OUTS: usize = 90;

/// Each product of a layer of that size, as choices name it.
const PRODUCTS: [&str; 3] =
    ["forward f16 f16 70 90 100", "input_gradient f16 f16 70 100 90", "weight_gradient f16 f16 90 100 70"];

impl Layer {
    fn new(gpu: Gpu) -> Layer {
        Layer::of(gpu, [BATCH, INS, OUTS], DType::F16)
    }

    fn of(gpu: Gpu, [batch, ins, outs]: [usize; 3], dtype: DType) -> Layer {
        let sizes = [
            (&[batch, ins][..], dtype),
            (&[outs, ins], dtype),
            (&[outs], DType::F32),
            (&[batch, outs], dtype),
            (&[batch, ins], dtype),
            (&[outs, ins], dtype),
            (&[batch, outs], DType::F32),
            (&[outs], DType::F32),
        ];
        Layer { tensors: sizes.map(|(shape, dtype)| gpu.zeros(shape, dtype).unwrap()), gpu }
    }

    /// The pipelines of one of [`PRODUCTS`], forced onto a tile and a split or not.
    fn labels(&self, product: usize, tile: Option<Tile>, split_length: Option<u32>) -> Vec<String> {
        let [x, v, g, y, dx, dv, u, norms] = &self.tensors;
        let weight = WeightNorm::new(v, g);
        let backward = |u| LinearBackward::new(x, weight.norms(norms), y).u(u).tile(tile).split_length(split_length);
        let record = |ops: &mut Recorder<'_, '_>| match product {
            0 => ops.linear(Linear::new(x, weight).tile(tile).split_length(split_length), y),
            1 => ops.linear_backward(backward(None), &Gradients::default().dx(dx)),
            _ => ops.linear_backward(backward(Some(u)), &Gradients::default().dv(dv)),
        };
        let profile = self.gpu.profile_by(Timing::Wall, record).unwrap();
        profile.operators.into_iter().flat_map(|o| o.dispatches).map(|d| d.label).collect()
    }
}

/// Exactly the products that lines name are computed as these say; whatever is forced wins.
#[test]
fn choices_choose() {
    let table = Layer::new(with("").unwrap());
    let tiles = [Tile::Tile64x64, Tile::Tile32x32, Tile::Gemv8, Tile::Tile128x8];
    let variants: Vec<_> = tiles.into_iter().flat_map(|tile| [(tile, None), (tile, Some(32))]).collect();
    for first in 0..variants.len() {
        let of = |product: usize| variants[(first + 3 * product) % variants.len()];
        let line = |product: usize| match of(product) {
            (tile, None) => format!("{} {tile}\n", PRODUCTS[product]),
            (tile, Some(length)) => format!("{} {tile} split {length}\n", PRODUCTS[product]),
        };
        let layer = Layer::new(with(&[0, 1, 2].map(line).concat()).unwrap());
        for product in 0..3 {
            let (tile, split_length) = of(product);
            let expected = table.labels(product, Some(tile), split_length);
            assert_eq!(layer.labels(product, None, None), expected, "{}", line(product));
            for forced in [(Some(Tile::Tile32x32), None), (Some(Tile::Gemv8), Some(16)), (None, Some(16))] {
                let expected = table.labels(product, forced.0, forced.1);
                assert_eq!(layer.labels(product, forced.0, forced.1), expected, "{} and {forced:?}", line(product));
            }
        }
    }
    // Nearly these products: those of the table, from which the labels tell another one.
    let near = |name: &&str| [name.replacen("f16", "f32", 1), format!("{name}0"), name.replace("70", "71")];
    let lines: Vec<_> = PRODUCTS.iter().flat_map(near).map(|name| format!("{name} gemv8 split 32\n")).collect();
    let layer = Layer::new(with(&lines.concat()).unwrap());
    for product in 0..3 {
        let by_table = table.labels(product, None, None);
        assert_eq!(layer.labels(product, None, None), by_table);
        assert!(table.labels(product, Some(Tile::Gemv8), None) != by_table);
        assert_eq!(table.labels(product, Some(Tile::Gemv8), Some(32)).len(), by_table.len() + 1);
    }
}

/// One line for each product, in use at once; those in use before stay.
#[test]
fn tune_names_each_product() {
    let before = "forward f32 f32 1 2 3 gemv8 split 16\nforward f16 f16 70 90 100 tile128x8\n";
    let gpu = with(before).unwrap();
    let shape = LinearShape::new(BATCH, INS, OUTS).dtype(DType::F16);
    let empty = LinearShape::new(0, INS, OUTS);
    for (training, count) in [(false, 2), (true, 4)] {
        let shape = if training { shape.training() } else { shape };
        let choices = gpu.tune(&[empty, shape]).unwrap();
        assert_eq!(choices.len(), count, "{choices}");
        let text = choices.to_string();
        for name in &PRODUCTS[..count - 1] {
            assert!(text.contains(&format!("{name} ")), "{name} is not among\n{text}");
        }
        assert!(text.contains("forward f32 f32 1 2 3 gemv8 split 16\n"), "{text}");
        assert_eq!(adopt(&text).unwrap().tuning_table(), &choices);
    }
    assert_eq!(gpu.pipeline_count(), 0);
    assert!(gpu.tune(&[]).unwrap() == *gpu.tuning_table());
    let huge = LinearShape::new(1 << 20, 1 << 20, 1);
    assert!(matches!(gpu.tune(&[huge]), Err(Error::Limit(LimitError::TensorTooLarge { .. }))));
}

/// What the table takes on a GPU of forward, dx and dv of a layer: the tile, and whether the sums are in pieces. As an
/// H200 had it fastest, or within a tenth of that (`benches/results/2026-11-28-h200-tiles.csv`).
#[test]
fn table_keeps_a_gpu_busy() {
    use Tile::{Gemv1, Gemv4, Tile32x32, Tile64x64};
    let layers = [
        ([1, 4096, 4096], [(Gemv1, false), (Gemv1, true), (Tile32x32, false)]),
        ([8, 1024, 1024], [(Gemv4, false), (Gemv4, false), (Tile32x32, false)]),
        ([16, 4096, 4096], [(Gemv4, false), (Gemv4, false), (Tile32x32, false)]),
        ([64, 1024, 1024], [(Tile32x32, true), (Tile32x32, true), (Tile32x32, false)]),
        ([256, 784, 512], [(Tile32x32, true), (Tile32x32, false), (Tile32x32, false)]),
        ([1024, 1024, 1024], [(Tile64x64, false), (Tile64x64, false), (Tile64x64, false)]),
        ([2048, 128, 128], [(Tile32x32, false), (Tile32x32, false), (Tile32x32, true)]),
        ([16_384, 512, 512], [(Tile64x64, false), (Tile64x64, false), (Tile64x64, true)]),
        ([16_384, 512, 259], [(Tile64x64, false), (Tile64x64, false), (Tile32x32, true)]),
    ];
    for (size, expected) in layers {
        let layer = Layer::of(with("").unwrap(), size, DType::F32);
        for (product, (tile, pieces)) in expected.into_iter().enumerate() {
            let of_product = |labels: Vec<String>| -> Vec<String> {
                labels.into_iter().filter(|label| !label.starts_with("weightnorm.batch")).collect()
            };
            let [batch, ins, outs] = size;
            let length = pieces.then_some([ins, outs, batch][product] as u32 / 4);
            let by_hand = of_product(layer.labels(product, Some(tile), length));
            let by_table = of_product(layer.labels(product, None, None));
            assert_eq!(by_table, by_hand, "product {product} of {size:?}");
        }
    }
}
