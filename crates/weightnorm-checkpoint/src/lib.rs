//! Weight-normalized parameters in `.safetensors` files, and in PyTorch's own: found, read, folded, split, renamed.
//!
//! ```no_run
//! use std::path::Path;
//! use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Rules, Spelling};
//! use weightnorm::{Axis, Gpu};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let vocoder = Checkpoint::open(Path::new("vocoder.safetensors"))?; // reads the header only
//!     let rules = Rules::default().axis("*.pos_conv.weight", Axis::Kept(2)).exclude("discriminator.*");
//!     for row in checkpoint::inspect(&vocoder, &rules, &mut |_| ())?.rows {
//!         println!("{} {:?} keeps {:?}: norms {:?}", row.weight.name, row.weight.shape, row.weight.axis, row.norm);
//!     }
//!     checkpoint::convert(&vocoder, Path::new("renamed.safetensors"), Spelling::Parametrizations, &rules, &mut |_| ())?;
//!     checkpoint::fold(&Gpu::new()?, &vocoder, Path::new("folded.safetensors"), &rules, &mut |_| ())?;
//!     Ok(())
//! }
//! ```
//!
//! # What is read
//!
//! Any tensor by its name, whichever file it is in: its bytes, its numbers, or as a [`Tensor`](weightnorm::Tensor) on a
//! GPU. Each call reads that one tensor, and no other.
//!
//! ```no_run
//! use std::path::Path;
//! use weightnorm::{Gpu, Linear, WeightNorm};
//! use weightnorm_checkpoint::Checkpoint;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (gpu, model) = (Gpu::new()?, Checkpoint::open(Path::new("model/"))?);
//!     let v = model.upload(&gpu, "proj.weight_v")?; // [out, in], in its own storage type
//!     let g = gpu.upload(&model.read_f32("proj.weight_g")?, &[v.shape()[0]])?; // f32, whatever it is stored as
//!     let bias = gpu.upload(&model.read_f32("proj.bias")?, &[v.shape()[0]])?;
//!     let x = gpu.upload(&vec![1f32; v.shape()[1]], &[1, v.shape()[1]])?;
//!     let y = gpu.linear(Linear::new(&x, WeightNorm::new(&v, &g)).bias(&bias))?;
//!     println!("{:?}", y.read::<f32>()?);
//!     Ok(())
//! }
//! ```
//!
//! # What is found
//!
//! A parameter is weight-normalized if there is a pair of tensors g and v called as one [`Spelling`] says, and its name
//! is one that PyTorch's layers have: `weight`, `bias`, numbered (`weight_1`) or recurrent (`weight_hh_l0`). Under
//! `parametrizations.NAME.original0` and `.original1` any NAME will do, if the shapes are those of weight norm. Pairs
//! `NAME_g` and `NAME_v` of any other name are somebody else's, and are taken only where [`Rules::include`] has a
//! pattern for them. A g that has v's own shape is no gain either, unless it is included or [`Rules::axis`] has a
//! pattern for it; but it is where each row of axis 0 is one element, as in a bias. Pairs that are not taken are
//! [`Problem::NotTaken`], a warning.
//!
//! Spectral norm's `weight_orig`, `weight_u` and `weight_v` are copied. So is what an optimizer keeps, by its name:
//! `exp_avg`, `momentum_buffer`, or `m` and `v` under `optimizer` or the like. It belongs to weights that are not
//! folded, as [`Problem::OptimizerState`] says. Averages of weights (`ema`, `averaged`, `swa`) are weights. Of [layers
//! of DoRA](Checkpoint::dora_layers) [`merge`] makes ordinary weights; anything else copies their tensors
//! ([`Problem::Dora`]).
//!
//! The kept axis follows from the shapes: g has ones everywhere but there, as PyTorch writes it, or is flat and as long
//! as one axis alone. A flat g that fits several axes is [`Problem::AmbiguousAxis`], and one that has as many numbers
//! as an axis in another shape is [`Problem::OtherShape`], until [`Rules::axis`] names the axis. With a g of one
//! element the name of the axis makes no difference: it is reported as axis 0 if that has one index, else as
//! [`Axis::Whole`]. (A transposed convolution as PyTorch stores it keeps axis 0, which is its input; that is what its g
//! says too.)
//!
//! v may be f32, f16, bf16 or f64, and so may g. The result of a computation has the storage type of v, and f64 becomes
//! f32: [`Problem::Narrowed`] warns of that. g is widened to f32, or narrowed to it.
//!
//! # Files of PyTorch's own
//!
//! What `torch.save` writes, since PyTorch 1.6 and before (`.pt`, `.pth`, `.ckpt`, `.bin`), is read as well, and what
//! is written of it is a `.safetensors` file. Nothing in such a file is executed: its pickle is read as data, in which
//! tensors, dictionaries and lists are known by their names and anything else is an opaque value. That is ignored,
//! unless a tensor that is wanted is made of it (sparse and quantized tensors, complex numbers in f64), which is an
//! error.
//!
//! The tensors are those of one dictionary: of the file's own value, or of the only one in it (`{"generator": {..}}`),
//! or of the one that [`Checkpoint::open_key`] names. A dictionary is one of weights if it holds a floating-point
//! tensor with an axis under a key of text. Dictionaries and lists in it are taken with it, with points between the
//! parts of names. So an optimizer's state, which is kept by integers, is left out. [`Checkpoint::key`] says which
//! dictionary it is.
//!
//! Tensors are views of storages, and are read in row-major order whatever their strides are. Names of the same view
//! are [tied](self#tied-tensors) to the first of them. Views that overlap in other ways, and expanded ones, are tensors
//! by themselves, in sum up to 16 times as large as the file. Checksums are not compared.
//!
//! Big-endian numbers and TorchScript are [`Error::Foreign`], with a line of Python that saves them as `.safetensors`.
//! So are shards of an index (`pytorch_model.bin.index.json`).
//!
//! # Tied tensors
//!
//! `safetensors.torch.save_model` writes a tensor that a model has under several names once, and ties the other names
//! to it in the metadata: `"out.weight_v": "inp.weight_v"`. Tied names are names as any: a pair may be of them, or half
//! of them. What is written has tied names as well: weights with the same g, v and axis are one tensor, and the other
//! names are tied to it; where they differ each is written. A tensor stays as long as one of its names does. An entry
//! is such a name if its value is the name of a tensor and its key is none; other metadata is not touched.
//!
//! # What is written
//!
//! Tensors that no weight takes part in, metadata, the order of the header and that of the data stay as they are, byte
//! for byte: w has the place of v, g stands in front of v. (Where a tensor would not start at a multiple of its element
//! size any more, the data is laid out anew with the largest elements first, as the `safetensors` crate does.) The
//! output may be the input. An output that is a symbolic link is replaced, and what it points to stays. A file without
//! write permission is not replaced, nor a device or a pipe, nor a link to one.
//!
//! Of a sharded checkpoint the result is a new folder with the same files and an index with the same keys, written
//! likewise, which lists what is in the files; its `total_size` and `total_parameters` are those of what is written, or
//! left out where they cannot be known. An index that does not fit its files is a warning, and of two tensors of one
//! name that counts which the index names; a folder that is there is not replaced. A shard that keeps no tensor is left
//! out. Other files of the folder are not copied.
//!
//! [`Rules::part`] writes some files of such a folder, for work that many processes share, and [`write_index`] the
//! index once all are there. It knows the folder alone: other metadata of the old index is not in it.
//!
//! If there is any [`Finding`] that is not a warning, nothing is written: rows of zeros unless
//! [`Rules::allow_zero_rows`], or a tensor of the weight's own name beside its pair unless [`Rules::prefer`] says which
//! of the two is left out.
//!
//! # What an error leaves, and a kill
//!
//! An output is written under a temporary name in its folder, `.weightnorm-PROCESS-COUNT.tmp`, synced, renamed, and
//! then the folder is synced. So whenever the process ends or the machine stops, the output is the old file or the
//! whole new one. After an error the temporary one is gone. A process that is killed leaves it behind, and it may be
//! removed: by any signal, also that of a limit on the size of files (`ulimit -f`), unless it is ignored. To have no
//! memory for a header or for a window that is read is an error; for anything else it ends a Rust program, like a
//! signal. Where only the last step fails, [`Error::Io`] says so: the new output is in place.
//!
//! # Memory
//!
//! Only headers are held in memory as a whole. Tensors pass in windows of [`Rules::window`] bytes, 64 MiB by default,
//! of which at most four are there at a time, on the host; likewise on the device. A weight larger than that is
//! computed in windows of whole rows where these lie together (axis 0), else some rows after the others, each read
//! twice, once for the norms.
mod aliases;
mod at;
mod compute;
mod cut;
mod dora;
mod error;
mod file;
mod find;
mod fold;
mod foreign;
mod gather;
mod header;
mod index;
mod inspect;
mod merge;
mod names;
mod numbers;
mod plan;
mod progress;
mod pytorch;
mod read;
mod state;

use std::path::{Path, PathBuf};

use file::Source;
use index::Index;
use progress::Meter;
use weightnorm::{Axis, DType, Eps, Gpu};

pub use dora::DoraLayer;
pub use error::{Error, Finding, Problem};
pub use find::{Found, FoundWeight};
pub use fold::{Check, CheckedWeight, check, fold, split};
pub use gather::{Gathered, write_index};
pub use header::{FileDType, TensorInfo};
pub use inspect::{Inspection, Range, Row, inspect};
pub use merge::{Scaling, merge};
pub use names::{Pattern, Spelling};
pub use plan::{Report, convert};
pub use progress::Progress;

/// A `.safetensors` file, several with an index, or a file of PyTorch's own, of which all but the numbers has been read
/// and checked.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Source>,
    /// Of a sharded one.
    index: Option<Index>,
    /// Names in the metadata that stand for a tensor under another name.
    aliases: Vec<(String, find::At)>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file; the index of a sharded checkpoint, `NAME.safetensors.index.json`; a file that
    /// [`torch.save` wrote](self#files-of-pytorchs-own); or a folder that holds one of them, the index if there are
    /// both.
    ///
    /// # Errors
    /// [`Error::Foreign`] where it is something else; [`Error::Io`]; [`Error::Header`], [`Error::Tensor`] where a file
    /// is not what the format says: the header is cut off, too long (100 MB) or no JSON of that form, a name stands
    /// there twice, a place is not as large as shape and type say, places overlap, leave holes or do not end where the
    /// file does; [`Error::Index`] where the index is no such file, or several files have a tensor and it names none of
    /// them; [`Error::Key`] where a file of PyTorch's own holds no dictionary of weights, or several.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        Checkpoint::open_file(path, None)
    }

    /// Opens a file of PyTorch's own and takes the tensors of the dictionary that the key names, by the keys on the way
    /// to it with points between: `"generator"`, `"model.encoder"`. With `""` all tensors of the file are taken.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Key`] also where there is no such key, or the file is of another kind.
    pub fn open_key(path: &Path, key: &str) -> Result<Checkpoint, Error> {
        Checkpoint::open_file(path, Some(key))
    }

    fn open_file(path: &Path, key: Option<&str>) -> Result<Checkpoint, Error> {
        let path = foreign::in_folder(path)?;
        if path.extension().is_some_and(|extension| extension == "json") {
            if let Some(key) = key {
                let reason = format!("it is an index, which has no keys: none can be {key:?}");
                return Err(Error::Key { path, reason, keys: vec![] });
            }
            let (index, shards) = Index::open(&path)?;
            return Ok(Checkpoint { path, aliases: aliases::find(&shards), shards, index: Some(index) });
        }
        let shards = vec![Source::open_any(&path, key)?];
        Ok(Checkpoint { path, aliases: aliases::find(&shards), shards, index: None })
    }

    /// Of a file of PyTorch's own, the key of the dictionary whose tensors these are; `""` where that is the file's own
    /// value.
    pub fn key(&self) -> Option<&str> {
        self.shards.iter().find_map(Source::key)
    }

    /// The file, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is several files with an index, so that an output is a folder.
    pub fn is_sharded(&self) -> bool {
        self.index.is_some()
    }

    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// All tensors, file by file, in the order of the headers.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.shards.iter().flat_map(|shard| &shard.header.tensors)
    }

    /// The metadata of its files, in order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.shards.iter().filter_map(|shard| shard.header.metadata.as_ref()).flatten();
        all.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The weight-normalized parameters that the rules choose, and what is odd about them. Reads nothing: zero rows
    /// and numbers that are not finite are for [`inspect`].
    pub fn weights(&self, rules: &Rules) -> Found {
        find::find(self, rules, find::Wanted::Numbers)
    }
}

/// Where weights are computed.
#[derive(Debug, Clone, Copy)]
pub enum Device<'a> {
    /// On a GPU. A `&Gpu` becomes this by itself.
    Gpu(&'a Gpu),
    /// By the reference on the CPU, in f64: slowly, and without any driver.
    Reference,
}

impl Device<'_> {
    fn is_reference(self) -> bool {
        matches!(self, Device::Reference)
    }
}

impl<'a> From<&'a Gpu> for Device<'a> {
    fn from(gpu: &'a Gpu) -> Device<'a> {
        Device::Gpu(gpu)
    }
}

/// Which wins where a pair of tensors stands beside a tensor of the weight's own name: see [`Rules::prefer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefer {
    /// g and v: the tensor beside them is old, and is left out.
    Pair,
    /// The tensor: g and v are left out.
    Weight,
}

/// What to do with which weight.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rules {
    /// Kept axes by name: see [`Rules::axis`].
    pub axes: Vec<(Pattern, Axis)>,
    /// The policy of every weight, [`Eps::None`] by default, which is PyTorch's formula.
    pub eps: Eps,
    /// Names to take: see [`Rules::include`]. If empty those that are weight norm's.
    pub include: Vec<Pattern>,
    /// Names to leave as they are.
    pub exclude: Vec<Pattern>,
    /// The storage type of g where weights are split, that of w if none.
    pub gain: Option<DType>,
    /// Which wins where a pair stands beside a tensor of the weight's own name: [`Rules::prefer`].
    pub prefer: Option<Prefer>,
    /// Whether zero rows are only warned of.
    pub zero_rows: bool,
    /// Bytes of a window: see [the memory](self#memory).
    pub window: usize,
    /// Which files of a sharded output are written: see [`Rules::part`]. All, if none.
    pub part: Option<Part>,
}

/// One of several parts of the work, numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which.
    pub number: usize,
    /// Of how many.
    pub count: usize,
}

impl Default for Rules {
    fn default() -> Rules {
        let (axes, include, exclude) = Default::default();
        let (eps, window) = (Eps::None, 64 << 20);
        Rules { axes, eps, include, exclude, gain: None, prefer: None, zero_rows: false, window, part: None }
    }
}

impl Rules {
    /// Weights whose name (that of w, `layer.weight`) fits the pattern keep this axis. The first that fits decides.
    pub fn axis(mut self, pattern: impl Into<Pattern>, axis: Axis) -> Self {
        self.axes.push((pattern.into(), axis));
        self
    }

    /// Another eps policy. Rows that it changes are told: [`Problem::Guarded`].
    pub fn eps(mut self, eps: Eps) -> Self {
        self.eps = eps;
        self
    }

    /// Only weights whose name fits this pattern or another one that is included. Of those that fit, pairs of any name
    /// are taken: see [what is found](self#what-is-found). Optimizer state only where the pattern is its name, without
    /// a wildcard.
    pub fn include(mut self, pattern: impl Into<Pattern>) -> Self {
        self.include.push(pattern.into());
        self
    }

    /// No weight whose name fits this pattern: its tensors are copied.
    pub fn exclude(mut self, pattern: impl Into<Pattern>) -> Self {
        self.exclude.push(pattern.into());
        self
    }

    /// Where a pair stands beside a tensor of the weight's own name, which of the two is left out, with a warning.
    /// Without it [`fold`] and [`split`] refuse, and [`convert`] keeps both.
    pub fn prefer(mut self, prefer: Prefer) -> Self {
        self.prefer = Some(prefer);
        self
    }

    /// [`split`] stores g in that type.
    pub fn gain(mut self, dtype: DType) -> Self {
        self.gain = Some(dtype);
        self
    }

    /// Computes weights with zero rows too, as the eps policy says: NaN under [`Eps::None`], as in PyTorch, else 0.
    pub fn allow_zero_rows(mut self) -> Self {
        self.zero_rows = true;
        self
    }

    /// Another size of the windows in bytes, at least 4096.
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = bytes;
        self
    }

    /// Of a sharded output writes one part: the file of that number and each `count`-th from there on, in the order of
    /// the index. Every part reads what it needs wherever it lies, so processes that know nothing of each other can do
    /// one each, in any order. The folder may be there; files that are there whole are skipped, so that a part that was
    /// killed can be done again. [`write_index`] is the last step.
    pub fn part(mut self, number: usize, count: usize) -> Self {
        self.part = Some(Part { number, count });
        self
    }

    fn chooses(&self, name: &str) -> bool {
        let fits = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name));
        (self.include.is_empty() || fits(&self.include)) && !fits(&self.exclude)
    }

    /// Whether an included pattern fits, so that a pair is taken by any name.
    fn includes(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether an included pattern is that name, without a wildcard.
    fn names(&self, name: &str) -> bool {
        self.include.iter().any(|pattern| pattern.is_literal() && pattern.matches(name))
    }

    fn axis_of(&self, name: &str) -> Option<Axis> {
        self.axes.iter().find(|(pattern, _)| pattern.matches(name)).map(|&(_, axis)| axis)
    }

    fn window_bytes(&self) -> u64 {
        self.window.max(4096) as u64
    }

    /// Whether a finding keeps the weight from being computed.
    fn refuses(&self, finding: &Finding) -> bool {
        match finding.problem {
            Problem::ZeroRows { .. } => !self.zero_rows,
            _ => !finding.problem.is_warning(),
        }
    }
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
