//! What has to hold of any bytes: for the fuzz target, and for the tests of the corpus.
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use weightnorm::{Axis, DType, Gpu, Options};
use weightnorm_checkpoint::{Checkpoint, Device, Error, Report, Rules, Spelling, check, convert, fold, inspect, split};

/// A file for the index to name.
const SHARD: &[u8] = b"\x88\0\0\0\0\0\0\0{\"m.weight_g\":{\"dtype\":\"F16\",\"shape\":[1,1],\"data_offsets\":[0,2]},\
\"m.weight_v\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[2,6]}}       \0<\0<\0<";

/// On wgpu's `noop` backend: everything but the numbers, which are zeros.
pub fn noop() -> Gpu {
    let required_limits = wgpu::Limits { max_immediate_size: 64, ..wgpu::Limits::default() };
    let required_features = wgpu::Features::IMMEDIATES;
    let descriptor = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
    let (device, queue) = wgpu::Device::noop(&descriptor);
    Gpu::from_wgpu(device, queue, Options::default()).expect("WebGPU's default limits will do")
}

/// An error, or a checkpoint on which everything ends in findings and nothing written, or in a checkpoint with all the tensors
/// that it should have. The first byte says whether the rest is a file, of either kind, or an index, beside which a file
/// of its own lies, and what the rules are. Works in `folder`; returns whether it is a checkpoint.
pub fn holds(gpu: &Gpu, folder: &Path, bytes: &[u8]) -> bool {
    let Some((&kind, bytes)) = bytes.split_first() else { return false };
    let is = |bit: u8| kind >> bit & 1 == 1;
    let inputs = folder.join("in");
    fs::create_dir_all(&inputs).expect("the folder of the input can be made");
    let (path, output) = match is(0) {
        false => (inputs.join("a.safetensors"), folder.join("b.safetensors")),
        true => (inputs.join("a.safetensors.index.json"), folder.join("b")),
    };
    fs::write(inputs.join("s.safetensors"), SHARD).expect("the shard can be written");
    fs::write(&path, bytes).expect("the input can be written");
    let Ok(checkpoint) = Checkpoint::open(&path) else { return false };

    let mut rules = Rules::default().window(if is(1) { 4096 } else { 1 << 20 });
    for (bit, axis) in [(2, Axis::Kept(1)), (3, Axis::Whole)] {
        rules = if is(bit) { rules.axis("*", axis) } else { rules };
    }
    let zeros = if is(4) { rules.clone().allow_zero_rows() } else { rules.clone() };
    let mut parted = rules.clone().include(if is(5) { "*" } else { "*weight*" });
    parted.gain = is(6).then_some(DType::F32);

    inspect(&checkpoint, &rules, &mut |_| ()).expect("a file that opens can be read");
    match check(gpu, &checkpoint, &rules, &mut |_| ()) {
        Ok(_) | Err(Error::NothingChosen { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    let before = Tensors::of(&checkpoint);
    let look = |result| written(folder, &output, result);
    for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
        if let Some((report, after)) = look(convert(&checkpoint, &output, spelling, &rules, &mut |_| ())) {
            let renamed = report.weights.iter().flat_map(|weight| {
                let name = &weight.name;
                [(weight.spelling.g(name), spelling.g(name)), (weight.spelling.v(name), spelling.v(name))]
            });
            let count = before.is_kept_in(&after, renamed.map(|(old, new)| (old, Some(new))));
            after.has_names(count);
            assert!(report.weights.iter().all(|weight| after.weights.contains(&weight.name)));
        }
        if let Some((report, after)) = look(split(gpu, &checkpoint, &output, spelling, &parted, &mut |_| ())) {
            let v = report.weights.iter().map(|weight| {
                let is_copied = before.all[&weight.name].0 != Dtype::F64;
                (weight.name.clone(), is_copied.then(|| spelling.v(&weight.name)))
            });
            before.is_kept_in(&after, v);
            let has = |weight: &str| [spelling.g(weight), spelling.v(weight)].iter().all(|n| after.all.contains_key(n));
            assert!(report.weights.iter().all(|w| has(&w.name) && after.weights.contains(&w.name)));
            after.has_names(before.all.len() + report.weights.len());
        }
    }
    for device in [Device::Gpu(gpu), Device::Reference] {
        if let Some((report, after)) = look(fold(device, &checkpoint, &output, &zeros, &mut |_| ())) {
            let halves = report.weights.iter().flat_map(|w| [w.spelling.g(&w.name), w.spelling.v(&w.name)]);
            before.is_kept_in(&after, halves.map(|half| (half, None)));
            assert!(report.weights.iter().all(|weight| after.all[&weight.name].1 == weight.shape));
            after.has_names(before.all.len() - report.weights.len());
        }
    }
    for (name, (_, _, bytes)) in &before.all {
        assert_eq!(&checkpoint.read_bytes(name).expect("it is there"), bytes);
        let _ = checkpoint.read_f64(name);
    }
    true
}

/// Those that files of PyTorch's own have.
const DTYPES: [Dtype; 19] = [
    Dtype::BOOL,
    Dtype::U8,
    Dtype::I8,
    Dtype::U16,
    Dtype::I16,
    Dtype::U32,
    Dtype::I32,
    Dtype::U64,
    Dtype::I64,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F32,
    Dtype::F64,
    Dtype::C64,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::F8_E8M0,
];

struct Tensors {
    /// Storage type, shape and bytes by name, as the `safetensors` crate reads them; and by names in the metadata that are tied to one.
    all: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    /// Those that are no tensors.
    tied: usize,
    /// What is found to be weight-normalized, or something of the kind.
    weights: HashSet<String>,
}

impl Tensors {
    fn of(checkpoint: &Checkpoint) -> Tensors {
        let (mut all, mut metadata) = (HashMap::new(), HashMap::new());
        // The library does not read files of PyTorch's own.
        let is_of_pytorch = checkpoint.key().is_some();
        for tensor in checkpoint.tensors().filter(|_| is_of_pytorch) {
            let dtype = DTYPES.into_iter().find(|dtype| dtype.to_string() == tensor.dtype.name()).expect("a type");
            let bytes = checkpoint.read_bytes(&tensor.name).expect("a file that opens can be read");
            all.insert(tensor.name.clone(), (dtype, tensor.shape.clone(), bytes));
            metadata = checkpoint.metadata().map(|(name, of)| (name.to_owned(), of.to_owned())).collect();
        }
        for file in checkpoint.files().filter(|_| !is_of_pytorch) {
            let bytes = fs::read(file).expect("a file that was read can be read");
            let theirs = SafeTensors::deserialize(&bytes).expect("what opens here opens there");
            all.extend(
                theirs.iter().map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))),
            );
            let theirs = SafeTensors::read_metadata(&bytes).expect("as above").1.metadata().clone();
            metadata.extend(theirs.into_iter().flatten());
        }
        let count = all.len();
        assert_eq!(count, checkpoint.tensors().count());
        let tied = |(name, of): (String, String)| {
            (name != "__metadata__" && !all.contains_key(&name)).then(|| Some((name, all.get(&of)?.clone())))
        };
        let tied: Vec<_> = metadata.into_iter().filter_map(tied).flatten().collect();
        all.extend(tied);
        let found = checkpoint.weights(&Rules::default());
        let odd = found.findings.into_iter().map(|finding| finding.weight);
        Tensors {
            tied: all.len() - count,
            all,
            weights: found.weights.into_iter().map(|weight| weight.name).chain(odd).collect(),
        }
    }

    /// Whether there are so many names. By chance metadata that was anything may be the name of a tensor that is new.
    fn has_names(&self, count: usize) {
        assert!((count..=count + self.tied).contains(&self.all.len()), "{count} names, {} are there", self.all.len());
    }

    /// Whether all tensors are there as they were: the `renamed` ones by their new names, or not as they were. Returns how many are.
    fn is_kept_in(&self, after: &Tensors, renamed: impl Iterator<Item = (String, Option<String>)>) -> usize {
        let (mut renamed, mut count): (HashMap<_, _>, _) = (renamed.collect(), 0);
        for (name, tensor) in &self.all {
            if let Some(name) = renamed.remove(name).unwrap_or_else(|| Some(name.clone())) {
                assert_eq!(after.all.get(&name), Some(tensor), "{name:?}");
                count += 1;
            }
        }
        assert!(renamed.is_empty(), "{renamed:?}");
        count
    }
}

/// What an operation wrote, which is removed. It wrote nothing if it failed, for which there are two reasons.
fn written(folder: &Path, output: &Path, result: Result<Report, Error>) -> Option<(Report, Tensors)> {
    let names = || fs::read_dir(folder).expect("the folder can be read").map(|e| e.expect("an entry").file_name());
    let names: HashSet<_> = names().collect();
    let report = match result {
        Ok(report) => report,
        Err(Error::Findings { .. } | Error::NothingChosen { .. }) => {
            assert!(names.len() == 1, "{names:?}");
            return None;
        }
        Err(other) => panic!("{other}"),
    };
    assert!(names.len() == 2, "{names:?}");
    let checkpoint = Checkpoint::open(output).expect("what was written can be read");
    assert_eq!(checkpoint.tensors().map(|tensor| tensor.bytes()).sum::<u64>(), report.bytes);
    let tensors = Tensors::of(&checkpoint);
    drop(checkpoint);
    let removed = if output.is_dir() { fs::remove_dir_all(output) } else { fs::remove_file(output) };
    removed.expect("the output can be removed");
    Some((report, tensors))
}
