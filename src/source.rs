//! WGSL modules, composed of files.
//!
//! A file names what it needs in lines of its own: `// import FILE`, and `// slot NAME = FILE`, a place that a module
//! may fill with another file that declares the same functions; the file named is the default, of the first line that
//! names the slot. Imports run downward only, and no file is taken twice, so that a module is a file and what fills its
//! slots, and every file is valid with its defaults.

/// A complete WGSL module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub struct Module {
    /// The file with the entry points.
    pub file: &'static str,
    /// Slots and the files that fill them; those that are not here have their default.
    pub slots: [Slot; SLOTS],
}

/// A slot and a file. ("", "") is none.
type Slot = (&'static str, &'static str);
const NO_SLOT: Slot = ("", "");
/// The most that a module fills.
#[doc(hidden)]
pub const SLOTS: usize = 7;

/// The read bindings whose buffers a dispatch writes elsewhere. Their access is `read_write`, since wgpu and WebGPU
/// allow no other of a buffer that is written. A bit for each binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[doc(hidden)]
pub struct Shared(u16);

impl Shared {
    pub fn of(bindings: impl Iterator<Item = u32>) -> Shared {
        Shared(bindings.fold(0, |bits, binding| bits | 1 << binding))
    }

    pub fn has(self, binding: u32) -> bool {
        self.0 >> binding & 1 == 1
    }
}

/// The line that declares the parameters of a dispatch, and what stands there on a device without immediates.
const IMMEDIATE: &str = "var<immediate> p: Params;";
const UNIFORM: &str = "@group(0) @binding(15) var<uniform> p: Params;";

/// What declares the access of a storage buffer, which WGSL cannot override. A buffer that never shares one with an
/// output, a table of the crate's own, is declared `var<storage>`, which is the same.
const READ: &str = "var<storage, read>";
const READ_WRITE: &str = "var<storage, read_write>";

const TABLE: &str = "var<storage>";

/// The binding that a line declares, and what stands behind it.
fn read_group(line: &str) -> Option<(u32, &str)> {
    let (binding, rest) = line.strip_prefix("@group(0) @binding(")?.split_once(") ")?;
    Some((binding.parse().ok()?, rest))
}

/// The binding that a line declares, if it is only read and may be shared.
fn read_binding(line: &str) -> Option<u32> {
    read_group(line).filter(|(_, rest)| rest.starts_with(READ)).map(|(binding, _)| binding)
}

/// Name, type and default of the override that a line declares.
fn read_override(line: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = line.strip_prefix("override ")?.split_once(": ")?;
    let (kind, rest) = rest.split_once(" = ")?;
    Some((name, kind, rest.split_once(';')?.0))
}

macro_rules! files {
    ($($name:literal)*) => {
        /// Every file by its path below `shaders`.
        #[doc(hidden)]
        pub static FILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../shaders/", $name, ".wgsl")))),*];
    };
}

files! {
    "numbers/storage" "numbers/wide" "numbers/norm" "numbers/lanes"
    "product/a_scalar" "product/a_quad" "product/a_pair" "product/b_scalar" "product/b_quad" "product/b_pair" "product/scale_pairs" "product/scale_factors" "product/params" "product/params_windows" "product/block" "product/a_matrix" "product/b_matrix" "product/view_matrix" "product/a_windows" "product/b_weights" "product/view_windows" "product/view_phases" "product/b_channels" "product/view_taps" "product/shape" "product/exact" "product/shared_norms"
    "product/tile" "product/stream" "product/subgroup" "product/narrow" "product/cooperative" "product/matrix8" "product/matrix16"
    "product/result_beside" "product/result_scalar" "product/result_packed" "product/result_vec4"
    "product/c_matrix" "product/c_windows" "product/c_phases" "product/c_taps" "product/c_cell" "product/cells" "product/norms_out" "product/conv_ends" "product/extra" "product/snake" "product/partials_wide" "product/partials_plain" "product/split" "product/activation" "product/forward" "product/linear" "product/conv" "product/gradient" "product/cell" "product/cell_gradient"
    "weight/item" "weight/item_one" "weight/item_table" "weight/words" "weight/quads" "weight/elements" "weight/sums"
    "weight/again" "weight/row_sums" "weight/column_sums" "weight/finish_sums" "weight/rescale" "weight/held_rows" "weight/held_gradients" "weight/all"
    "batch/statistics" "batch/words" "batch/quads"
    "optimizer/steps" "optimizer/words" "optimizer/quads"
    "conv/channel_sums" "conv/fold" "conv/gate_gradient" "conv/snake_gradient"
    "dora/norms"
    "activation/derivative" "activation/gradient" "activation/words" "activation/quads"
    "probe"
}

fn file(name: &str) -> &'static str {
    let found = FILES.iter().find(|(file, _)| *file == name);
    found.unwrap_or_else(|| panic!("{name} is no file of the crate's: the tests compose every module")).1
}

impl Module {
    pub(crate) const fn new(file: &'static str) -> Module {
        Module { file, slots: [NO_SLOT; SLOTS] }
    }

    pub(crate) const fn fill(mut self, slot: &'static str, file: &'static str) -> Module {
        let mut i = 0;
        while !self.slots[i].0.is_empty() {
            i += 1;
        }
        self.slots[i] = (slot, file);
        self
    }

    /// The file's name, and those of what fills its slots.
    pub fn name(self) -> String {
        let last = |path: &'static str| path.rsplit('/').next().unwrap_or(path);
        let mut name = match self.file.split_once('/') {
            Some(("product" | "weight", file)) => file.to_owned(),
            _ => self.file.replace('/', "_"),
        };
        let mut before = "";
        for (slot, file) in self.slots {
            let file = last(file);
            let filler = file.strip_prefix(slot).unwrap_or(file).trim_start_matches('_');
            let filler = filler.strip_prefix(last(self.file)).unwrap_or(filler).trim_start_matches('_');
            if !filler.is_empty() && (filler != before || slot == "result") {
                name = format!("{name}_{filler}");
            }
            before = filler;
        }
        name
    }

    /// Whether its lanes are those of subgroups, which no order of ours changes.
    pub fn by_subgroups(self) -> bool {
        self.slots.iter().any(|(_, file)| ["product/subgroup", "product/cooperative"].contains(file))
    }

    /// The files, each behind all that it imports.
    pub fn files(self) -> Vec<&'static str> {
        let mut composed = Composed { slots: self.slots.to_vec(), seen: vec![], files: vec![] };
        composed.take(self.file);
        composed.files
    }

    /// The WGSL with the parameters as immediates.
    pub fn source(self, shared: Shared) -> String {
        let (mut directives, mut text) = (String::new(), String::new());
        for line in self.files().into_iter().flat_map(|name| file(name).lines()) {
            // Directives come first.
            let to = if line.starts_with("enable ") { &mut directives } else { &mut text };
            match read_binding(line).filter(|&binding| shared.has(binding)) {
                Some(_) => to.push_str(&line.replacen(READ, READ_WRITE, 1)),
                None => to.push_str(line),
            }
            to.push('\n');
        }
        directives + &text
    }

    /// The WGSL of one variant of one entry point: its `bindings` are 0, 1, .. in their order, with the parameters in a
    /// uniform buffer behind them; those of other entry points get out of the way. See
    /// [`Planned::plain_wgsl`](crate::Planned).
    pub fn plain_source(self, bindings: &[u32], constants: &[(&'static str, u32)]) -> String {
        let place = |binding: u32| bindings.iter().position(|&b| b == binding).map_or(binding + 100, |i| i as u32);
        let mut plain = String::new();
        for line in self.source(Shared::default()).lines() {
            if line == IMMEDIATE {
                plain += &format!("@group(0) @binding({}) var<uniform> p: Params;", bindings.len());
            } else if let Some((name, kind, value)) = read_override(line) {
                let chosen = constants.iter().find(|(chosen, _)| *chosen == name).map(|&(_, value)| match kind {
                    "bool" => (value != 0).to_string(),
                    _ => format!("{kind}({value})"),
                });
                plain += &format!("const {name}: {kind} = {};", chosen.unwrap_or(value.to_owned()));
            } else if let Some((binding, rest)) = read_group(line) {
                let access = [READ, TABLE].into_iter().find(|access| rest.starts_with(access));
                let rest = access.map_or(rest.to_owned(), |access| rest.replacen(access, READ_WRITE, 1));
                plain += &format!("@group(0) @binding({}) {rest}", place(binding));
            } else {
                plain += line;
            }
            plain.push('\n');
        }
        plain
    }

    /// The WGSL with the parameters as a uniform buffer.
    pub fn uniform_source(self, shared: Shared) -> String {
        self.source(shared).replace(IMMEDIATE, UNIFORM)
    }
}

struct Composed {
    /// What fills them, as far as it is known.
    slots: Vec<Slot>,
    seen: Vec<&'static str>,
    files: Vec<&'static str>,
}

impl Composed {
    fn take(&mut self, name: &'static str) {
        if self.seen.contains(&name) {
            return;
        }
        self.seen.push(name);
        for import in imports(file(name)) {
            let below = match import {
                Import::File(file) => file,
                Import::Slot(slot, default) => {
                    let filled = self.slots.iter().find(|filled| filled.0 == slot).map(|filled| filled.1);
                    filled.unwrap_or_else(|| {
                        self.slots.push((slot, default));
                        default
                    })
                }
            };
            self.take(below);
        }
        self.files.push(name);
    }
}

/// What a file names.
#[derive(Debug, Clone, Copy, PartialEq)]
#[doc(hidden)]
pub enum Import {
    File(&'static str),
    /// A slot and its default.
    Slot(&'static str, &'static str),
}

/// The imports of a file's text.
#[doc(hidden)]
pub fn imports(text: &'static str) -> impl Iterator<Item = Import> {
    text.lines().filter_map(|line| {
        let line = line.strip_prefix("// ")?;
        match line.strip_prefix("import ") {
            Some(file) => Some(Import::File(file)),
            None => line.strip_prefix("slot ")?.split_once(" = ").map(|(slot, file)| Import::Slot(slot, file)),
        }
    })
}
