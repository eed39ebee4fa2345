//! The index of a folder whose files were written one by one.
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Error;
use super::error::failed;
use super::file::{self, Source};
use super::index::Totals;

/// An index that was written.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gathered {
    /// Where it is.
    pub path: PathBuf,
    /// Files that it names.
    pub files: usize,
    /// Tensors in them.
    pub tensors: usize,
    /// Bytes of those, its `total_size`.
    pub bytes: u64,
}

/// Writes the index of all `.safetensors` files of a folder, from their headers. Of files called
/// `NAME-00001-of-00032.safetensors` it is called `NAME.safetensors.index.json`, else `model.safetensors.index.json`.
///
/// `replace`: an index that is there is replaced. `some_are_missing`: that of 32 files not all are there is no error;
/// a file of which no tensor was left is never written.
///
/// # Errors
/// [`Error::Index`] where a file is missing, there is none, or two have a tensor of one name; [`Error::Occupied`],
/// [`Error::Io`]; [`Error::Header`], [`Error::Tensor`] where a file is not of the format.
pub fn write_index(folder: &Path, replace: bool, some_are_missing: bool) -> Result<Gathered, Error> {
    let mut names = vec![];
    for entry in fs::read_dir(folder).map_err(failed("reading the folder", folder))? {
        let entry = entry.map_err(failed("reading the folder", folder))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(ENDING) && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    if names.is_empty() {
        let reason = format!("there is no {ENDING} file in it");
        return Err(Error::Index { path: folder.to_owned(), reason });
    }
    let numbered: Vec<Option<Numbered>> = names.iter().map(|name| Numbered::of(name)).collect();
    let stem = match &numbered[0] {
        Some(first) if numbered.iter().all(|n| n.is_some_and(|n| (n.stem, n.count) == (first.stem, first.count))) => {
            first.stem
        }
        _ => "model",
    };
    let path = folder.join(format!("{stem}{ENDING}.index.json"));
    let wrong = |reason: String| Error::Index { path: path.clone(), reason };
    if let Some(missing) = missing(&numbered).filter(|_| !some_are_missing) {
        return Err(wrong(format!("{missing} is missing, and the files there are numbered as if it were to come")));
    }

    let (mut weight_map, mut totals) = (Map::new(), Totals::default());
    let mut file_of: HashMap<String, &str> = HashMap::new();
    for name in &names {
        for tensor in Source::open(&folder.join(name))?.header.tensors {
            if let Some(other) = file_of.insert(tensor.name.clone(), name) {
                return Err(wrong(format!("tensor {:?} is in {other} and {name}", tensor.name)));
            }
            totals.add(&tensor);
            weight_map.insert(tensor.name, Value::from(name.as_str()));
        }
    }
    let tensors = weight_map.len();
    let value = json!({ "metadata": { "total_size": totals.bytes }, "weight_map": weight_map });
    file::write_text(&path, &format!("{value:#}\n"), replace)?;
    Ok(Gathered { path, files: names.len(), tensors, bytes: totals.bytes })
}

const ENDING: &str = ".safetensors";

/// `STEM-NUMBER-of-COUNT.safetensors`
#[derive(Clone, Copy)]
struct Numbered<'a> {
    stem: &'a str,
    number: &'a str,
    count: &'a str,
}

impl Numbered<'_> {
    fn of(name: &str) -> Option<Numbered<'_>> {
        let (rest, count) = name.strip_suffix(ENDING)?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let is_number = |text: &str| (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        (is_number(number) && is_number(count)).then_some(Numbered { stem, number, count })
    }
}

/// The first file that numbered files say there has to be, and is not.
fn missing(numbered: &[Option<Numbered>]) -> Option<String> {
    let mut series: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for one in numbered.iter().flatten() {
        series.entry((one.stem, one.count)).or_default().extend(one.number.parse::<usize>());
    }
    series.into_iter().find_map(|((stem, count), numbers)| {
        let width = count.len();
        let absent = (1..=count.parse::<usize>().ok()?).find(|number| !numbers.contains(number))?;
        Some(format!("{stem}-{absent:0width$}-of-{count}{ENDING}"))
    })
}
