//! Files that `torch.save` writes: read as if they were `.safetensors` files.
//!
//! Since PyTorch 1.6 such a file is a zip archive of stored entries: `NAME/data.pkl`, a pickle of all but the numbers of tensors,
//! `NAME/data/0`, `NAME/data/1`, .., the storages, and `NAME/byteorder`; before, it was what `old.rs` says. A tensor is a view of a storage, by offset and
//! strides. One dictionary of tensors is taken, and its tensors get the places that they would have behind a header.
mod contents;
mod global;
mod old;
mod pickle;
mod tree;
mod value;
mod view;
mod zip;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use super::at::{ends, read_at};
use super::error::failed;
use super::foreign::{self, AGAIN, Sample};
use super::header::{self, Header, METADATA};
use super::{Error, FileDType, TensorInfo};

use contents::Contents;
use tree::NoKey;
use value::{Element, Span, Storage, Tensor, Value};
pub(super) use view::Views;
use view::{Strided, View};
use zip::{Archive, Place};

/// PyTorch's own limit.
const MAX_RANK: usize = 64;
/// Expanded tensors and overlapping ones may be this many times as large as the file, and [`MORE`] besides.
const TIMES: u64 = 16;
const MORE: u64 = 64 << 20;

/// A file that was read.
pub(super) struct Opened {
    /// Of the dictionary that was taken: the way to it.
    pub key: String,
    pub header: Header,
    pub views: Views,
}

/// Reads all but the numbers. `None` if it is no file of that kind.
pub(super) fn open(file: &File, path: &Path, size: u64, key: Option<&str>) -> Result<Option<Opened>, Error> {
    let mut first = [0; 15];
    if size < 22 || read_at(file, &mut first, 0).is_err() {
        return Ok(None);
    }
    let damaged = |what: String| Error::Header {
        path: path.to_owned(),
        reason: format!("it is a file of PyTorch's own (torch.save), and damaged: {what}\n{AGAIN}"),
    };
    let contents = if first.starts_with(b"PK\x03\x04") {
        let archive = match Archive::open(file, size) {
            Ok(archive) => archive,
            Err(what) => {
                let (head, tail) = ends(file, size).map_err(failed("reading", path))?;
                let is_ours = foreign::is_torch_zip(&Sample { path, size, head: &head, tail: &tail });
                return if is_ours { Err(damaged(what)) } else { Ok(None) };
            }
        };
        match contents::of_archive(archive).map_err(damaged)? {
            Some(contents) => contents,
            None => return Ok(None),
        }
    } else if old::is(&first) {
        old::read(file, size).map_err(damaged)?
    } else {
        return Ok(None);
    };
    if contents.is_big_endian {
        return Err(foreign::big_endian(path));
    }
    let (values, root) = (&contents.values, contents.root);
    let no_key = |NoKey { reason, keys }: NoKey| Error::Key { path: path.to_owned(), reason, keys };
    let chosen = match key {
        Some(key) => tree::by_key(values, root, key),
        None => tree::the_only(values, root),
    };
    let chosen = chosen.map_err(no_key)?;
    let tensors = tree::tensors(values, chosen.value).map_err(damaged)?;
    if tensors.is_empty() {
        let reason = format!("no tensors are below its key {:?}", chosen.key);
        return Err(no_key(NoKey { reason, keys: vec![] }));
    }
    let (header, views) = Reader { path, size, contents }.lay_out(tensors)?;
    Ok(Some(Opened { key: chosen.key, header, views }))
}

struct Reader<'a> {
    path: &'a Path,
    size: u64,
    contents: Contents<'a>,
}

/// A tensor that was checked.
struct Checked {
    dtype: FileDType,
    shape: Vec<usize>,
    bytes: u64,
    /// Of its first element in the file.
    at: u64,
    strided: Option<Strided>,
}

impl Reader<'_> {
    /// Gives every tensor a place, the largest elements first, as the `safetensors` library does. Names of the same
    /// view are tied to the first of them.
    fn lay_out(mut self, tensors: Vec<tree::Named>) -> Result<(Header, Views), Error> {
        let wrong = |tensor: &str, reason: String| {
            Err(Error::Tensor { path: self.path.to_owned(), tensor: tensor.to_owned(), reason })
        };
        let (mut names, mut first_of, mut ties) = (HashSet::new(), HashMap::new(), vec![]);
        let (mut infos, mut found, mut total) = (vec![], vec![], 0u64);
        for (name, tensor) in tensors {
            if name == METADATA || !names.insert(name.clone()) {
                let what = if name == METADATA { "no tensor may have that name" } else { "two tensors have that name" };
                return wrong(&name, what.to_owned());
            }
            let checked = match tensor.and_then(|tensor| self.check(&tensor)) {
                Ok(checked) => checked,
                Err(reason) => return wrong(&name, reason),
            };
            let Checked { dtype, shape, bytes, at, strided } = checked;
            if bytes > 0 {
                let strides = strided.as_ref().map(|strided| strided.strides.clone());
                let view = (at, dtype, shape.clone(), strides);
                if let Some(first) = first_of.get(&view) {
                    ties.push((name, String::clone(first)));
                    continue;
                }
                first_of.insert(view, name.clone());
            }
            total = total.saturating_add(bytes);
            if total > self.size.saturating_mul(TIMES).saturating_add(MORE) {
                let reason = format!("with it the tensors are more than {TIMES} times as large as the file: expanded");
                return wrong(&name, reason);
            }
            infos.push(TensorInfo { name, dtype, shape, begin: 0, end: bytes, more: vec![] });
            found.push((at, strided));
        }
        self.check_places()?;

        let mut order: Vec<usize> = (0..infos.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(infos[i].dtype.bits()));
        let (mut begin, mut views) = (0, vec![]);
        for i in order {
            let end = begin + infos[i].end;
            (infos[i].begin, infos[i].end) = (begin, end);
            let (at, strided) = (found[i].0, found[i].1.take());
            views.push(View { begin, end, at, strided });
            begin = end;
        }
        // As the library's own writers for PyTorch say it.
        let format = ["format", "pt"].map(str::to_owned);
        let mut metadata = vec![];
        if format.iter().all(|word| !names.contains(word)) {
            let [format, pt] = format;
            metadata.push((format, pt));
        }
        metadata.extend(ties);
        Ok((Header { metadata: Some(metadata), metadata_at: 0, tensors: infos }, Views(views)))
    }

    fn check(&mut self, tensor: &Tensor) -> Result<Checked, String> {
        let Tensor { storage, element, offset, .. } = *tensor;
        let text = |span: Span| String::from_utf8_lossy(self.contents.values.text(span)).into_owned();
        let dtype = match element.unwrap_or(storage.element) {
            Element::Of(dtype) => dtype,
            Element::Untyped => return Err("nothing says of which type its elements are".to_owned()),
            Element::Other(name) => return Err(format!("its storage is a {}, which is not read here", text(name))),
        };
        let [shape, strides] = [tensor.shape, tensor.strides].map(|value| self.sizes(value));
        let (shape, strides) = (shape?, strides?);
        if strides.len() != shape.len() {
            return Err(format!("it has {} axes and {} strides", shape.len(), strides.len()));
        }
        let sizes: Vec<usize> = shape.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
        let bytes = header::byte_size(&sizes, dtype).ok_or_else(|| format!("{shape:?} is no shape for {dtype}"))?;
        let place = self.place(&storage)?;
        let size = dtype.bits() / 8;
        let stored = match storage.element {
            Element::Of(dtype) => dtype.bits() / 8,
            _ => 1,
        };
        let length = u64::try_from(storage.count).ok().and_then(|count| count.checked_mul(stored));
        let there = place.end - place.begin;
        let length = length.filter(|&length| length <= there).ok_or_else(|| {
            format!("its storage has {} elements of {stored} bytes, the file {there} bytes of it", storage.count)
        })?;
        if bytes == 0 {
            return Ok(Checked { dtype, shape: sizes, bytes, at: place.begin, strided: None });
        }
        let offset = u64::try_from(offset).map_err(|_| format!("it begins at {offset}"))?;
        let mut steps = shape.iter().zip(&strides).map(|(&d, &stride)| (d - 1).checked_mul(stride));
        let last = steps.try_fold(offset, |sum, step| sum.checked_add(step?));
        if last.is_none_or(|last| last >= length / size) {
            return Err(format!("it reaches beyond its storage of {} elements", length / size));
        }
        let strided = Strided::new(size, &shape, &strides);
        Ok(Checked { dtype, shape: sizes, bytes, at: place.begin + offset * size, strided })
    }

    /// A shape, or strides.
    fn sizes(&self, value: Value) -> Result<Vec<u64>, String> {
        let elements = self.contents.values.elements(value).ok_or("its shape or its strides are no tuple")?;
        if elements.len() > MAX_RANK {
            return Err(format!("it has {} axes, PyTorch's limit is {MAX_RANK}", elements.len()));
        }
        let size = |value: &Value| match *value {
            Value::Int(number) => number.try_into().map_err(|_| format!("{number} is no size and no stride")),
            _ => Err("its shape or its strides are no integers".to_owned()),
        };
        elements.iter().map(size).collect()
    }

    fn place(&mut self, storage: &Storage) -> Result<Place, String> {
        let Contents { values, storages, archive, .. } = &mut self.contents;
        let key = values.text(storage.key);
        if let Some(&place) = storages.get(key) {
            return Ok(place);
        }
        let looked_up = archive.as_ref().map(|(archive, prefix)| archive.place(&[prefix, &b"data/"[..], key].concat()));
        let place = looked_up.transpose()?.flatten();
        let place = place.ok_or_else(|| format!("its storage {} is missing", String::from_utf8_lossy(key)))?;
        storages.insert(key.to_vec(), place);
        Ok(place)
    }

    /// That no two storages share bytes of the file.
    fn check_places(&self) -> Result<(), Error> {
        let mut places: Vec<&Place> = self.contents.storages.values().collect();
        places.sort();
        match places.windows(2).find(|pair| pair[0].end > pair[1].header) {
            None => Ok(()),
            Some(pair) => {
                let (end, next) = (pair[0].end, pair[1].header);
                let reason = format!("it is damaged: an entry ends at {end}, the next one begins at {next}\n{AGAIN}");
                Err(Error::Header { path: self.path.to_owned(), reason })
            }
        }
    }
}
