//! Which tensors of a pickle are the checkpoint's: those of one dictionary, named by the way from there.
use std::collections::HashSet;

use super::value::{Element, MAX_KEY, Object, Tensor, Value, Values};

/// So deep dictionaries and lists may stand in each other.
const MAX_DEPTH: usize = 64;
/// So many values are looked at, each as often as it is held.
const MAX_VISITS: usize = 1 << 22;

/// The bytes of all names on the way, in sum.
const MAX_NAMES: usize = 1 << 28;

/// A tensor by its name, or why it cannot be read.
pub type Named = (String, Result<Tensor, String>);

/// The dictionary of the key, or the one that there is.
pub struct Chosen {
    /// The way to it; empty for the file's own value.
    pub key: String,
    pub value: Value,
}

/// What keeps a dictionary from being chosen.
pub struct NoKey {
    pub reason: String,
    /// Those that might be.
    pub keys: Vec<String>,
}

/// The dictionary that a key names, from the root on. Parts of a key stand between points, and may have points.
pub fn by_key(values: &Values, root: Value, key: &str) -> Result<Chosen, NoKey> {
    let found = walk(values, root, key, &mut MAX_VISITS.clone());
    match found[..] {
        [value] => Ok(Chosen { key: key.to_owned(), value }),
        [] => {
            let keys = all_keys(values, root);
            Err(NoKey { reason: format!("there is no key {key:?}: {}", listed(&keys)), keys })
        }
        _ => Err(NoKey { reason: format!("the key {key:?} is there twice"), keys: vec![key.to_owned()] }),
    }
}

/// All values that a way leads to, two at most.
fn walk(values: &Values, value: Value, key: &str, left: &mut usize) -> Vec<Value> {
    if key.is_empty() {
        return vec![value];
    }
    let mut found = vec![];
    for (name, inner) in children(values, value) {
        *left = left.saturating_sub(1);
        if *left == 0 {
            break;
        }
        let rest = match key.strip_prefix(name.as_str()) {
            Some("") => "",
            Some(rest) if rest.len() > 1 && rest.starts_with('.') && !name.is_empty() => &rest[1..],
            _ => continue,
        };
        found.extend(walk(values, inner, rest, left));
        if found.len() > 1 {
            break;
        }
    }
    found
}

/// The one dictionary of weights: the file's own value, or what is nearest to it. Where there are several, or none,
/// the error names what there is.
///
/// A dictionary of weights holds a floating-point tensor with an axis under a key of text. Those below an integer or in
/// a list (an optimizer's state) are none, and what stands inside one belongs to it.
pub fn the_only(values: &Values, root: Value) -> Result<Chosen, NoKey> {
    let (mut found, mut seen) = (vec![], HashSet::new());
    collect(values, root, String::new(), &mut seen, &mut found, 0);
    if found.is_empty() && matches!(values.object(root), Some(Object::Tensor(_) | Object::Unread(_))) {
        found.push((String::new(), root));
    }
    match &mut found[..] {
        [(key, value)] => Ok(Chosen { key: std::mem::take(key), value: *value }),
        [] => {
            let keys = all_keys(values, root);
            let what = match values.object(root) {
                Some(Object::Opaque(Some(name))) => format!(
                    "it is an object of {}.{}, not a dictionary of tensors\nsave its state_dict(), in Python",
                    String::from_utf8_lossy(values.text(name.module)),
                    String::from_utf8_lossy(values.text(name.name))
                ),
                _ => format!("no dictionary of weights is in it: {}", listed(&keys)),
            };
            Err(NoKey { reason: what, keys })
        }
        several => {
            let count = |value: Value| {
                let entries = values.dict(value).unwrap_or_default();
                entries.iter().filter(|(_, value)| matches!(values.object(*value), Some(Object::Tensor(_)))).count()
            };
            let listed: Vec<String> =
                several.iter().take(12).map(|(key, value)| format!("{key} ({} tensors)", count(*value))).collect();
            let more = if several.len() > 12 { ", .." } else { "" };
            let reason = format!(
                "it has several dictionaries of weights: {}{more}\nname one as the key, such as {}",
                listed.join(", "),
                several[0].0
            );
            Err(NoKey { reason, keys: several.iter().map(|(key, _)| key.clone()).collect() })
        }
    }
}

fn collect(
    values: &Values,
    value: Value,
    key: String,
    seen: &mut HashSet<u32>,
    found: &mut Vec<(String, Value)>,
    depth: usize,
) {
    let (Some(entries), Value::Object(number)) = (values.dict(value), value) else { return };
    // What is held twice is one, by its first name; and what holds itself ends there.
    if !seen.insert(number) || depth > MAX_DEPTH || key.len() > MAX_KEY {
        return;
    }
    if entries.iter().any(|&(key, value)| matches!(key, Value::Text(_)) && is_weight(values, value)) {
        found.push((key, value));
        return;
    }
    for &(name, inner) in entries {
        if let (Value::Text(_), Some(name), Some(_)) = (name, values.key(name), values.dict(inner)) {
            collect(values, inner, joined(&key, &name), seen, found, depth + 1);
        }
    }
}

fn is_weight(values: &Values, value: Value) -> bool {
    match values.object(value) {
        Some(Object::Tensor(tensor)) => {
            let element = tensor.element.unwrap_or(tensor.storage.element);
            let is_float = matches!(element, Element::Of(dtype) if dtype.is_float());
            is_float && values.elements(tensor.shape).is_some_and(|shape| !shape.is_empty())
        }
        _ => false,
    }
}

/// All tensors below a value, by the way to each. A tensor by itself is called `tensor`.
pub fn tensors(values: &Values, value: Value) -> Result<Vec<Named>, String> {
    let mut flat = Flat { values, found: vec![], visits: 0, length: 0 };
    flat.visit(value, String::new(), 0)?;
    Ok(flat.found)
}

struct Flat<'a> {
    values: &'a Values,
    found: Vec<Named>,
    visits: usize,
    /// Of all names.
    length: usize,
}

impl Flat<'_> {
    fn visit(&mut self, value: Value, name: String, depth: usize) -> Result<(), String> {
        self.visits += 1;
        self.length += name.len();
        if depth > MAX_DEPTH {
            return Err(format!("its dictionaries and lists stand in each other more than {MAX_DEPTH} deep"));
        }
        if self.visits > MAX_VISITS || self.length > MAX_NAMES {
            return Err("its dictionaries and lists hold more values than are looked at".to_owned());
        }
        let tensor = match self.values.object(value) {
            Some(Object::Tensor(tensor)) => Ok(*tensor),
            Some(Object::Unread(what)) => {
                Err(format!("{} is not read here", String::from_utf8_lossy(self.values.text(*what))))
            }
            _ => {
                let values = self.values;
                let keys = values.dict(value).unwrap_or_default().iter().map(|&(key, _)| key);
                if keys.into_iter().any(|key| values.is_too_long(key)) {
                    return Err("it has a key of many thousand characters".to_owned());
                }
                for (key, inner) in children(values, value) {
                    self.visit(inner, joined(&name, &key), depth + 1)?;
                }
                return Ok(());
            }
        };
        let name = if name.is_empty() { "tensor".to_owned() } else { name };
        self.found.push((name, tensor));
        Ok(())
    }
}

/// What a dictionary, a list or a tuple holds under names: texts and integers. Only what may hold a tensor.
fn children(values: &Values, value: Value) -> impl Iterator<Item = (String, Value)> {
    let entries = values.dict(value).unwrap_or_default().iter().map(|&(key, inner)| (Some(key), inner));
    let elements = values.elements(value).unwrap_or_default().iter().map(|&inner| (None, inner));
    let named = move |(i, (key, inner)): (usize, (Option<Value>, Value))| {
        if !matches!(inner, Value::Object(_)) {
            return None;
        }
        Some((key.map_or_else(|| Some(i.to_string()), |key| values.key(key))?, inner))
    };
    entries.chain(elements).enumerate().filter_map(named)
}

fn joined(way: &str, name: &str) -> String {
    if way.is_empty() { name.to_owned() } else { format!("{way}.{name}") }
}

fn all_keys(values: &Values, root: Value) -> Vec<String> {
    let entries = values.dict(root).unwrap_or_default();
    entries.iter().filter_map(|&(key, _)| values.key(key)).take(100).collect()
}

fn listed(keys: &[String]) -> String {
    if keys.is_empty() {
        return "it has no keys".to_owned();
    }
    let more = if keys.len() > 12 { ", .." } else { "" };
    format!("its keys are {}{more}", keys.iter().take(12).cloned().collect::<Vec<_>>().join(", "))
}
